#include "layers/transformer.h"

#include "layers/init.h"

namespace graft {
namespace {

// Where nothing is dropped no stream of the step is used up.
RngKey key_for(float dropped) { return dropped > 0 ? next_key() : RngKey{}; }

// residual + dropout(x)
Tensor add_branch(const Tensor& residual, const Tensor& x, float dropped) {
  return add(residual, dropped > 0 ? dropout(x, dropped, true, next_key()) : x);
}

}  // namespace

TransformerBlock::TransformerBlock(const TransformerOptions& options, std::optional<RngKey> key)
    : norm_first_(options.norm_first),
      self_attn_(options.width, options.heads),
      linear1_(options.width, options.hidden),
      linear2_(options.hidden, options.width),
      norm1_(options.width, options.epsilon),
      norm2_(options.width, options.epsilon) {
  set_dropout(options.dropout);
  child("self_attn", self_attn_);
  child("linear1", linear1_);
  child("linear2", linear2_);
  child("norm1", norm1_);
  child("norm2", norm2_);
  if (key) initialise_as_pytorch(*key);
}

Tensor TransformerBlock::mlp(const Tensor& x, float dropped) {
  // One op where the layers are what it knows: what stands beside a layer or looks at it wants the
  // layer by itself.
  const auto plain = [](const Linear& layer) { return !layer.adapted() && !layer.tapped(); };
  if (dropped == 0 && plain(linear1_) && plain(linear2_)) {
    return feed_forward(x, linear1_.weight, linear1_.bias, linear2_.weight, linear2_.bias);
  }
  const Tensor hidden = linear1_(x);
  return linear2_(bias_gelu_dropout(hidden, Tensor(), dropped, true, key_for(dropped)));
}

Tensor TransformerBlock::forward(const Tensor& x, const Sequences& sequences) {
  const float dropped = training() ? dropout_ : 0.0f;
  if (norm_first_) {
    const Tensor seen = add_branch(x, self_attn_(norm1_(x), sequences), dropped);
    return add_branch(seen, mlp(norm2_(seen), dropped), dropped);
  }
  const Tensor attended = self_attn_(x, sequences);
  const Tensor seen = norm1_.of_sum(x, attended, dropped, key_for(dropped));
  const Tensor thought = mlp(seen, dropped);
  return norm2_.of_sum(seen, thought, dropped, key_for(dropped));
}

void TransformerBlock::initialise_as_pytorch(RngKey key) {
  self_attn_.initialise_as_pytorch(derive(key, 0));
  linear1_.initialise_as_pytorch(derive(key, 1));
  linear2_.initialise_as_pytorch(derive(key, 2));
}

void TransformerBlock::set_dropout(float probability) {
  GRAFT_CHECK(probability >= 0 && probability < 1,
              "TransformerBlock: expected a dropout in [0, 1), got ", probability);
  dropout_ = probability;
}

}  // namespace graft
