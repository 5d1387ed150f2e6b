// `graft distance`: how far apart two folders of images lie for a network.
#include <iostream>

#include "tools/command.h"
#include "tools/kept_result.h"
#include "tools/numbers.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"
#include "tools/table.h"
#include "transfer/domain_gap.h"

namespace graft {
namespace {

struct DistanceFlags {
  DomainGapOptions gap;
  std::string source, target, weights;
  bool json = false;
  ComputeOptions compute;
  KeptResult kept;
};

std::string name_of(GapSize size) {
  static const char* const names[] = {"none", "small", "large", "unclear"};
  return names[static_cast<size_t>(size)];
}

std::string in_words(const DomainGap& gap) {
  switch (size_of(gap)) {
    case GapSize::none:
      return "no gap is seen: the domains differ no more than halves of one of them. A model of "
             "the "
             "source should do as well on the target, as far as the images go";
    case GapSize::small:
      return "there is a gap, and it is small: most images could be of either domain. Try the "
             "source "
             "model on some labelled target images first";
    case GapSize::large:
      return "the gap is large: a line tells the domains apart. A model of the source will lose on "
             "the target; fine-tune on labelled target images, or adapt";
    case GapSize::unclear:
      break;
  }
  return "unclear: the intervals are too wide to tell a small gap from a large one. Give more "
         "images";
}

nlohmann::ordered_json to_json(const DomainGap& gap) {
  return {{"source_images", gap.source_images},
          {"target_images", gap.target_images},
          {"features", gap.width},
          {"a_distance", json_of(gap.a_distance)},
          {"a_distance_within", gap.a_distance_within},
          {"mmd", json_of(gap.mmd)},
          {"mmd_p", gap.mmd_p},
          {"coral", json_of(gap.coral)},
          {"gap", name_of(size_of(gap))}};
}

void print_text(const DomainGap& gap) {
  Table table({"<distance", "value", "95 % interval", "<what it means"});
  const auto row = [&](const std::string& name, const Interval& value, int digits,
                       const std::string& meaning) {
    table.row({name, fixed(value.value, digits),
               text(fixed(value.low, digits), " to ", fixed(value.high, digits)), meaning});
  };
  row("proxy A-distance", gap.a_distance, 3,
      text("0 alike, 2 separable by a line; halves of one domain: ",
           fixed(gap.a_distance_within, 3)));
  row("MMD squared", gap.mmd, 5,
      text("0 alike; as large by chance with probability ", fixed(gap.mmd_p, 3)));
  row("CORAL", gap.coral, 6, "0 where the features vary together alike");
  std::cout << gap.source_images << " source and " << gap.target_images << " target images, "
            << gap.width << " features\n\n"
            << table.text() << "\n"
            << in_words(gap) << "\n";
}

void run_distance(const DistanceFlags& options) {
  DomainGapOptions gap = options.gap;
  gap.source = options.source;
  gap.target = options.target;
  gap.weights = options.weights;
  gap.device = options.compute.apply();
  gap.precision = options.compute.precision;
  options.kept.begin();
  catch_stop_signals();
  ProgressBar bar;
  const DomainGap result = measure_domain_gap(gap, [&](int64_t done, int64_t total) {
    bar.show(static_cast<double>(done) / static_cast<double>(total), "features",
             text(done, " of ", total, " images"));
    return stop_signal() == 0;
  });
  bar.clear();
  if (result.source_images == 0) throw Exit{stopped_exit_code()};
  if (options.json) {
    print_json(to_json(result));
  } else {
    print_text(result);
  }
  options.kept.write(to_json(result), {{"source", options.source, ""},
                                       {"target", options.target, ""},
                                       {"weights", options.weights, ""}});
}

}  // namespace

void add_distance(CLI::App& app) {
  auto options = std::make_shared<DistanceFlags>();
  CLI::App* command = add_command(
      app, "distance", "Measure how far apart two folders of images are for a network",
      "graft distance --source studio --target phone --weights lite0.safetensors\n"
      "graft distance --source studio --target phone --weights run/best.safetensors --json\n"
      "graft distance --source studio --target phone --weights lite0.safetensors --out gap");
  const char* folder = "folder with one sub-folder a class, or a CSV manifest; labels are not used";
  command->add_option("--source", options->source, folder)->required();
  command->add_option("--target", options->target, folder)->required();
  command->add_option("--weights", options->weights, "weights from graft convert or finetune")
      ->required();
  command
      ->add_option("--images", options->gap.most, "of each folder at most so many, drawn at random")
      ->check(CLI::Range(20, 100000))
      ->capture_default_str();
  command->add_option("--seed", options->gap.seed, "draws images, halves and groups")
      ->capture_default_str();
  command->add_option("--batch", options->gap.reading.batch, "images a forward pass")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--workers", options->gap.reading.workers, "threads that decode images")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  options->kept.add_to(*command);
  add_json_option(*command, options->json);
  options->compute.add_to(*command);
  command->callback([options] { run_distance(*options); });
}

}  // namespace graft
