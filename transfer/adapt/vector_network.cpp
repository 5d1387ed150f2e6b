#include "transfer/adapt/vector_network.h"

#include "layers/init.h"
#include "layers/models/families.h"

namespace graft {
namespace {

class VectorNetwork : public HeadedModel {
 public:
  VectorNetwork(int64_t inputs, const std::vector<int64_t>& hidden, int64_t classes,
                HiddenUnits units)
      : HeadedModel({.classes = classes, .in_channels = 1}, hidden.back(), 0.0f, "fc", "fc1") {
    int64_t width = inputs;
    for (size_t i = 0; i < hidden.size(); ++i) {
      layers_.push_back(std::make_shared<Linear>(width, hidden[i]));
      const std::string name = text("fc", i + 1);
      child(name, std::static_pointer_cast<Module>(layers_.back()));
      Linear* layer = layers_.back().get();
      add_stage(name, {layer}, [layer, units](const Tensor& x) {
        const Tensor y = (*layer)(x);
        return units == HiddenUnits::relu ? relu(y) : sigmoid(y);
      });
      width = hidden[i];
    }
    child("fc", head_);
  }

  void initialise(RngKey key) override {
    for (size_t i = 0; i < layers_.size(); ++i) layers_[i]->initialise_as_pytorch(derive(key, i));
    initialise_head(derive(key, layers_.size()));
  }

 private:
  std::vector<std::shared_ptr<Linear>> layers_;
};

}  // namespace

std::unique_ptr<ImageModel> make_vector_network(int64_t inputs, const std::vector<int64_t>& hidden,
                                                int64_t classes, RngKey key, HiddenUnits units) {
  GRAFT_CHECK(!hidden.empty(), "vector network: expected at least one hidden layer");
  auto network = std::make_unique<VectorNetwork>(inputs, hidden, classes, units);
  network->initialise(key);
  return network;
}

}  // namespace graft
