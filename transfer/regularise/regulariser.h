// A term beside a step's cross-entropy. One file each, and one line in the table of
// regularisers.cpp.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "layers/models/zoo.h"
#include "transfer/batches.h"
#include "transfer/regularise/options.h"

namespace graft {

class Regulariser {
 public:
  virtual ~Regulariser() = default;
  // The weighted term, one f32 number on the model's device, after the model ran over these images.
  // `target`: what target() made of their labels, on that device. Undefined where nothing that it
  // concerns trains.
  virtual Tensor term(const Tensor& images, const Tensor& target) = 0;
  // What the term wants of a batch's labels, i64 (n) or class probabilities f32 (n, classes), on
  // the host as they are. It is worked out before the part of a step that can be recorded;
  // undefined: nothing.
  virtual Tensor target(const Tensor&) const { return Tensor(); }
  // Lets go of what the last forward pass left.
  virtual void clear() {}

  // What trains beside the model, and is no part of it.
  virtual std::vector<NamedTensor> parameters() { return {}; }
  // Whether it has yet to see the training images, before the first step.
  virtual bool wants_measuring() const { return false; }
  // Shows it each of them, as validation images are shown and in random order, while the model is
  // the starting one. `keep_going` is called after every batch with the number of images done; when
  // it returns false, so does this. Leaves the model in inference mode.
  virtual bool measure(Batches&, const std::function<bool(int64_t)>&) { return true; }
  // What it has learnt and measured, on the CPU, by names that no other uses: nothing before it was
  // measured. And the way back, where the state has it; throws Error on what does not fit.
  virtual std::map<std::string, Tensor> state() const { return {}; }
  virtual void load(const std::map<std::string, Tensor>&) {}
};

// What the run starts from, on the CPU; each call reads the weights' file.
struct Start {
  // With the new head and an adapted stem: the network before the first step.
  std::function<std::unique_ptr<ImageModel>()> model;
  // As the file has it, with its own head. Throws Error where the file has none.
  std::function<std::unique_ptr<ImageModel>()> source;
};

std::unique_ptr<Regulariser> make_l2_sp(ImageModel& model, const RegulariseOptions& options,
                                        const Start& start);
std::unique_ptr<Regulariser> make_delta(ImageModel& model, const RegulariseOptions& options,
                                        const Start& start);
std::unique_ptr<Regulariser> make_bss(ImageModel& model, const RegulariseOptions& options,
                                      const Start& start);
std::unique_ptr<Regulariser> make_co_tuning(ImageModel& model, const RegulariseOptions& options,
                                            const Start& start);

struct RegulariserRow {
  const char* name;
  float RegulariseOptions::*weight;  // 0: not used
  bool on_features;                  // says nothing while all but the head is frozen
  std::unique_ptr<Regulariser> (*make)(ImageModel&, const RegulariseOptions&, const Start&);
};
const std::vector<RegulariserRow>& regularisers();

// The name of a module or tensor below the head.
bool in_head(const ImageModel& model, const std::string& name);

}  // namespace graft
