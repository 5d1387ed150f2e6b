// The `graft` program: parses, dispatches to a subcommand, and turns errors into exit codes.
#include <algorithm>
#include <csignal>
#include <iostream>
#include <vector>

#include "engine/near_names.h"
#include "kernels/threads.h"
#include "tools/command.h"
#include "transfer/version.h"

namespace graft {
namespace {

// What the user most likely meant by the first word that nobody understood.
std::string suggestion(CLI::App& app, int argc, char** argv) {
  if (argc < 2) return "";
  std::vector<std::string> commands;
  CLI::App* chosen = nullptr;
  for (CLI::App* command : app.get_subcommands({})) {
    commands.push_back(command->get_name());
    if (command->get_name() == argv[1]) chosen = command;
  }
  if (!chosen) {
    if (argv[1][0] == '-') return "";
    const std::vector<std::string> meant = near_names(argv[1], commands, 1);
    return text("\"", argv[1], "\" is not a command",
                meant.empty() ? "" : "; did you mean \"graft " + meant.front() + "\"?");
  }
  std::vector<std::string> flags;
  for (const CLI::Option* option : chosen->get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  for (int i = 2; i < argc; ++i) {
    std::string word = argv[i];
    word = word.substr(0, word.find('='));
    if (word.rfind("--", 0) != 0 || std::count(flags.begin(), flags.end(), word) > 0) continue;
    const std::string meant = did_you_mean(word, flags);
    if (!meant.empty()) return word + " is not an option" + meant;
  }
  return "";
}

std::string help_hint(const CLI::App& app) {
  std::string name = "graft";
  for (const CLI::App* command : app.get_subcommands()) name += " " + command->get_name();
  return "see " + name + " --help";
}

int run(int argc, char** argv) {
  CLI::App app{"graft: fine-tune pre-trained image models on your own pictures"};
  app.name("graft");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("graft ") + version());
  app.footer(
      "Examples:\n"
      "  graft convert efficientnet_lite0.pth lite0.safetensors\n"
      "  graft finetune --data photos --weights lite0.safetensors --out run\n"
      "  graft evaluate --weights run/best.safetensors --data test-photos\n"
      "  graft predict --weights run/best.safetensors picture.jpg");
  add_finetune(app);
  add_adapt(app);
  add_plan(app);
  add_evaluate(app);
  add_verdict(app);
  add_rank(app);
  add_distance(app);
  add_forgetting(app);
  add_predict(app);
  add_extract(app);
  add_probe(app);
  add_convert(app);
  add_merge(app);
  add_inspect(app);
  add_experiment(app);
  add_info(app);
  try {
    app.parse(argc, argv);
    flush_stdout();
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    const std::string meant = suggestion(app, argc, argv);
    std::cerr << "graft: " << (meant.empty() ? error.what() : meant) << "\n";
    std::cerr << help_hint(app) << "\n";
    return 2;
  } catch (const Exit& exit) {
    std::cout.flush();
    return exit.code;
  } catch (const UsageError& error) {
    std::cerr << "graft: " << error.what() << "\n" << help_hint(app) << "\n";
    return 2;
  } catch (const std::bad_alloc&) {
    std::cerr << "graft: out of memory; use a smaller --batch or image size\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "graft: " << error.what() << "\n";
    return 1;
  }
}

}  // namespace
}  // namespace graft

int main(int argc, char** argv) {
  graft::cpu::sleep_when_idle(argv);
  std::signal(SIGPIPE, SIG_IGN);  // a run that is being trained outlives its reader
  return graft::run(argc, argv);
}
