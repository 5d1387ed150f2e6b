// Proof that the simulated device notices mistakes: kernels with one mistake each, and their
// correct twins, of which it must say nothing. Every run happens in a child process, because some
// end it.
//
//   kernel_bugs_test_simt -ns -tc="print*"     what each run reports in this build, and README's
//   table
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <doctest/doctest.h>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/scratch.h"
#include "kernels/simt/memory.h"
#include "kernels/simt/runtime.h"
#include "tests/kernel_bugs/bugs.h"
#include "tests/kernel_bugs/harness.h"

namespace {

using namespace graft;
using namespace graft::bugs;

struct Bug {
  const char* name;
  const char* what;
  unsigned noticed_by;
  Outcome (*run)(bool broken);
};
const Bug kBugs[] = {
#define GRAFT_ROW(name, what, noticed_by) {#name, what, noticed_by, &name},
    GRAFT_KERNEL_BUGS(GRAFT_ROW)
#undef GRAFT_ROW
};
constexpr const char* kInstruments[] = {"rules", "orders", "reference", "sanitizer", "detector"};

// The instruments that this build has.
unsigned at_hand() {
#ifdef __SANITIZE_ADDRESS__
  return sanitizer;
#else
  return simt::detector_present() ? detector : rules | orders | reference;
#endif
}

struct Report {
  unsigned noticed_by = 0;
  std::string text;
};

bool agree(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::abs(a - b) <= 1e-5f * std::max(1.0f, std::abs(b));
}
bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Runs a bug or its twin in all orders of threads, blocks and streams.
Report run_here(const Bug& bug, bool broken) {
  Report report;
  Floats first;
  cuda::scratch("test", size_t{1} << 16);  // lives on, but is no leak
  const auto note = [&](Instrument instrument, const std::string& what) {
    if ((report.noticed_by & instrument) == 0) report.text += what + "; ";
    report.noticed_by |= instrument;
  };
  for (const uint64_t seed : {0, 1, 2, 3, 4, 5}) {
    simt::reset_device();
    simt::set_order(static_cast<simt::Order>(std::min<uint64_t>(seed, 2)), seed);
    const size_t blocks_before = simt::device_live_blocks();
    std::string error;
    try {
      const Outcome outcome = bug.run(broken);
      if (seed == 0) {
        first = outcome.got;
        const bool right = std::equal(first.begin(), first.end(), outcome.wanted.begin(),
                                      outcome.wanted.end(), agree);
        if (!right) note(reference, "wrong result");
      } else if (!same_bits(outcome.got, first)) {
        note(orders, "another result in order " + std::to_string(seed));
      }
      cudaDeviceSynchronize();
    } catch (const Error& e) {
      error = e.what();
    }
    if (!simt::last_fault().empty()) error = simt::last_fault();
    if (error.empty() && simt::device_live_blocks() != blocks_before) error = "leak";
    if (error.empty()) continue;
    note(error.find("detector: ") != std::string::npos ? detector : rules, error);
    break;
  }
  return report;
}

Report run(const Bug& bug, bool broken) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGABRT}) std::signal(signal, SIG_DFL);
    alarm(60);
    dup2(ends[1], 2);
    const Report report = run_here(bug, broken);
    dprintf(2, "noticed_by %u %s", report.noticed_by, report.text.c_str());
    _exit(0);
  }
  close(ends[1]);
  std::string output;
  char part[4096];
  for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) {
    output.append(part, static_cast<size_t>(n));
  }
  close(ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status)) {
    REQUIRE(WTERMSIG(status) != SIGALRM);
    return {rules, strsignal(WTERMSIG(status))};
  }
  if (WEXITSTATUS(status) != 0) {
    const bool known = output.find("AddressSanitizer") != std::string::npos ||
                       output.find("runtime error: ") != std::string::npos;
    REQUIRE_MESSAGE(known, output);
    return {sanitizer, output};
  }
  Report report;
  std::istringstream in(output);
  std::string word;
  in >> word >> report.noticed_by;
  REQUIRE_MESSAGE(word == "noticed_by", output);
  std::getline(in, report.text);
  return report;
}

std::string names(unsigned instruments) {
  std::string list;
  for (unsigned i = 0; i < std::size(kInstruments); ++i) {
    if (instruments >> i & 1) list += std::string(list.empty() ? "" : " | ") + kInstruments[i];
  }
  return list.empty() ? "none" : list;
}

std::string table() {
  std::string rows = "| mistake | what is wrong |";
  for (const char* instrument : kInstruments) rows += std::string(" ") + instrument + " |";
  rows += "\n|---|---|:-:|:-:|:-:|:-:|:-:|\n";
  for (const Bug& bug : kBugs) {
    rows += std::string("| `") + bug.name + "` | " + bug.what + " |";
    for (unsigned i = 0; i < std::size(kInstruments); ++i) {
      rows += bug.noticed_by >> i & 1 ? " x |" : " |";
    }
    rows += "\n";
  }
  return rows;
}

}  // namespace

TEST_CASE("the list is long enough, and every mistake is noticed by something") {
  CHECK(std::size(kBugs) >= 40);
  std::set<std::string> seen;
  for (const Bug& bug : kBugs) {
    INFO(bug.name);
    CHECK(bug.noticed_by != 0);
    CHECK(seen.insert(bug.name).second);
  }
}

TEST_CASE("the table of README.md is the list") {
  std::ifstream file(GRAFT_SOURCE_DIR "/tests/kernel_bugs/README.md");
  std::ostringstream contents;
  contents << file.rdbuf();
  CHECK(contents.str().find("\n" + table()) != std::string::npos);
}

TEST_CASE("every mistake is noticed by the instruments that the list names, and by no other") {
  for (const Bug& bug : kBugs) {
    const Report report = run(bug, true);
    INFO(bug.name << ": " << report.text);
    CHECK(names(report.noticed_by & at_hand()) == names(bug.noticed_by & at_hand()));
    // Where this build's own instrument has not ended the run before, the rules hold in it as well.
    const bool ruled = (bug.noticed_by & rules) != 0 && (bug.noticed_by & at_hand()) == 0;
    if (ruled) CHECK((report.noticed_by & rules) != 0);
  }
}

TEST_CASE("the correct twins are clean") {
  for (const Bug& bug : kBugs) {
    const Report report = run(bug, false);
    INFO(bug.name << ": " << report.text);
    CHECK(names(report.noticed_by) == "none");
  }
}

TEST_CASE("print what this build reports" * doctest::skip()) {
  for (const Bug& bug : kBugs) {
    const Report report = run(bug, true);
    std::printf("%-32s %-24s %s\n", bug.name, names(report.noticed_by).c_str(),
                report.text.substr(0, 400).c_str());
  }
  std::printf("\n%s", table().c_str());
}
