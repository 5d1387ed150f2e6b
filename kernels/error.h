// One exception type for the whole library, and the check that throws it.
// A message starts with the op or file it is about, prints expected and actual, and says what to
// do.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace graft {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Shapes and other lists print as [2, 3, 4].
template <class T>
std::ostream& operator<<(std::ostream& out, const std::vector<T>& list) {
  out << '[';
  for (size_t i = 0; i < list.size(); ++i) out << (i ? ", " : "") << list[i];
  return out << ']';
}

// Concatenates its arguments as a stream would.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(text(parts...));
}

}  // namespace graft

// GRAFT_CHECK(a == b, "matmul: inner sizes differ: ", a, " and ", b);
#define GRAFT_CHECK(condition, ...) \
  do {                              \
    if (!(condition)) [[unlikely]]  \
      ::graft::fail(__VA_ARGS__);   \
  } while (false)
