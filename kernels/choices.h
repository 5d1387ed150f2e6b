// Choices that were made by timing, kept in a file: of the algorithms that a library proposes for a
// shape one is the fastest by a little and by chance, and processes that chose by themselves would
// differ in the last bits of all they compute. So the first choice stands, for every process that
// reads the same file.
//
// The file is text: a line that names the format, then "key TAB value TAB checksum" for every
// choice. Lines are only ever appended, each by one write under a lock, and the first whole line
// with a key counts: writers that meet agree, and a damaged line is one choice that is made again.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace graft {

class Choices {
 public:
  // Reads the file. An empty path: choices are kept in memory only.
  explicit Choices(std::filesystem::path file = {});

  std::optional<std::string> find(const std::string& key) const;
  // The choice that stands from now on: `value`, unless somebody was first. It is kept in the file
  // if it can be (a folder that is not there is made); throws nothing where it cannot. Keys and
  // values are single lines without tabs, of at most 1000 bytes.
  std::string agree(const std::string& key, const std::string& value);

  // Files that are larger are neither read nor added to.
  static constexpr size_t kMostBytes = size_t{8} << 20;

 private:
  std::filesystem::path file_;
  mutable std::mutex mutex_;
  std::map<std::string, std::string> known_;
};

// How this process chooses, by the environment variable GRAFT_CHOICES: unset, with the file
// graft/choices in the user's cache folder (XDG_CACHE_HOME, ~/.cache); a path, with that file; "0",
// anew; "untimed", nothing is timed and the library's own proposal stands.
struct ChoiceSetting {
  bool timed = true;
  std::filesystem::path file;
};
ChoiceSetting choice_setting();
// The process's own, of choice_setting().file.
Choices& choices();

}  // namespace graft
