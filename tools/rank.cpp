// `graft rank`: which pre-trained network suits a task.
#include "transfer/rank.h"

#include <iostream>

#include "tools/command.h"
#include "tools/kept_result.h"
#include "tools/numbers.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"
#include "tools/table.h"

namespace graft {
namespace {

struct RankFlags {
  RankOptions rank;
  std::string data, score = "probe";
  std::vector<std::string> candidates;
  bool json = false;
  ComputeOptions compute;
  KeptResult kept;
};

std::string joined(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

std::vector<std::string> score_names() {
  std::vector<std::string> names;
  for (const Score score : all_scores()) names.push_back(name_of(score));
  return names;
}

nlohmann::ordered_json to_json(const Ranking& ranking) {
  nlohmann::ordered_json json{{"score", name_of(ranking.score)},
                              {"images", ranking.images},
                              {"classes", ranking.classes},
                              {"tied", ranking.tied}};
  for (const Candidate& one : ranking.candidates) {
    nlohmann::ordered_json entry{{"weights", one.weights.string()},
                                 {"architecture", one.architecture},
                                 {"features", one.width}};
    for (const auto& [score, value] : one.scores)
      entry[name_of(score)] = json_of(interval_of(value));
    if (one.scores.count(ranking.score) > 0) entry["behind"] = json_of(one.behind);
    json["candidates"].push_back(entry);
  }
  return json;
}

std::string in_words(const Ranking& ranking) {
  const std::string best = ranking.candidates[0].weights.string();
  if (ranking.tied == 1) {
    return text("best: ", best, "; the interval of its lead over every other one is above 0");
  }
  return text("cannot tell: the first ", ranking.tied, " may be equal by ", name_of(ranking.score),
              " (the interval of the difference holds 0). Give more images, or fine-tune them and "
              "compare with graft verdict");
}

void print_text(const Ranking& ranking) {
  std::vector<std::string> titles{"<weights", "<architecture"};
  for (const Score score : all_scores()) titles.push_back(name_of(score));
  titles.push_back("behind the best");
  Table table(titles);
  for (size_t i = 0; i < ranking.candidates.size(); ++i) {
    const Candidate& one = ranking.candidates[i];
    std::vector<std::string> row{one.weights.string(), one.architecture};
    for (const Score score : all_scores()) {
      const auto found = one.scores.find(score);
      if (found == one.scores.end()) {
        row.push_back("no head");
        continue;
      }
      const Interval interval = interval_of(found->second);
      row.push_back(fixed(interval.value, 3) + " ±" + fixed(interval.high - interval.value, 3));
    }
    const bool compared = i > 0 && one.scores.count(ranking.score) > 0;
    row.push_back(compared ? text(fixed(one.behind.low, 3), " to ", fixed(one.behind.high, 3))
                           : "");
    table.row(row);
  }
  std::cout << ranking.images << " images, " << ranking.classes << " classes; ordered by "
            << name_of(ranking.score) << ", larger is better; ± is the 95 % interval\n\n"
            << table.text() << "\n"
            << in_words(ranking) << "\n";
}

void run_rank(const RankFlags& options) {
  RankOptions rank = options.rank;
  try {
    rank.score = score_of_name(options.score);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (options.candidates.size() < 2) {
    throw UsageError("rank: --candidates expects at least 2 weight files");
  }
  rank.data = options.data;
  rank.candidates.assign(options.candidates.begin(), options.candidates.end());
  rank.device = options.compute.apply();
  rank.precision = options.compute.precision;
  options.kept.begin();
  catch_stop_signals();
  ProgressBar bar;
  const Ranking ranking =
      rank_candidates(rank, [&](int64_t candidate, int64_t done, int64_t total) {
        bar.show(static_cast<double>(done) / static_cast<double>(total),
                 options.candidates[static_cast<size_t>(candidate)],
                 text(done, " of ", total, " images"));
        return stop_signal() == 0;
      });
  bar.clear();
  if (ranking.candidates.empty()) throw Exit{stopped_exit_code()};
  if (options.json) {
    print_json(to_json(ranking));
  } else {
    print_text(ranking);
  }
  std::vector<MeasuredInput> inputs{{"data", rank.data, rank.split}};
  for (const std::string& weights : options.candidates)
    inputs.push_back({"candidates", weights, ""});
  options.kept.write(to_json(ranking), inputs);
}

}  // namespace

void add_rank(CLI::App& app) {
  auto options = std::make_shared<RankFlags>();
  CLI::App* command = add_command(
      app, "rank", "Order pre-trained weights by how well they suit your images",
      "graft rank --data photos --candidates lite0.safetensors resnet18.safetensors\n"
      "graft rank --data photos --candidates a.safetensors b.safetensors --score h-score --json\n"
      "graft rank --data photos --candidates a.safetensors b.safetensors --out ranking");
  command
      ->add_option("--data", options->data,
                   "folder with one sub-folder a class, or a CSV manifest (path,label[,split])")
      ->required();
  command->add_option("--split", options->rank.split,
                      "only the manifest's rows (or the sub-folder) of this split");
  command->add_option("--candidates", options->candidates, "weights from graft convert or finetune")
      ->required();
  command->add_option("--score", options->score, "what orders them: " + joined(score_names()))
      ->capture_default_str();
  command
      ->add_option("--images", options->rank.most,
                   "at most so many; of more, an even draw of every class")
      ->check(CLI::Range(10, 1000000))
      ->capture_default_str();
  command->add_option("--seed", options->rank.seed, "draws the images, folds and groups")
      ->capture_default_str();
  command->add_option("--batch", options->rank.reading.batch, "images a forward pass")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--workers", options->rank.reading.workers, "threads that decode images")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  options->kept.add_to(*command);
  add_json_option(*command, options->json);
  options->compute.add_to(*command);
  command->callback([options] { run_rank(*options); });
}

}  // namespace graft
