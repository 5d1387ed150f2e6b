// The rules of the house, read from the source files: who may include whom, what lies where, how
// long a file is, how it is formatted, and what the linker may merge. Every check is first shown a
// violation, so that a check that finds nothing is known to look.
#include <algorithm>
#include <array>
#include <cstdio>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

using Files = std::map<std::string, std::string>;  // path from the top level -> contents
using Findings = std::vector<std::string>;

constexpr int kMostLines = 600;
constexpr const char* kClangFormatVersion = "14";  // others lay out some lines differently

const fs::path kRoot = GRAFT_SOURCE_DIR;

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

bool ends_with_any(const std::string& path, const std::vector<std::string>& endings) {
  for (const auto& ending : endings) {
    if (path.size() >= ending.size() && path.ends_with(ending)) return true;
  }
  return false;
}
bool is_source(const std::string& path) {
  return ends_with_any(path, {".h", ".cpp", ".cu", ".cuh"});
}
bool is_script(const std::string& path, const std::string& contents) {
  return contents.starts_with("#!") || ends_with_any(path, {".py", ".cmake", ".in", ".txt"});
}

std::string room_of(const std::string& path) { return path.substr(0, path.find('/')); }

// Everything that is in the repository: build folders and hidden ones are left out.
bool is_ours(const fs::path& entry) {
  const std::string name = entry.filename().string();
  return name == ".ci" || !(name.starts_with(".") || name == "build" ||
                            name.starts_with("build-") || name == "__pycache__");
}

const Files& repository() {
  static const Files files = [] {
    Files found;
    for (auto it = fs::recursive_directory_iterator(kRoot);
         it != fs::recursive_directory_iterator(); ++it) {
      if (!is_ours(it->path())) {
        if (it->is_directory()) it.disable_recursion_pending();
        continue;
      }
      if (!it->is_regular_file()) continue;
      const std::string path = fs::relative(it->path(), kRoot).string();
      if (it->file_size() > (1u << 20)) continue;  // data
      found[path] = read(it->path());
    }
    return found;
  }();
  return files;
}

template <class Visit>
void for_lines(const std::string& contents, const Visit& visit) {
  std::istringstream in(contents);
  int number = 0;
  for (std::string line; std::getline(in, line);) visit(++number, line);
}

std::string at(const std::string& path, int line) { return path + ":" + std::to_string(line); }

// --- the checks

// kernels <- engine <- layers <- transfer <- tools, tests, benchmarks
Findings wrong_includes(const Files& files) {
  static const std::map<std::string, int> rank{{"kernels", 0},   {"engine", 1}, {"layers", 2},
                                               {"transfer", 3},  {"tools", 4},  {"tests", 4},
                                               {"benchmarks", 4}};
  static const std::regex include(R"re(^\s*#\s*include\s*"([^"]+)")re");
  Findings findings;
  for (const auto& [path, contents] : files) {
    const auto own = rank.find(room_of(path));
    if (!is_source(path) || own == rank.end()) continue;
    for_lines(contents, [&](int number, const std::string& line) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) return;
      const std::string wanted = match[1], room = room_of(wanted);
      const auto other = rank.find(room);
      if (other == rank.end() || wanted.find('/') == std::string::npos) {
        findings.push_back(at(path, number) + ": write \"" + wanted + "\" from the top level");
      } else if (other->second > own->second ||
                 (other->second == own->second && room != own->first)) {
        findings.push_back(at(path, number) + ": " + own->first + "/ may not include " + room +
                           "/");
      }
    });
  }
  return findings;
}

Findings cuda_outside_its_folder(const Files& files) {
  static const std::regex include(
      R"re(^\s*#\s*include\s*[<"](cuda|cublas|cudnn|cooperative_groups|cub/|nccl|nvtx))re");
  // The wrappers around CUDA. Besides the kernels, only what tests the simulated device needs them.
  static const std::regex wrapper(R"re(^\s*#\s*include\s*"kernels/(cuda/.*\.cuh|simt/))re");
  static const std::vector<std::string> users{"kernels/cuda/",      "kernels/simt/",
                                              "tests/kernel_bugs/", "tests/kernel_bugs_test.cpp",
                                              "tests/simt/",        "tests/simt_test.cpp"};
  static const std::string launch = std::string("<<") + "<";
  Findings findings;
  for (const auto& [path, contents] : files) {
    if (!is_source(path)) continue;
    const bool user =
        std::any_of(users.begin(), users.end(),
                    [&, &file = path](const auto& prefix) { return file.starts_with(prefix); });
    for_lines(contents, [&](int number, const std::string& line) {
      if ((!path.starts_with("kernels/cuda/") && std::regex_search(line, include)) ||
          (!user && std::regex_search(line, wrapper))) {
        findings.push_back(at(path, number) + ": CUDA headers stay in kernels/cuda/");
      }
      if (path != "kernels/cuda/launch.cuh" && line.find(launch) != std::string::npos) {
        findings.push_back(at(path, number) + ": start kernels through launch()");
      }
    });
  }
  return findings;
}

Findings strange_top_level_entries(const std::set<std::string>& names) {
  static const std::set<std::string> allowed{"CMakeLists.txt", "LICENSE",   "README.md", "kernels",
                                             "engine",         "layers",    "transfer",  "tools",
                                             "tests",          "benchmarks"};
  Findings findings;
  for (const auto& name : names) {
    if (!allowed.contains(name)) findings.push_back(name + ": has no place at the top level");
  }
  for (const auto& name : allowed) {
    if (!names.contains(name)) findings.push_back(name + ": is missing at the top level");
  }
  return findings;
}

Findings folders_without_readme(const Files& files) {
  std::set<std::string> folders;
  for (const auto& [path, contents] : files) {
    if (path.starts_with(".")) continue;
    for (fs::path folder = fs::path(path).parent_path(); !folder.empty();
         folder = folder.parent_path()) {
      folders.insert(folder.string());
    }
  }
  Findings findings;
  for (const auto& folder : folders) {
    if (!files.contains(folder + "/README.md")) findings.push_back(folder + "/: has no README.md");
  }
  return findings;
}

Findings long_files(const Files& files) {
  Findings findings;
  for (const auto& [path, contents] : files) {
    if (!is_source(path) && !is_script(path, contents)) continue;
    if (path.starts_with("tests/data/")) continue;
    const auto lines = std::count(contents.begin(), contents.end(), '\n');
    if (lines >= kMostLines) {
      findings.push_back(path + ": has " + std::to_string(lines) + " lines, at most " +
                         std::to_string(kMostLines - 1) + "; split it by idea");
    }
  }
  return findings;
}

// Registries are reached through their ordinary clients, and nothing depends on where the tree
// lies.
Findings hosts_and_machine_paths(const Files& files) {
  // Taken apart, so that this file does not find itself.
  static const std::regex host(
      "pypi\\."
      "org|pythonhosted\\."
      "org|deb\\.debian\\."
      "org|archive\\.ubuntu\\."
      "com|"
      "registry\\.npmjs\\."
      "org|proxy\\.golang\\."
      "org|conda\\.anaconda\\."
      "org");
  static const std::regex machine(
      "(^|[^A-Za-z0-9_.}~-])/(home|work|opt|root|mnt|Users)"
      "/");
  Findings findings;
  for (const auto& [path, contents] : files) {
    if (!is_source(path) && !is_script(path, contents) && !path.ends_with(".md")) continue;
    for_lines(contents, [&](int number, const std::string& line) {
      if (std::regex_search(line, host)) {
        findings.push_back(at(path, number) + ": names a package registry's host");
      }
      if (std::regex_search(line, machine)) {
        findings.push_back(at(path, number) + ": names a folder of one machine");
      }
    });
  }
  return findings;
}

// `nm -C` of the AVX-512 objects. An inline function there that does not carry the instruction set
// in its name may be the copy that the linker keeps for every processor (see kernels/isa.h).
Findings mergeable_functions(const std::string& nm_output) {
  static const std::regex weak(R"re(^[0-9a-f]+ W (.*)$)re");
  Findings findings;
  for_lines(nm_output, [&](int, const std::string& line) {
    std::smatch match;
    if (!std::regex_match(line, match, weak)) return;
    const std::string name = match[1];
    if (name.find("avx512") == std::string::npos) findings.push_back(name);
  });
  return findings;
}

struct Output {
  int status;
  std::string text;
};
Output run(const std::string& command) {
  Output output{-1, ""};
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer;
  while (const size_t n = fread(buffer.data(), 1, buffer.size(), pipe)) {
    output.text.append(buffer.data(), n);
  }
  output.status = pclose(pipe);
  return output;
}

void check_none(const Findings& findings) {
  for (const auto& finding : findings) FAIL_CHECK(finding);
}

}  // namespace

TEST_CASE("the repository is read") {
  CHECK(repository().contains("tests/structure_test.cpp"));
  CHECK(repository().contains("kernels/kernels.h"));
}

TEST_CASE("rooms include only themselves and the rooms below") {
  CHECK(wrong_includes({{"kernels/a.cpp", "#include \"engine/tensor.h\"\n"}}).size() == 1);
  CHECK(wrong_includes({{"engine/a.cpp", "\n # include \"layers/module.h\"\n"}}).size() == 1);
  CHECK(wrong_includes({{"tests/a.cpp", "#include \"tools/command.h\"\n"}}).size() == 1);
  CHECK(wrong_includes({{"layers/a.cpp", "#include \"module.h\"\n"}}).size() == 1);
  CHECK(wrong_includes({{"tools/a.cpp", "#include \"tools/b.h\"\n#include \"kernels/c.h\"\n"}})
            .empty());
  check_none(wrong_includes(repository()));
}

TEST_CASE("CUDA stays in kernels/cuda, and launches in one place") {
  CHECK(cuda_outside_its_folder({{"engine/a.h", "#include <cuda_runtime.h>\n"}}).size() == 1);
  const std::string wrapped = "#include \"kernels/cuda/launch.cuh\"\n";
  CHECK(cuda_outside_its_folder({{"tests/a_test.cpp", wrapped}}).size() == 1);
  CHECK(cuda_outside_its_folder({{"tests/kernel_bugs/a.cu", wrapped}}).empty());
  const std::string launch = std::string("kernel<<") + "<1, 1>>>();\n";
  CHECK(cuda_outside_its_folder({{"kernels/cuda/a.cu", launch}}).size() == 1);
  CHECK(cuda_outside_its_folder({{"kernels/cuda/launch.cuh", launch}}).empty());
  check_none(cuda_outside_its_folder(repository()));
}

TEST_CASE("the top level holds the rooms and nothing else") {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(kRoot)) {
    if (is_ours(entry.path()) && entry.path().filename() != ".ci") {
      names.insert(entry.path().filename().string());
    }
  }
  std::set<std::string> seeded = names;
  seeded.insert("utils");
  seeded.erase("kernels");
  CHECK(strange_top_level_entries(seeded).size() == strange_top_level_entries(names).size() + 2);
  check_none(strange_top_level_entries(names));
}

TEST_CASE("every folder says what lives in it") {
  CHECK(folders_without_readme({{"kernels/README.md", ""}, {"kernels/cpu/a.cpp", ""}}).size() == 1);
  check_none(folders_without_readme(repository()));
}

TEST_CASE("no file is longer than one sitting") {
  CHECK(long_files({{"engine/a.cpp", std::string(kMostLines, '\n')}}).size() == 1);
  CHECK(long_files({{"engine/a.cpp", std::string(kMostLines - 1, '\n')}}).empty());
  check_none(long_files(repository()));
}

TEST_CASE("no registry host and no machine's folders") {
  CHECK(hosts_and_machine_paths({{"a.md", std::string("see pypi") + ".org\n"}}).size() == 1);
  CHECK(hosts_and_machine_paths({{"a.cpp", std::string("\"/ho") + "me/me/x\"\n"}}).size() == 1);
  // A folder of that name inside the tree is no machine's.
  CHECK(hosts_and_machine_paths({{"a.md", std::string("see tools/ho") + "me/x\n"}}).empty());
  check_none(hosts_and_machine_paths(repository()));
}

TEST_CASE("the example of README.md is the program that install_test builds and runs") {
  const std::string& program = repository().at("tests/consumer/main.cpp");
  const std::string code = program.substr(program.find("#include"));
  REQUIRE(code.size() > 500);
  CHECK(repository().at("README.md").find("```cpp\n" + code + "```") != std::string::npos);
}

TEST_CASE("the sources are formatted") {
  const Output version = run("clang-format --version");
  if (version.text.find(std::string("version ") + kClangFormatVersion + ".") == std::string::npos) {
    std::printf("SKIPPED: the format of the sources (clang-format %s is not installed)\n",
                kClangFormatVersion);
    return;
  }
  const std::string command = "cd '" + kRoot.string() + "' && clang-format --dry-run -Werror ";
  const Output seeded = run("cd '" + kRoot.string() +
                            "' && echo 'int  a ;' | clang-format --dry-run -Werror "
                            "--assume-filename=engine/a.cpp");
  CHECK(seeded.status != 0);

  std::string list;
  for (const auto& [path, contents] : repository()) {
    if (is_source(path)) list += " '" + path + "'";
  }
  const Output output = run(command + list);
  std::set<std::string> unformatted;
  for_lines(output.text, [&](int, const std::string& line) {
    if (line.find(": error: ") != std::string::npos) {
      unformatted.insert(line.substr(0, line.find(':')));
    }
  });
  for (const auto& path : unformatted) FAIL_CHECK(path << ": run clang-format -i on it");
  CHECK((output.status == 0) == unformatted.empty());
}

TEST_CASE("the AVX-512 objects hold no function that the linker could give to every processor") {
  CHECK(mergeable_functions("0000000000000000 W std::vector<float>::push_back(float&&)\n").size() ==
        1);
  CHECK(mergeable_functions("0000000000000010 W graft::cpu::avx512::f(int)\n").empty());
  CHECK(mergeable_functions("0000000000000010 T graft::cpu::f(int)\n").empty());
#ifdef __SANITIZE_ADDRESS__
  std::printf("SKIPPED: weak symbols of the AVX-512 objects (sanitizers add their own)\n");
#else
  const fs::path objects = fs::path(GRAFT_BINARY_DIR) / "kernels/CMakeFiles/kernels_avx512.dir";
  const Output output = run("find '" + objects.string() + "' -name '*.o' -exec nm -C {} +");
  REQUIRE(output.status == 0);
  REQUIRE_MESSAGE(output.text.find("avx512::unary(") != std::string::npos,
                  "no AVX-512 objects found in " << objects);
  for (const auto& name : mergeable_functions(output.text)) {
    FAIL_CHECK("weak in the AVX-512 objects: " << name);
  }
#endif
}
