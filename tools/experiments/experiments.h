// Experiments: published or measured tables, run anew by one command each. Each is one file with
// one function that adds it to `graft experiment`; tools/experiment.cpp calls them all.
#pragma once

#include <CLI/CLI.hpp>

namespace graft {

void add_amazon(CLI::App& experiment);
void add_moons(CLI::App& experiment);
void add_solar(CLI::App& experiment);

}  // namespace graft
