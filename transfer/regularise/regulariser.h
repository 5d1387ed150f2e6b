// A term beside a step's cross-entropy. One file each, and one line in the table of
// regularisers.cpp.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "layers/models/zoo.h"
#include "transfer/regularise/options.h"

namespace graft {

class Regulariser {
 public:
  virtual ~Regulariser() = default;
  // The weighted term, one f32 number on the model's device, after the model ran over these images.
  // Undefined where nothing that it concerns trains.
  virtual Tensor term(const Tensor& images) = 0;
  // Lets go of what the last forward pass left.
  virtual void clear() {}
  // Whether a step with it can be recorded as a CUDA graph.
  virtual bool recordable() const { return true; }
};

// The network that the run starts from, on the CPU: new head and adapted stem included.
using StartingModel = std::function<std::unique_ptr<ImageModel>()>;

std::unique_ptr<Regulariser> make_l2_sp(ImageModel& model, const RegulariseOptions& options,
                                        const StartingModel& start);
std::unique_ptr<Regulariser> make_delta(ImageModel& model, const RegulariseOptions& options,
                                        const StartingModel& start);
std::unique_ptr<Regulariser> make_bss(ImageModel& model, const RegulariseOptions& options,
                                      const StartingModel& start);

struct RegulariserRow {
  const char* name;
  float RegulariseOptions::*weight;  // 0: not used
  bool on_features;                  // says nothing while all but the head is frozen
  std::unique_ptr<Regulariser> (*make)(ImageModel&, const RegulariseOptions&, const StartingModel&);
};
const std::vector<RegulariserRow>& regularisers();

// The name of a module or tensor below the head.
bool in_head(const ImageModel& model, const std::string& name);

}  // namespace graft
