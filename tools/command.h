// What every subcommand file of the `graft` program uses. A subcommand is one file with one
// function that adds it to the program; its callback does the work and reports failure by throwing:
//
//   void add_inspect(CLI::App& app) {
//     struct InspectFlags { std::string file; bool json = false; };
//     auto options = std::make_shared<InspectFlags>();
//     CLI::App* command = add_command(app, "inspect", "Show what a weight file holds",
//                                     "graft inspect model.pth\ngraft inspect model.safetensors
//                                     --json");
//     command->add_option("FILE", options->file, "weight file")->required();
//     add_json_option(*command, options->json);
//     command->callback([options] { run_inspect(*options); });
//   }
//
// Exit codes, mapped in main.cpp: 0 done; 1 the work failed (graft::Error, any std::exception);
// 2 wrong usage (UsageError, CLI11's own parse errors); Exit carries any other code.
// What people or machines asked for goes to stdout; progress, warnings and errors go to stderr.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/error.h"
#include "kernels/types.h"

namespace graft {

// The options contradict each other or cannot be understood: exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Ends the program with this code after everything was said already (130 after Ctrl-C).
struct Exit {
  int code;
};

// One function a subcommand, each in tools/NAME.cpp. main.cpp calls them all.
void add_finetune(CLI::App& app);
void add_adapt(CLI::App& app);
void add_plan(CLI::App& app);
void add_evaluate(CLI::App& app);
void add_verdict(CLI::App& app);
void add_rank(CLI::App& app);
void add_distance(CLI::App& app);
void add_forgetting(CLI::App& app);
void add_predict(CLI::App& app);
void add_extract(CLI::App& app);
void add_probe(CLI::App& app);
void add_convert(CLI::App& app);
void add_merge(CLI::App& app);
void add_experiment(CLI::App& app);
void add_inspect(CLI::App& app);
void add_info(CLI::App& app);

// A subcommand with its examples (one a line) under --help.
CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& description,
                      const std::string& examples);

// --json: one JSON object a line on stdout instead of text.
void add_json_option(CLI::App& command, bool& json);

// --threads N (0: every core this process may use), --device cpu|cuda|cuda:N and --precision
// f32|bf16, for commands that compute. apply() sets the thread count and throws when the device is
// not there.
struct ComputeOptions {
  int threads = 0;
  std::string device = "cpu";
  Dtype precision = Dtype::f32;
  void add_to(CLI::App& command);
  Device apply() const;
};

// For an option that names an architecture: an unknown name is wrong usage.
CLI::Validator known_architecture();

// Writes one compact line to stdout. Throws when stdout cannot be written (disk full).
void print_json(const nlohmann::ordered_json& value);
// Throws when stdout cannot be written; Exit, without a word, when its reader has gone.
void flush_stdout();

}  // namespace graft
