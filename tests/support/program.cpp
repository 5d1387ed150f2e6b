#include "tests/support/program.h"

#include <chrono>
#include <csignal>
#include <fcntl.h>
#include <sstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "kernels/error.h"

namespace graft::testing {
namespace fs = std::filesystem;
using nlohmann::json;

Run::Run(const std::vector<std::string>& arguments, const std::string& stdout_to) {
  std::vector<std::string> words{GRAFT_BINARY_DIR "/graft"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  const std::string out = stdout_to.empty() ? (folder_ / "out").string() : stdout_to;
  const std::string err = (folder_ / "err").string();
  pid_ = fork();
  GRAFT_CHECK(pid_ >= 0, "the test cannot start a process");
  if (pid_ == 0) {
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    dup2(open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    execv(pointers[0], pointers.data());
    _exit(127);
  }
}

Run::~Run() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
}

void Run::send(int signal) { kill(pid_, signal); }
std::string Run::out_so_far() const {
  return fs::exists(folder_ / "out") ? file_bytes(folder_ / "out") : "";
}
void Run::wait_for(const std::string& text) const {
  for (int i = 0; i < 6000 && !contains(out_so_far(), text); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}
Outcome Run::wait() {
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return {code, out_so_far(), file_bytes(folder_ / "err")};
}

Outcome graft_program(const std::vector<std::string>& arguments) { return Run(arguments).wait(); }

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::vector<json> json_lines(const std::string& text) {
  std::vector<json> result;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) result.push_back(json::parse(line));
  return result;
}

const fs::path& pictures() {
  static const TemporaryFolder folder;
  static const fs::path data = [] {
    write_stripes(folder / "stripes", 16, 16, 7);
    return folder / "stripes";
  }();
  return data;
}

std::vector<std::string> training(const fs::path& out, const std::string& epochs) {
  return {"finetune",     "--data",    pictures().string(), "--arch", "small_cnn", "--from-scratch",
          "--image-size", "16",        "--batch",           "8",      "--epochs",  epochs,
          "--out",        out.string()};
}

const fs::path& trained() {
  static const TemporaryFolder folder;
  static const fs::path weights = [] {
    const Outcome outcome = graft_program(training(folder / "run", "4"));
    GRAFT_CHECK(outcome.code == 0, outcome.err);
    return folder / "run" / "best.safetensors";
  }();
  return weights;
}

}  // namespace graft::testing
