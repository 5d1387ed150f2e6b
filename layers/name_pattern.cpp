#include "layers/name_pattern.h"

#include <algorithm>

namespace graft {
namespace {

bool glob(const char* pattern, const char* text_begin, const char* text_end) {
  for (; *pattern != '\0'; ++pattern, ++text_begin) {
    if (*pattern == '*') {
      for (const char* rest = text_begin; rest <= text_end; ++rest) {
        if (glob(pattern + 1, rest, text_end)) return true;
      }
      return false;
    }
    if (text_begin == text_end || (*pattern != '?' && *pattern != *text_begin)) return false;
  }
  return text_begin == text_end;
}

}  // namespace

bool matches(const std::string& pattern, const std::string& name) {
  for (size_t end = name.find('.');; end = name.find('.', end + 1)) {
    const size_t length = std::min(end, name.size());
    if (glob(pattern.c_str(), name.data(), name.data() + length)) return true;
    if (end == std::string::npos) return false;
  }
}

}  // namespace graft
