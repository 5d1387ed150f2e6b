// Files as the operating system gives them: mapped for reading, replaced atomically for writing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace graft {

// The contents of a file and what keeps them alive.
struct FileBytes {
  std::string name;  // for messages
  std::span<uint8_t> bytes;
  std::shared_ptr<void> owner;
};

// Maps a regular file, copy-on-write: a change made through the mapping stays in this process. The
// file must not be shortened while it is mapped (the system then ends the process with SIGBUS);
// a file replaced by rename, which is how graft writes, stays whole for those who mapped it before.
FileBytes map_file(const std::filesystem::path& path);

// A file that appears under its name complete or not at all. Destroyed before commit(), it leaves
// nothing behind; whatever was there under the name stays.
class AtomicFile {
 public:
  // Creates a temporary file in the same folder, with the permissions a new file would have.
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  // Overwrites what was written first; what follows stays.
  void write_at_start(const void* data, size_t bytes);
  // Data to the disk, rename, folder to the disk. When the last step alone fails the complete new
  // file is in place, and the error says so.
  void commit();

 private:
  [[noreturn]] void fail_at(const char* step) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int folder_ = -1;
  int file_ = -1;
  bool created_ = false;
};

// Test hook: the system call of AtomicFile with this number (counting from 1 at the call) goes
// wrong in the given way; 0 turns it off.
enum class FileFault { error, interrupted, short_write };
void fail_file_call(int64_t nth, int error = 0, FileFault kind = FileFault::error);
// Number of such calls since the hook was last set.
int64_t file_calls();

}  // namespace graft
