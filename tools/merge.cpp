// graft merge: a delta file of graft finetune --lora and the weights it was trained on, made one
// model again.
#include <iostream>
#include <memory>

#include "layers/models/delta.h"
#include "tools/command.h"

namespace graft {
namespace {

struct MergeFlags {
  std::string weights, delta, out;
  bool force = false, json = false;
};

void run_merge(const MergeFlags& options) {
  const MergedDelta merged =
      merge_delta(options.weights, options.delta, options.out, options.force);
  const DeltaCard& card = merged.card;
  if (options.json) {
    print_json({{"file", options.out},
                {"architecture", card.model.architecture},
                {"classes", card.model.class_names},
                {"rank", card.lora.rank},
                {"alpha", card.lora.alpha},
                {"adapted_layers", merged.adapters},
                {"tensors_in_full", merged.replaced},
                {"base_sha256", card.base_sha256},
                {"sha256", merged.output_sha256}});
    return;
  }
  std::cout << options.out << "\n  architecture  " << card.model.architecture << ", "
            << card.model.classes << " classes\n  adapters      rank " << card.lora.rank
            << ", merged into " << merged.adapters << " layers; " << merged.replaced
            << " tensors replaced in full\n  base          " << options.weights << " sha256 "
            << card.base_sha256 << "\n  written       sha256 " << merged.output_sha256 << "\n";
}

}  // namespace

void add_merge(CLI::App& app) {
  auto options = std::make_shared<MergeFlags>();
  CLI::App* command =
      add_command(app, "merge", "Put what finetune --lora learnt into the weights it started from",
                  "graft merge --weights lite0.safetensors --delta run/lora.safetensors "
                  "mine.safetensors");
  command->add_option("--weights", options->weights, "the weights that the run started from")
      ->required();
  command->add_option("--delta", options->delta, "lora.safetensors of the run")->required();
  command->add_option("OUT", options->out, "the file to write, ending in .safetensors")->required();
  command->add_flag("--force", options->force, "replace OUT if it is there");
  add_json_option(*command, options->json);
  command->callback([options] {
    if (std::filesystem::path(options->out).extension() != ".safetensors") {
      throw UsageError(text("merge: OUT must end in .safetensors, got ", options->out));
    }
    run_merge(*options);
  });
}

}  // namespace graft
