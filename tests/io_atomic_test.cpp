// Atomic writing under injected faults, and SHA-256 against published digests.
#include <cerrno>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/io/file.h"
#include "engine/io/weights.h"
#include "tests/support/weight_bytes.h"

using namespace graft;
using namespace graft::test;
namespace fs = std::filesystem;

namespace {

// An empty folder, gone at the end.
struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "graft_atomic_test_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  std::vector<std::string> names() const {
    std::vector<std::string> list;
    for (const auto& entry : fs::directory_iterator(path)) {
      list.push_back(entry.path().filename().string());
    }
    return list;
  }
};

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void check_contains(const std::string& message, const std::string& part) {
  CHECK_MESSAGE(message.find(part) != std::string::npos,
                "message: " << message << "\nwanted: " << part);
}

struct FaultsOff {
  ~FaultsOff() { fail_file_call(0); }
};

}  // namespace

TEST_CASE("whichever system call fails, the file is the old one or the new one, and nothing else") {
  const FaultsOff off;
  const Folder folder;
  const fs::path path = folder.path / "weights.safetensors";
  const std::map<std::string, Tensor> old_tensors = {{"t", Tensor::of<float>({1, 2, 3})}};
  const std::map<std::string, Tensor> new_tensors = {{"t", Tensor::of<float>({4, 5})},
                                                     {"u", Tensor::of<int64_t>({6})}};
  write_safetensors(path, new_tensors);
  const std::string new_bytes = contents(path);
  write_safetensors(path, old_tensors);
  const std::string old_bytes = contents(path);

  fail_file_call(0);
  write_safetensors(path, old_tensors);
  const int64_t calls_without_faults = file_calls();
  CHECK(calls_without_faults >= 8);

  for (const int error : {EIO, ENOSPC, EROFS, EACCES}) {
    int64_t nth = 1;
    for (;; ++nth) {
      REQUIRE(nth < 100);
      fail_file_call(nth, error);
      const std::string message = error_of([&] { write_safetensors(path, new_tensors); });
      fail_file_call(0);
      CAPTURE(nth);
      CHECK(folder.names() == std::vector<std::string>{"weights.safetensors"});
      if (message.empty()) break;
      check_contains(message, path.string());
      check_contains(message, std::strerror(error));
      const bool in_place = message.find("is written and in place") != std::string::npos;
      CHECK(contents(path) == (in_place ? new_bytes : old_bytes));
      if (error == ENOSPC && message.find("writing failed") != std::string::npos) {
        check_contains(message, "free some space");
      }
      write_safetensors(path, old_tensors);
    }
    CHECK(nth > calls_without_faults);
    CHECK(contents(path) == new_bytes);
    write_safetensors(path, old_tensors);
  }
}

TEST_CASE("a first write that fails leaves an empty folder") {
  const FaultsOff off;
  const Folder folder;
  for (int64_t nth = 1; nth <= 5; ++nth) {
    fail_file_call(nth, ENOSPC);
    CHECK_THROWS_AS(write_file_atomically(folder.path / "state.json", "{}"), Error);
    CHECK(folder.names().empty());
  }
}

TEST_CASE("interruptions and short writes are carried on from") {
  const FaultsOff off;
  const Folder folder;
  const fs::path path = folder.path / "state.json";
  const std::string text(10'000, 'x');
  for (const FileFault fault : {FileFault::interrupted, FileFault::short_write}) {
    for (int64_t nth = 1; nth <= 8; ++nth) {
      fail_file_call(nth, 0, fault);
      write_file_atomically(path, text + std::to_string(nth));
      CHECK(contents(path) == text + std::to_string(nth));
      CHECK(folder.names().size() == 1);
    }
  }
}

TEST_CASE("a folder that cannot be synced is no error where the file system has no such thing") {
  const FaultsOff off;
  const Folder folder;
  fail_file_call(0);
  write_file_atomically(folder.path / "a", "1");
  const int64_t last = file_calls();
  fail_file_call(last, EINVAL);
  write_file_atomically(folder.path / "a", "2");
  fail_file_call(last, EIO);
  check_contains(error_of([&] { write_file_atomically(folder.path / "a", "3"); }),
                 "is written and in place, but its folder could not be synced");
  CHECK(contents(folder.path / "a") == "3");
}

TEST_CASE("targets that cannot be written are named with the remedy") {
  const Folder folder;
  const auto write = [](const fs::path& path) {
    return error_of([&] { write_file_atomically(path, "x"); });
  };
  check_contains(write(folder.path / "missing" / "file"), "create the folder first");
  check_contains(write(folder.path), "is a folder; give the name of a file");
  check_contains(write(folder.path / ""), "names no file");
  check_contains(write("/dev/null"), "is not a regular file and will not be replaced");
  CHECK(fs::is_character_file("/dev/null"));
  if (::geteuid() == 0) {
    MESSAGE("running as root, to whom every folder is writable: read-only folder not tried");
  } else {
    fs::permissions(folder.path, fs::perms::owner_read | fs::perms::owner_exec);
    check_contains(write(folder.path / "file"), "choose a folder you may write to");
    fs::permissions(folder.path, fs::perms::owner_all);
  }
  CHECK(folder.names().empty());
}

TEST_CASE("a new file has the permissions of the umask") {
  const Folder folder;
  const mode_t before = ::umask(0027);
  write_file_atomically(folder.path / "a", "1");
  ::umask(before);
  struct stat status;
  REQUIRE(::stat((folder.path / "a").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0640);
}

TEST_CASE("a name without a folder is written in the current one") {
  const Folder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path);
  write_file_atomically("plain", "1");
  fs::current_path(before);
  CHECK(contents(folder.path / "plain") == "1");
}

// FIPS 180-4 examples, and lengths around the padding's two cases from Python's hashlib.
TEST_CASE("SHA-256 of known texts") {
  const auto digest = [](const std::string& text) {
    return sha256_hex_of(text.data(), text.size());
  };
  CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(digest(std::string(1'000'000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  CHECK(digest(std::string(55, 'a')) ==
        "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  CHECK(digest(std::string(56, 'a')) ==
        "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
  CHECK(digest(std::string(63, 'a')) ==
        "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34");
  CHECK(digest(std::string(64, 'a')) ==
        "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
  CHECK(digest(std::string(65, 'a')) ==
        "635361c48bb9eab14198e76ea8ab7f1a41685d6ad62aa9146d301d4f17eb0ae0");
  CHECK(digest(std::string(119, 'a')) ==
        "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb");
  CHECK(digest(std::string(120, 'a')) ==
        "2f3d335432c70b580af0e8e1b3674a7c020d683aa5f73aaaedfdc55af904c21c");
  CHECK(digest(std::string(128, 'a')) ==
        "6836cf13bac400e9105071cd6af47084dfacad4e5e302c94bfed24e013afb73e");
  const Folder folder;
  write_file_atomically(folder.path / "empty", "");
  CHECK(sha256_hex(folder.path / "empty") == digest(""));
  write_file_atomically(folder.path / "abc", "abc");
  CHECK(sha256_hex(folder.path / "abc") == digest("abc"));
  check_contains(error_of([&] { sha256_hex(folder.path / "no"); }), "cannot be opened");
}
