// Who is at work, so that a message from below can name it: running out of memory happens in the
// allocator, which knows sizes only.
#pragma once

#include <string>

namespace graft {

// Between constructor and destructor this thread works on `name`: an op, a layer, a pass. Inner
// ones are parts of outer ones. The name must outlive the scope. Every op that allocates opens with
// one; the op table refuses an op that does not.
class RunningOp {
 public:
  explicit RunningOp(const char* name) : name_(name), outer_(innermost_) { innermost_ = this; }
  ~RunningOp() { innermost_ = outer_; }
  RunningOp(const RunningOp&) = delete;
  RunningOp& operator=(const RunningOp&) = delete;

  // " in layer1.0 > conv2d", from the outside in; empty where nothing is running.
  static std::string where() {
    std::string path;
    for (const RunningOp* op = innermost_; op != nullptr; op = op->outer_) {
      path = path.empty() ? op->name_ : std::string(op->name_) + " > " + path;
    }
    return path.empty() ? path : " in " + path;
  }

 private:
  inline static thread_local const RunningOp* innermost_ = nullptr;
  const char* name_;
  const RunningOp* outer_;
};

}  // namespace graft
