#include "layers/models/families.h"

namespace graft {

HeadedModel::HeadedModel(const ModelOptions& options, int64_t feature_width, float own_dropout,
                         std::string head_name, std::string stem_name)
    : head_(feature_width, options.classes),
      head_name_(std::move(head_name)),
      stem_name_(std::move(stem_name)) {
  HeadedModel::set_dropout(options.dropout < 0 ? own_dropout : options.dropout);
}

void HeadedModel::set_dropout(float probability) {
  GRAFT_CHECK(probability >= 0 && probability < 1, "model: expected a dropout in [0, 1), got ",
              probability);
  dropout_ = probability;
}

Tensor HeadedModel::features_after(size_t done, const Tensor& x) {
  const Tensor pooled = run_stages(x, done, stages().size());
  // Of a frozen head it is off.
  if (!head_.training() || dropout_ == 0) return pooled;
  return dropout(pooled, dropout_, true, next_key());
}

Tensor HeadedModel::head(const Tensor& features) {
  return cast(head_(cast(features, precision())), Dtype::f32);
}

void HeadedModel::replace_head(int64_t classes, RngKey key) {
  head_.resize(classes);
  initialise_head(key);
}

Tensor global_average(const Tensor& x) {
  return reshape(adaptive_avg_pool2d(x, 1, 1), {x.dim(0), x.dim(3)});
}

}  // namespace graft
