// The svmlight reader: what it reads, plain and compressed, and what it refuses with the place.
#include <doctest/doctest.h>
#include <fstream>
#include <zlib.h>

#include "engine/data/svmlight.h"
#include "engine/rng.h"
#include "tests/support/pictures.h"

namespace graft {
namespace {

using testing::TemporaryFolder;

std::filesystem::path written(const TemporaryFolder& folder, const std::string& content) {
  const std::filesystem::path path = folder / "rows.svmlight";
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

std::string error_of(const std::filesystem::path& path, int64_t columns = 4, int64_t first = 0) {
  try {
    read_svmlight(path, columns, first);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

constexpr const char* kRows =
    "# counts of words\n"
    "1 0:2 3:0.5\r\n"
    "\n"
    "-1 qid:7 1:-1e2   2:+4 # a comment: 5:5\n"
    "+1";
const std::vector<float> kDense{2, 0, 0, 0.5f, 0, -100, 4, 0, 0, 0, 0, 0};

TEST_CASE("rows are read: comments, blank lines, query ids, an empty row, either first column") {
  const TemporaryFolder folder;
  const SparseRows rows = read_svmlight(written(folder, kRows), 4);
  CHECK(rows.labels == std::vector<int64_t>{1, -1, 1});
  const std::vector<int64_t> all{0, 1, 2}, some{1, 1};
  CHECK(rows.dense(all).shape() == Shape{3, 4});
  CHECK(rows.dense(all).to_vector<float>() == kDense);
  CHECK(rows.dense(some).to_vector<float>() == std::vector<float>{0, -100, 4, 0, 0, -100, 4, 0});
  const std::vector<int64_t> outside{3};
  CHECK_THROWS_AS(rows.dense(outside), Error);
  CHECK(read_svmlight(written(folder, "2 1:7 4:8\n"), 4, 1)
            .dense(std::vector<int64_t>{0})
            .to_vector<float>() == std::vector<float>{7, 0, 0, 8});
}

TEST_CASE("a gzipped file is read as it is; one that is cut short is refused") {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "rows.svmlight.gz";
  gzFile file = gzopen(path.c_str(), "wb");
  REQUIRE(gzputs(file, kRows) > 0);
  REQUIRE(gzclose(file) == Z_OK);
  CHECK(read_svmlight(path, 4).dense(std::vector<int64_t>{0, 1, 2}).to_vector<float>() == kDense);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 9);
  CHECK(error_of(path).find("decompressed") != std::string::npos);
}

TEST_CASE("what is no row is refused with file and line") {
  const TemporaryFolder folder;
  const std::pair<const char*, const char*> cases[] = {
      {"1 0:1\n1 4:1\n", "line 2: column 4 is outside 0 to 3"},
      {"1 -1:1\n", "column -1 is outside"},
      {"1 0:1 0:2\n", "comes twice or out of order"},
      {"1 2:1 1:2\n", "out of order"},
      {"1 0\n", "expected COLUMN:VALUE, got \"0\""},
      {"1 x:1\n", "the number of a column"},
      {"1 0:\n", "a value"},
      {"1 0:1x\n", "a value, got \"1x\""},
      {"1 0:nan\n", "not finite"},
      {"1 0:1e99\n", "a value"},
      {"0.5 0:1\n", "a whole number as label"},
      {"99999999999999999999 0:1\n", "a whole number"},
      {"# nothing\n", "has no rows"},
      {"", "has no rows"},
  };
  for (const auto& [content, message] : cases) {
    const std::string error = error_of(written(folder, content));
    CAPTURE(error);
    CHECK(error.find(message) != std::string::npos);
    CHECK(error.find("rows.svmlight") != std::string::npos);
  }
  CHECK(error_of(written(folder, "1 0:1\n"), 4, 1).find("outside 1 to 4") != std::string::npos);
  CHECK(error_of(folder / "missing").find("no such file") != std::string::npos);
  CHECK(error_of(folder / ".").find("no such file") != std::string::npos);
}

TEST_CASE("damaged files are read or refused, never more than that") {
  const TemporaryFolder folder;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    RandomStream random({seed, 0, 0});
    std::string content = kRows;
    for (int i = 0; i < 4; ++i) {
      const auto at = static_cast<size_t>(random.uniform(0, static_cast<double>(content.size())));
      content[at] = static_cast<char>(random.uniform(0, 256));
    }
    const std::filesystem::path path = written(folder, content);
    try {
      const SparseRows rows = read_svmlight(path, 4);
      CHECK(rows.starts.back() == std::ssize(rows.value));
      for (const int64_t column : rows.column) CHECK((column >= 0 && column < 4));
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace graft
