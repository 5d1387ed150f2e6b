// Atomic replacement follows the rule learned from crash-consistency studies (ALICE, OSDI 2014): a
// temporary file in the same folder, all of it written and synced, rename, sync of the folder.
// Without the first sync a crash after the rename can leave an empty file under the good name;
// without the second the rename itself can be lost.
#include "engine/io/file.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "engine/io/weights.h"
#include "kernels/error.h"

namespace graft {
namespace {

std::atomic<int64_t> calls{0};
std::atomic<int64_t> failing_call{0};
std::atomic<int> injected_error{EIO};
std::atomic<FileFault> injected_fault{FileFault::error};

// True when this call is the one to go wrong.
bool count_call() { return ++calls == failing_call; }

// Runs a system call until it is not interrupted. close() must not go through here: on Linux the
// descriptor is gone even when it reports an interruption.
template <class Call>
auto retry(Call call) {
  while (true) {
    decltype(call()) result = -1;
    const FileFault fault = injected_fault;
    if (count_call() && fault != FileFault::short_write) {
      errno = fault == FileFault::interrupted ? EINTR : injected_error.load();
    } else {
      result = call();
    }
    if (result != -1 || errno != EINTR) return result;
  }
}

ssize_t write_some(int file, const char* data, size_t bytes) {
  const bool shorten = injected_fault == FileFault::short_write && calls + 1 == failing_call;
  if (!shorten) return retry([&] { return ::write(file, data, bytes); });
  ++calls;
  return ::write(file, data, (bytes + 1) / 2);
}

std::string reason(int error) { return std::strerror(error); }

}  // namespace

FileBytes map_file(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  GRAFT_CHECK(file >= 0, path.string(), ": cannot be opened: ", reason(errno),
              "; check the path and its permissions");
  struct Closer {
    int file;
    ~Closer() { ::close(file); }
  } closer{file};
  struct stat status;
  GRAFT_CHECK(::fstat(file, &status) == 0, path.string(), ": cannot be examined: ", reason(errno));
  GRAFT_CHECK(S_ISREG(status.st_mode), path.string(), ": is ",
              S_ISDIR(status.st_mode) ? "a folder" : "not a regular file", "; name a weight file");
  const size_t size = static_cast<size_t>(status.st_size);
  if (size == 0) return {path.string(), {}, std::make_shared<int>(0)};
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
  GRAFT_CHECK(data != MAP_FAILED, path.string(), ": ", size,
              " bytes cannot be mapped: ", reason(errno));
  return {path.string(),
          {static_cast<uint8_t*>(data), size},
          std::shared_ptr<void>(data, [size](void* mapped) { ::munmap(mapped, size); })};
}

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path) {
  GRAFT_CHECK(path.has_filename(), path.string(), ": names no file; give a file name");
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);
  GRAFT_CHECK(!std::filesystem::is_directory(status), path.string(),
              ": is a folder; give the name of a file to write");
  GRAFT_CHECK(!std::filesystem::exists(status) || std::filesystem::is_regular_file(status),
              path.string(), ": is not a regular file and will not be replaced");
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  folder_ = retry([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  GRAFT_CHECK(folder_ >= 0, path.string(), ": its folder ", folder.string(),
              " cannot be opened: ", reason(errno), "; create the folder first");
  static std::atomic<int> serial{0};
  // A few tries: a name may be left over from a process that was killed.
  for (int attempt = 0; attempt < 100 && file_ < 0; ++attempt) {
    temporary_ = folder / ("." + path.filename().string() + "." + std::to_string(::getpid()) + "-" +
                           std::to_string(++serial) + ".tmp");
    file_ = retry(
        [&] { return ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
    if (file_ < 0 && errno != EEXIST) break;
  }
  if (file_ < 0) {
    const int error = errno;
    ::close(folder_);
    fail(path.string(), ": a new file cannot be created in ", folder.string(), ": ", reason(error),
         "; choose a folder you may write to");
  }
  created_ = true;
}

AtomicFile::~AtomicFile() {
  if (file_ >= 0) ::close(file_);
  if (created_) ::unlink(temporary_.c_str());
  if (folder_ >= 0) ::close(folder_);
}

void AtomicFile::fail_at(const char* step) const {
  const int error = errno;
  fail(path_.string(), ": ", step, " failed: ", reason(error),
       error == ENOSPC || error == EDQUOT ? "; free some space and try again" : "",
       "; nothing was changed");
}

void AtomicFile::write(const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = write_some(file_, next, bytes);
    if (written < 0) fail_at("writing");
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::write_at_start(const void* data, size_t bytes) {
  if (::lseek(file_, 0, SEEK_SET) != 0) fail_at("writing");
  write(data, bytes);
  if (::lseek(file_, 0, SEEK_END) < 0) fail_at("writing");
}

void AtomicFile::commit() {
  if (retry([&] { return ::fsync(file_); }) != 0) fail_at("writing to the disk (fsync)");
  const int closed = std::exchange(file_, -1);
  const bool injected = count_call();
  int result = ::close(closed);
  if (injected && injected_fault == FileFault::error) {
    result = -1;
    errno = injected_error;
  }
  if (result != 0 && errno != EINTR) fail_at("closing");
  if (retry([&] { return ::rename(temporary_.c_str(), path_.c_str()); }) != 0) fail_at("renaming");
  created_ = false;
  // Some file systems cannot sync a folder and say EINVAL: there is nothing more to be done there.
  if (retry([&] { return ::fsync(folder_); }) != 0 && errno != EINVAL && errno != ENOTSUP) {
    fail(path_.string(), ": is written and in place, but its folder could not be synced to the ",
         "disk: ", reason(errno), "; it may be lost if the machine fails now");
  }
}

void write_file_atomically(const std::filesystem::path& path, const std::string& contents) {
  AtomicFile file(path);
  file.write(contents.data(), contents.size());
  file.commit();
}

void fail_file_call(int64_t nth, int error, FileFault kind) {
  calls = 0;
  injected_error = error != 0 ? error : EIO;
  injected_fault = kind;
  failing_call = nth;
}
int64_t file_calls() { return calls; }

}  // namespace graft
