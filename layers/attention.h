// Multi-head self-attention (Vaswani et al., "Attention is all you need", 2017, section 3.2.2):
//
//   out_proj(softmax(q k^T / sqrt(depth)) v),  q = q_proj(x), k = k_proj(x), v = v_proj(x)
//
// in each of `heads` heads, head h having columns h * depth ... of q, k, v and of out_proj's input.
// The four projections are Linear layers with biases, so plans, parameter groups and adapters treat
// them as any other: LoRA beside queries and values, as Hu et al. 2021 have it, is the patterns
// "*.q_proj" and "*.v_proj". Names and shapes are those of CLIP and BART in Hugging Face's
// transformers. Attention probabilities are not dropped.
#pragma once

#include <optional>
#include <vector>

#include "layers/linear.h"

namespace graft {

// Which tokens attend to which: all of a sample's, where neither is given.
struct Sequences {
  Tensor mask;     // f32, added to the scores; broadcasts to (batch, heads, tokens, tokens)
  Tensor offsets;  // i64 (sequences + 1): x is (tokens, width), sequence i from offsets[i] on

  // x is (batch, tokens, width), of sample i the first lengths[i] tokens count, at least 1. What
  // comes out for the others means nothing.
  static Sequences padded(const std::vector<int64_t>& lengths, int64_t tokens, Device device);
  // x is (sum of lengths, width), one sequence after the other: nothing is computed for padding.
  static Sequences packed(const std::vector<int64_t>& lengths, Device device);
};

class MultiheadAttention : public Module {
 public:
  // Without a key the weights are left unset, for a caller who fills them. Throws when the heads do
  // not divide the width.
  MultiheadAttention(int64_t width, int64_t heads, std::optional<RngKey> key = std::nullopt);

  // x (batch, tokens, width) -> the same shape; f32 or bf16, the attention itself in f32.
  Tensor forward(const Tensor& x) override { return forward(x, {}); }
  Tensor forward(const Tensor& x, const Sequences& sequences);
  using Module::operator();
  Tensor operator()(const Tensor& x, const Sequences& sequences) {
    return shown(forward(x, sequences));
  }
  // As nn.MultiheadAttention: q, k and v uniform(+-sqrt(6 / (width + 3 width))), which is Glorot
  // and Bengio 2010 for one matrix of all three; out_proj as nn.Linear; biases 0.
  void initialise_as_pytorch(RngKey key);

 private:
  int64_t width_, heads_;
  Linear q_proj_, k_proj_, v_proj_, out_proj_;
};

// A file in which attention layers have the names of others, in the names used here:
//   nn.MultiheadAttention  X.in_proj_weight, X.in_proj_bias (rows of q, k, v); out_proj stays
//   timm                   X.qkv (rows of q, k, v), X.proj
//   BERT                   X.self.query, X.self.key, X.self.value, X.output.dense
// X stays what it is, and so does every other tensor. Throws when packed rows do not divide by 3.
StateDict separate_projections(const StateDict& file);

}  // namespace graft
