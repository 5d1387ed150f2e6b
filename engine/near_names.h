// Names near one that nobody knows, for messages.
#pragma once

#include <string>
#include <vector>

namespace graft {

// Insertions, deletions and replacements that make one word of another (Levenshtein 1966).
size_t edit_distance(const std::string& a, const std::string& b);
// Of `known` the names that `name` is most likely a mistyped form of, nearest first, at most
// `most`. Empty when none is near.
std::vector<std::string> near_names(const std::string& name, const std::vector<std::string>& known,
                                    size_t most = 3);
// "; did you mean layer1.0 or layer1.1?", or "" when none is near.
std::string did_you_mean(const std::string& name, const std::vector<std::string>& known);

}  // namespace graft
