// The runs of the solar experiment, on the elpv-dataset: photographs of solar cells by
// electroluminescence, each with the probability of a defect and the cell's type, mono or poly
// (Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in
// Electroluminescence Imagery", EU PVSEC 2018).
#pragma once

#include <map>
#include <optional>

#include "tools/experiments/results_folder.h"
#include "transfer/finetune.h"

namespace graft {

struct SolarSettings {
  std::filesystem::path data, weights, out;
  int64_t seeds = 5;
  std::vector<double> fractions{0.05, 0.1, 0.25, 0.5, 1};  // of the labels, ascending
  double few = 0.1;    // of the labels where one type of cells is the source of the other
  int64_t epochs = 5;  // passes over all labels; with fewer, more passes, until
  int64_t least_steps = 100;
  int64_t batch = 32;
  int64_t image_size = 0;  // 0: what the weights expect
  int64_t cells = 0;       // 0: all
  int64_t workers = 1;
  Device device;
  Dtype precision = Dtype::f32;
  static SolarSettings quick();
};

// The cells: classes "clean" and "defective" (probability over 0.5), groups "mono" and "poly".
// `most` of them, the same part of each class and type; 0: all. Throws with where to get them.
ImageDataset read_cells(const std::filesystem::path& folder, int64_t most);

// What a seed draws: a quarter of each class and type judges, and the rest in an order of which the
// first n train, so that more labels always include the fewer. `type`: "" for both.
struct CellSplit {
  std::vector<int64_t> train, test;  // indices into the cells
};
CellSplit draw_cells(const ImageDataset& cells, const std::string& type, uint64_t seed);
// The first part of the training cells, with at least one of each class.
std::vector<int64_t> first_labels(const ImageDataset& cells, const std::vector<int64_t>& train,
                                  double part);

enum class SolarArm : uint8_t { scratch, frozen, fine_tuning };

struct SolarJob {
  std::string name;  // of its files
  SolarArm arm = SolarArm::fine_tuning;
  uint64_t seed = 0;
  std::filesystem::path weights;
  std::vector<int64_t> train;
  std::map<std::string, std::vector<int64_t>> tests;  // by a name each
  bool keep = false;                                  // the weights are a source of other runs
};

struct SolarScore {
  double accuracy = 0, balanced_accuracy = 0;
};
struct SolarResult {
  int64_t labels = 0, steps = 0;
  std::map<std::string, SolarScore> scores;  // by the tests' names
};

// The result of a finished job from its file, else trains, judges and writes it; a run under way is
// continued. None: a stop was requested.
std::optional<SolarResult> run_job(const SolarSettings& settings, const ResultsFolder& results,
                                   const ImageDataset& cells, const SolarJob& job,
                                   Observer& observer);
// Where a job with `keep` leaves its weights.
std::filesystem::path weights_of(const SolarSettings& settings, const std::string& job);

// settings.out, see ResultsFolder.
ResultsFolder open_results(const SolarSettings& settings, bool overwrite);

}  // namespace graft
