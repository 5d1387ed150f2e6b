#include "tools/find_lr.h"

#include <iostream>

#include "engine/io/weights.h"
#include "tools/chart.h"
#include "tools/command.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

// Three digits are more than such a test knows.
std::string rate_text(double rate) {
  std::ostringstream out;
  out.precision(2);
  out << rate;
  return out.str();
}

}  // namespace

void print_learning_rates(const LrFinderResult& result, const std::filesystem::path& folder,
                          bool json) {
  GRAFT_CHECK(!result.rates.empty(),
              "find-lr: the loss was not finite at the first step; are the "
              "weights and the images right?");
  Chart chart{"Learning-rate range test",
              "learning rate",
              "training loss",
              result.rates,
              result.smoothed,
              result.losses};
  Json out;
  const auto mark = [&](const char* name, const std::optional<double>& rate) {
    out[name] = rate ? Json(*rate) : Json();
    if (rate) chart.marks.emplace_back(text(name, " ", rate_text(*rate)), *rate);
  };
  mark("valley", result.valley);
  mark("steepest", result.steepest);
  mark("tenth_of_minimum", result.tenth_of_minimum);
  out["diverged"] = result.diverged;
  out["rates"] = result.rates;
  out["losses"] = result.losses;
  out["smoothed"] = result.smoothed;
  if (!folder.empty()) {
    std::filesystem::create_directories(folder);
    write_file_atomically(folder / "lr_finder.json", out.dump(2) + "\n");
    write_file_atomically(folder / "lr_finder.svg", to_svg(chart));
  }
  if (json) {
    print_json(out);
    return;
  }
  std::cout << to_text(chart);
  if (chart.marks.empty()) std::cout << "the loss never falls: no rate can be suggested\n";
  for (const auto& [name, rate] : chart.marks) std::cout << name << "\n";
  if (result.valley) std::cout << "try: --lr " << rate_text(*result.valley) << "\n";
  if (!folder.empty()) std::cout << "picture: " << (folder / "lr_finder.svg").string() << "\n";
}

}  // namespace graft
