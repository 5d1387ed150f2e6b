#include "kernels/choices.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <string_view>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace graft {
namespace {

constexpr std::string_view kHeader = "graft choices 1\n";
constexpr size_t kMostLine = 1000;

// FNV-1a: against damage, not against people, who may write into their own files what they like.
std::string checksum(std::string_view line) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : line) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(hash));
  return digits;
}

bool is_field(std::string_view text) {
  if (text.empty() || text.size() > kMostLine) return false;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) return false;
  }
  return true;
}

// The first of several lines with one key. The last line may have lost its end.
void parse(std::string_view contents, std::map<std::string, std::string>& choices) {
  if (!contents.starts_with(kHeader)) return;
  contents.remove_prefix(kHeader.size());
  while (!contents.empty()) {
    const std::string_view line = contents.substr(0, contents.find('\n'));
    contents.remove_prefix(std::min(contents.size(), line.size() + 1));
    const size_t key_end = line.find('\t'), value_end = line.rfind('\t');
    if (key_end == std::string_view::npos || key_end == value_end) continue;
    const std::string_view key = line.substr(0, key_end);
    const std::string_view value = line.substr(key_end + 1, value_end - key_end - 1);
    if (!is_field(key) || !is_field(value)) continue;
    if (line.substr(value_end + 1) != checksum(line.substr(0, value_end))) continue;
    choices.try_emplace(std::string(key), value);
  }
}

// An open regular file; never a pipe or a device, which could block.
class OpenFile {
 public:
  OpenFile(const std::filesystem::path& path, int flags)
      : descriptor_(open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0644)) {
    struct stat status {};
    if (descriptor_ >= 0 && (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode))) {
      close(descriptor_);
      descriptor_ = -1;
    }
  }
  ~OpenFile() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  bool good() const { return descriptor_ >= 0; }
  // Waits a second at most: a holder that was stopped must stop nobody else, and without the lock
  // an append still is one piece.
  void lock(int how) const {
    for (int tries = 0; tries < 1000 && flock(descriptor_, how | LOCK_NB) != 0; ++tries) {
      if (errno != EWOULDBLOCK) return;
      usleep(1000);
    }
  }
  // Nothing when the file is too large or cannot be read.
  std::optional<std::string> contents() const {
    std::string all;
    char part[1 << 16];
    for (ssize_t n;
         (n = pread(descriptor_, part, sizeof part, static_cast<off_t>(all.size()))) != 0;) {
      if (n < 0 || all.size() + static_cast<size_t>(n) > Choices::kMostBytes) return std::nullopt;
      all.append(part, static_cast<size_t>(n));
    }
    return all;
  }
  bool append(std::string_view text) const {
    return write(descriptor_, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  }

 private:
  int descriptor_;
};

}  // namespace

Choices::Choices(std::filesystem::path file) : file_(std::move(file)) {
  if (file_.empty()) return;
  const OpenFile source(file_, O_RDONLY);
  if (!source.good()) return;
  source.lock(LOCK_SH);
  if (const auto contents = source.contents()) parse(*contents, known_);
}

std::optional<std::string> Choices::find(const std::string& key) const {
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(key);
  return found == known_.end() ? std::nullopt : std::optional(found->second);
}

std::string Choices::agree(const std::string& key, const std::string& value) {
  const std::lock_guard lock(mutex_);
  const auto known = known_.find(key);
  if (known != known_.end()) return known->second;
  const auto ours = [&] { return known_[key] = value; };
  if (file_.empty() || !is_field(key) || !is_field(value)) return ours();
  std::error_code ignored;
  if (file_.has_parent_path()) std::filesystem::create_directories(file_.parent_path(), ignored);
  const OpenFile target(file_, O_RDWR | O_CREAT | O_APPEND);
  if (!target.good()) return ours();
  target.lock(LOCK_EX);
  auto contents = target.contents();
  if (!contents) return ours();
  std::map<std::string, std::string> all;
  parse(*contents, all);
  // What this process has decided stays, whatever became of the file.
  for (const auto& [other, choice] : all) known_.try_emplace(other, choice);
  if (const auto found = known_.find(key); found != known_.end()) return found->second;
  std::string added;
  if (kHeader.starts_with(*contents)) {
    added = kHeader.substr(contents->size());
  } else if (!contents->starts_with(kHeader)) {
    return ours();  // somebody else's file
  } else if (contents->back() != '\n') {
    added = "\n";  // behind a line that was cut off
  }
  const std::string line = key + '\t' + value;
  added += line + '\t' + checksum(line) + '\n';
  if (contents->size() + added.size() <= kMostBytes) target.append(added);
  return ours();
}

ChoiceSetting choice_setting() {
  const auto variable = [](const char* name) -> std::string_view {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  const std::string_view wish = variable("GRAFT_CHOICES");
  if (wish == "0") return {};
  if (wish == "untimed") return {false, {}};
  if (!wish.empty()) return {true, wish};
  const std::string_view cache = variable("XDG_CACHE_HOME"), home = variable("HOME");
  if (!cache.empty()) return {true, std::filesystem::path(cache) / "graft/choices"};
  if (!home.empty()) return {true, std::filesystem::path(home) / ".cache/graft/choices"};
  return {};
}

Choices& choices() {
  static auto* const one = new Choices(choice_setting().file);
  return *one;
}

}  // namespace graft
