// Every op of engine/ops.h has rows and error rows in the op table: a textual check, because each
// test file is a program of its own.
#include <algorithm>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

std::string without_comments(const std::string& source) {
  return std::regex_replace(source, std::regex("//[^\n]*"), "");
}

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return without_comments(out.str());
}

// Functions at namespace scope that return a Tensor.
std::set<std::string> declared_ops(const std::string& header) {
  std::set<std::string> names;
  const std::regex declaration("(^|\n)Tensor ([a-z0-9_]+)\\(");
  for (std::sregex_iterator at(header.begin(), header.end(), declaration), end; at != end; ++at) {
    names.insert((*at)[2]);
  }
  return names;
}

// Names that are the first argument of a function whose own name holds `kind`.
std::set<std::string> tabled_ops(const std::string& tests, const std::string& kind) {
  std::set<std::string> names;
  const std::regex row("\\b[a-z_]*" + kind + "[a-z_]*\\(\\s*\"([a-z0-9_]+)\"");
  for (std::sregex_iterator at(tests.begin(), tests.end(), row), end; at != end; ++at) {
    names.insert((*at)[1]);
  }
  return names;
}

std::vector<std::string> missing(const std::set<std::string>& wanted,
                                 const std::set<std::string>& found) {
  std::vector<std::string> names;
  std::set_difference(wanted.begin(), wanted.end(), found.begin(), found.end(),
                      std::back_inserter(names));
  return names;
}

std::string all_op_tests() {
  std::string text;
  for (const auto& entry : std::filesystem::directory_iterator(GRAFT_SOURCE_DIR "/tests")) {
    const std::string name = entry.path().filename();
    if (name.starts_with("ops_") && name.ends_with("_test.cpp")) text += read(entry.path());
  }
  return text;
}

}  // namespace

TEST_CASE("every op has rows and error rows") {
  const std::set<std::string> ops = declared_ops(read(GRAFT_SOURCE_DIR "/engine/ops.h"));
  CHECK(ops.size() >= 50);
  const std::string tests = all_op_tests();
  for (const std::string& op : missing(ops, tabled_ops(tests, "row"))) {
    FAIL_CHECK(op << " is declared in engine/ops.h but has no op_row in tests/ops_*_test.cpp");
  }
  // A wrapper such as unary_rows() makes the error rows too.
  std::set<std::string> with_errors = tabled_ops(tests, "error");
  with_errors.merge(tabled_ops(tests, "_rows"));
  for (const std::string& op : missing(ops, with_errors)) {
    FAIL_CHECK(op << " is declared in engine/ops.h but has no op_error in tests/ops_*_test.cpp");
  }
}

TEST_CASE("the check notices an op without rows") {
  const std::string header = without_comments(
      "Tensor known(const Tensor& x);\n"
      "Tensor forgotten(const Tensor& x);\n"
      "// Tensor commented(const Tensor& x);\n"
      "struct Options { Tensor member(int); };\n");
  const std::string tests = without_comments(
      "op_row(\"known\", {});  // op_row(\"forgotten\", {});\n"
      "op_row(\n    \"wrapped\", {});\nunary_rows(\"many\", {});\n");
  const std::set<std::string> ops = declared_ops(header);
  CHECK(ops == std::set<std::string>{"known", "forgotten"});
  CHECK(tabled_ops(tests, "row") == std::set<std::string>{"known", "wrapped", "many"});
  CHECK(missing(ops, tabled_ops(tests, "row")) == std::vector<std::string>{"forgotten"});
  CHECK(declared_ops(read(GRAFT_SOURCE_DIR "/engine/ops.h")).count("grad_reverse") == 1);
}
