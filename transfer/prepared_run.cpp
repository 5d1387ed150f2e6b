#include "transfer/prepared_run.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "layers/dropout.h"
#include "transfer/adapters.h"

namespace graft {
namespace {

std::string list_of_classes(const ImageDataset& data) {
  const std::vector<int64_t> counts = data.class_counts();
  std::string list;
  for (size_t c = 0; c < counts.size() && c < 10; ++c) {
    list += text(c ? ", " : "", data.class_names[c], " ", counts[c]);
  }
  return counts.size() > 10 ? list + ", ..." : list;
}

// The weights' own preprocessing, at another size where one is asked for.
Preprocessing scaled(Preprocessing preprocessing, int64_t image_size) {
  if (image_size == 0) return preprocessing;
  preprocessing.resize = static_cast<int64_t>(
      std::lround(static_cast<double>(preprocessing.resize) * static_cast<double>(image_size) /
                  static_cast<double>(preprocessing.crop)));
  preprocessing.crop = image_size;
  return preprocessing;
}

void make_model_for(PreparedRun& run, Observer& observer) {
  const FinetuneOptions& options = run.options;
  const int64_t classes = static_cast<int64_t>(run.data.all.class_names.size());
  const RngKey key{options.seed, 0, 0};
  if (options.weights.empty()) {
    run.model = make_model(options.architecture, {classes, options.channels, options.dropout}, key);
    run.card.architecture = options.architecture;
    run.card.preprocessing = preprocessing_of(options.architecture);
  } else {
    AdaptedModel adapted =
        load_for_task(options.weights, classes, options.channels, options.dropout, key);
    for (const std::string& change : adapted.changes) observer.message(change);
    run.model = std::move(adapted.model);
    run.card = std::move(adapted.card);
  }
  set_drop_path(*run.model, run.card.architecture, options);
  run.card.classes = classes;
  run.card.in_channels = options.channels;
  run.card.class_names = run.data.all.class_names;
  run.card.preprocessing = scaled(run.card.preprocessing, options.image_size);
}

}  // namespace

void set_drop_path(ImageModel& model, const std::string& architecture,
                   const FinetuneOptions& options) {
  if (options.drop_path < 0) return;
  std::vector<DropsOut*> blocks;
  float last = 0;
  for (const auto& [name, module] : model.named_modules()) {
    auto* drops = dynamic_cast<DropsOut*>(module);
    if (drops == nullptr || !drops->drops_paths()) continue;
    blocks.push_back(drops);
    last = std::max(last, drops->dropout_probability());
  }
  GRAFT_CHECK(last > 0, "finetune: ", architecture,
              " has no drop path; leave --drop-path out (--dropout acts before the head)");
  for (DropsOut* block : blocks) {
    block->set_dropout(options.drop_path * (block->dropout_probability() / last));
  }
}

void describe(const TaskData& data, Observer& observer) {
  observer.message(text(data.all.samples.size(), " images in ", data.all.class_names.size(),
                        " classes (", list_of_classes(data.all), ")"));
  observer.message(text(data.split.train.size(), " to train, ", data.split.held_out.size(),
                        " to validate", data.left_out ? text(", ", data.left_out, " left out") : "",
                        " (", data.split_source, ")"));
  if (data.split.held_out.empty()) {
    observer.message(
        "nothing is held out: no epoch can be judged, and the last one counts as the "
        "best");
  }
  if (!data.skipped.empty()) {
    observer.message(text(data.skipped.size(), " files are not images and are skipped, such as ",
                          data.skipped.front()));
  }
}

Start start_of(const PreparedRun& run) {
  Start start;
  start.model = [&run] {
    const FinetuneOptions& options = run.options;
    return std::move(load_for_task(options.weights, run.card.classes, options.channels,
                                   options.dropout, {options.seed, 0, 0})
                         .model);
  };
  start.source = [&run] { return std::move(load_model(run.options.weights).model); };
  return start;
}

PreparedRun prepare(const FinetuneOptions& options, Observer& observer) {
  check_options(options);
  PreparedRun run;
  run.options = options;
  run.data = read_task_data(options.data, options.validation, options.split_seed);
  positive_class(run.data.all.class_names, options.positive_class);  // throws before anything else
  describe(run.data, observer);
  make_model_for(run, observer);
  attach_adapters(options, *run.model, observer);
  run.plan = plan_of(options, run.card.architecture, *run.model);
  return run;
}

}  // namespace graft
