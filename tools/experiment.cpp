// graft experiment: tables of the READMEs and of papers, run anew.
#include "tools/command.h"
#include "tools/experiments/experiments.h"

namespace graft {

void add_experiment(CLI::App& app) {
  CLI::App* command = add_command(
      app, "experiment", "Run an experiment and print its tables",
      "graft experiment moons --out moons\n"
      "graft experiment amazon --data REVIEWS --out amazon\n"
      "graft experiment solar --data ELPV --weights lite0.safetensors --out solar --quick\n"
      "graft experiment solar --help");
  command->require_subcommand(1);
  add_amazon(*command);
  add_moons(*command);
  add_solar(*command);
}

}  // namespace graft
