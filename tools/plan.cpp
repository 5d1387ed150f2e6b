// `graft plan`: presets as files to edit, and the difference between two plans; and the table that
// `graft finetune --dry-run` prints.
#include "transfer/plan.h"

#include <filesystem>
#include <iostream>
#include <memory>

#include "tools/command.h"
#include "tools/plan_view.h"
#include "tools/progress.h"
#include "tools/table.h"
#include "transfer/presets.h"
#include "transfer/run_folder.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

// 12,345,678
std::string grouped(int64_t number) {
  std::string digits = std::to_string(number);
  for (size_t at = digits.size(); at > 3;) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}
std::string megabytes(int64_t bytes) { return fixed(static_cast<double>(bytes) / 1e6, 1); }

Json row_json(const LayerRow& row) {
  Json json{{"layer", row.name},
            {"parameters", row.parameters},
            {"trainable", row.trainable},
            {"learning_rate", row.learning_rate},
            {"weight_decay", row.weight_decay},
            {"bytes", row.bytes}};
  if (!row.batch_norm.empty()) json["batch_norm"] = row.batch_norm;
  if (row.adapter > 0) json["adapter"] = row.adapter;
  if (row.dropout) json["dropout"] = *row.dropout;
  return json;
}

void print_layers(const std::vector<LayerRow>& layers) {
  bool dropout = false;
  for (const LayerRow& row : layers) dropout = dropout || row.dropout;
  std::vector<std::string> titles{
      "<layer", "<trains", "learning rate", "weight decay", "<batch norm", "parameters", "MB"};
  if (dropout) titles.push_back("dropout");
  Table table(titles);
  LayerRow sum;
  const auto add = [&](const LayerRow& row) {
    const bool trains = row.trainable > 0, partly = trains && row.trainable < row.parameters;
    std::vector<std::string> cells{row.name,
                                   partly   ? (row.trainable == row.adapter ? "adapter" : "partly")
                                   : trains ? "yes"
                                            : "frozen",
                                   trains ? text(row.learning_rate) : "",
                                   trains ? text(row.weight_decay) : "",
                                   row.batch_norm,
                                   grouped(row.parameters),
                                   megabytes(row.bytes)};
    if (dropout) cells.push_back(row.dropout ? text(*row.dropout) : "");
    table.row(std::move(cells));
  };
  for (const LayerRow& row : block_rows(layers)) {
    add(row);
    sum.parameters += row.parameters;
    sum.trainable += row.trainable;
    sum.bytes += row.bytes;
  }
  std::vector<std::string> cells(titles.size());
  cells[0] = "all";
  cells[1] = text(grouped(sum.trainable), " train");
  cells[5] = grouped(sum.parameters);
  cells[6] = megabytes(sum.bytes);
  table.row(std::move(cells));
  std::cout << table.text(2);
}

// A plan file, or the plan of a run folder.
Plan plan_at(const std::string& where) {
  const std::filesystem::path path = where;
  return read_plan(std::filesystem::is_directory(path) ? RunFolder{path}.plan() : path, {});
}

struct PlanFlags {
  std::string preset, weights, architecture;
  std::vector<std::string> diff;
  int64_t epochs = FinetuneOptions().epochs;
  float learning_rate = FinetuneOptions().learning_rate;
  bool json = false;
};

void run_diff(const PlanFlags& options) {
  const std::vector<std::string> lines =
      differences(plan_at(options.diff[0]), plan_at(options.diff[1]));
  if (options.json) {
    print_json({{"same", lines.empty()}, {"differences", lines}});
    return;
  }
  if (lines.empty()) std::cout << "the plans are the same\n";
  for (const std::string& line : lines) std::cout << line << "\n";
}

void run_list(const PlanFlags& options) {
  Table table({"<preset", "<what it does"});
  for (const Preset& preset : presets()) {
    if (options.json) print_json({{"preset", preset.name}, {"summary", preset.summary}});
    table.row({preset.name, preset.summary});
  }
  if (!options.json) std::cout << table.text();
}

void run_preset(const PlanFlags& options) {
  if (options.weights.empty() == options.architecture.empty()) {
    throw UsageError("plan: give the model, with --weights FILE or --arch NAME");
  }
  FinetuneOptions finetune;
  finetune.preset = options.preset;
  finetune.epochs = options.epochs;
  finetune.learning_rate = options.learning_rate;
  LoadedModel loaded;
  if (options.weights.empty()) {
    loaded.model = make_blank_model(options.architecture, {});
    loaded.card.architecture = options.architecture;
  } else {
    loaded = load_model(options.weights);
  }
  std::cout << to_json(plan_of(finetune, loaded.card.architecture, *loaded.model));
}

void run_plan(const PlanFlags& options) {
  if (!options.diff.empty()) {
    run_diff(options);
  } else if (options.preset.empty()) {
    run_list(options);
  } else {
    run_preset(options);
  }
}

}  // namespace

void print_planned(const PlannedRun& planned, bool json) {
  const std::vector<Phase>& phases = planned.plan.phases;
  if (json) {
    Json out = Json::parse(to_json(planned.plan));
    out["train_images"] = planned.train_images;
    out["validation_images"] = planned.validation_images;
    out["steps_per_epoch"] = planned.steps_per_epoch;
    out["objective"] = planned.objective;
    for (size_t i = 0; i < phases.size(); ++i) {
      Json rows = Json::array();
      for (const LayerRow& row : planned.layers[i]) rows.push_back(row_json(row));
      out["phases"][i]["table"] = std::move(rows);
      if (!planned.cache[i].empty()) out["phases"][i]["cache"] = planned.cache[i];
    }
    print_json(out);
    return;
  }
  for (size_t i = 0; i < phases.size(); ++i) {
    const Phase& phase = phases[i];
    std::cout << "phase " << i + 1 << " of " << phases.size() << ", \"" << phase.name
              << "\": " << phase.epochs << (phase.epochs == 1 ? " epoch" : " epochs") << " of "
              << planned.steps_per_epoch << " steps, learning rate " << phase.learning_rate << ", "
              << to_name(phase.schedule.kind) << ", batch norm " << to_name(phase.batch_norm)
              << "\n";
    print_layers(planned.layers[i]);
    if (!planned.cache[i].empty()) std::cout << "  " << planned.cache[i] << "\n";
  }
  std::cout << "objective: " << planned.objective << "\n";
  std::cout << "MB: weights, and gradients and optimizer state of what trains; activations come on "
               "top\n";
}

void add_plan(CLI::App& app) {
  auto options = std::make_shared<PlanFlags>();
  CLI::App* command = add_command(
      app, "plan", "List the presets, write one as a file to edit, or compare two plans",
      "graft plan\n"
      "graft plan --preset lp-ft --weights lite0.safetensors --epochs 6 > plan.json\n"
      "graft finetune --data photos --weights lite0.safetensors --plan plan.json --dry-run\n"
      "graft plan --diff run1 run2");
  command->add_option("--preset", options->preset, "the preset to write as JSON");
  command->add_option("--weights", options->weights, "the model it is for");
  command->add_option("--arch", options->architecture, "the same, by name")
      ->check(known_architecture());
  command->add_option("--epochs", options->epochs, "of all phases together")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--lr", options->learning_rate, "peak learning rate")->capture_default_str();
  command->add_option("--diff", options->diff, "two run folders or plan files")->expected(2);
  add_json_option(*command, options->json);
  command->callback([options] { run_plan(*options); });
}

}  // namespace graft
