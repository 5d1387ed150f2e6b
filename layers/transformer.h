// A block of a transformer's encoder: self-attention and an MLP with GELU, each a residual branch.
#pragma once

#include <optional>

#include "layers/attention.h"
#include "layers/dropout.h"
#include "layers/layer_norm.h"

namespace graft {

struct TransformerOptions {
  int64_t width = 0, heads = 0, hidden = 0;  // hidden: of the MLP, most often 4 * width
  // true: x + f(norm(x)), as ViT and GPT-2. false: norm(x + f(x)), as Vaswani et al. 2017 and BERT.
  bool norm_first = true;
  float dropout = 0;      // of what each branch gives, and of the MLP's hidden values
  float epsilon = 1e-5f;  // of the norms: PyTorch's; timm's ViT has 1e-6, BERT 1e-12
};

// Names, order of computation and initial weights are those of nn.TransformerEncoderLayer with
// activation="gelu" and batch_first=True: self_attn, linear1, linear2, norm1, norm2 (but for its
// packed in_proj, see separate_projections). timm calls them attn, mlp.fc1, mlp.fc2, norm1, norm2;
// BERT attention, intermediate.dense, output.dense, attention.output.LayerNorm, output.LayerNorm.
//
// The MLP is one op where nothing is dropped, else GELU and the dropout behind it are one kernel,
// and so are dropout, sum and norm where the norm comes last. With the norm first the sum is wanted
// by itself: it is the next residual.
class TransformerBlock : public Module, public DropsOut {
 public:
  // Without a key the weights are left unset, for a caller who fills them.
  explicit TransformerBlock(const TransformerOptions& options,
                            std::optional<RngKey> key = std::nullopt);

  // x (batch, tokens, width) -> the same shape; sequences as in attention.h.
  Tensor forward(const Tensor& x) override { return forward(x, {}); }
  Tensor forward(const Tensor& x, const Sequences& sequences);
  using Module::operator();
  Tensor operator()(const Tensor& x, const Sequences& sequences) {
    return shown(forward(x, sequences));
  }
  void initialise_as_pytorch(RngKey key);

  float dropout_probability() const override { return dropout_; }
  void set_dropout(float probability) override;

 private:
  Tensor mlp(const Tensor& x, float dropped);

  bool norm_first_;
  float dropout_ = 0;
  MultiheadAttention self_attn_;
  Linear linear1_, linear2_;
  LayerNorm norm1_, norm2_;
};

}  // namespace graft
