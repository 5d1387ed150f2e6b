#include "layers/attention.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "layers/init.h"

namespace graft {
namespace {

constexpr std::array<const char*, 3> kProjections{"q_proj", "k_proj", "v_proj"};

// "2 or 5": the nearest numbers of heads that divide the width.
std::string heads_for(int64_t width, int64_t heads) {
  int64_t below = std::min(heads, width), above = std::min(heads, width);
  while (width % below != 0) --below;
  while (width % above != 0) ++above;
  return below == above ? text(below) : text(below, " or ", above);
}

// The rows of q, k and v as three tensors, under `prefix`.
void separate(StateDict& result, const std::string& prefix, const std::string& kind,
              const std::string& name, const Tensor& packed) {
  GRAFT_CHECK(packed.rank() > 0 && packed.dim(0) % 3 == 0, name,
              ": expected the rows of queries, keys and values, as many of each, got ", packed,
              "; these are not the weights of a self-attention");
  const int64_t rows = packed.dim(0) / 3;
  for (size_t i = 0; i < 3; ++i) {
    result[prefix + kProjections[i] + kind] = narrow(packed, static_cast<int64_t>(i) * rows, rows);
  }
}

// Whether a name ends with these parts; what is before them is `prefix`.
bool strip(const std::string& name, const std::string& ending, std::string& prefix) {
  if (!name.ends_with(ending)) return false;
  prefix = name.substr(0, name.size() - ending.size());
  return prefix.empty() || prefix.back() == '.';
}

// A layer in another's attention, and the weight beside it that tells that it is one.
struct Rename {
  const char *theirs, *ours, *sibling;
};
constexpr Rename kRenames[]{{"proj", "out_proj", "qkv.weight"},
                            {"self.query", "q_proj", "self.query.weight"},
                            {"self.key", "k_proj", "self.query.weight"},
                            {"self.value", "v_proj", "self.query.weight"},
                            {"output.dense", "out_proj", "self.query.weight"}};

std::string renamed(const std::string& name, const StateDict& file) {
  std::string prefix;
  for (const auto& [theirs, ours, sibling] : kRenames) {
    for (const char* kind : {".weight", ".bias"}) {
      if (strip(name, text(theirs, kind), prefix) && file.contains(prefix + sibling)) {
        return text(prefix, ours, kind);
      }
    }
  }
  return name;
}

}  // namespace

Sequences Sequences::padded(const std::vector<int64_t>& lengths, int64_t tokens, Device device) {
  const auto batch = static_cast<int64_t>(lengths.size());
  std::vector<float> mask;
  for (const int64_t length : lengths) {
    GRAFT_CHECK(length > 0 && length <= tokens, "Sequences: expected lengths from 1 to ", tokens,
                " tokens, got ", length,
                "; leave empty sequences out, or use packed(), which takes them");
    for (int64_t i = 0; i < tokens; ++i) mask.push_back(i < length ? 0.0f : -INFINITY);
  }
  return {Tensor::of(mask, {batch, 1, 1, tokens}).to(device), {}};
}

Sequences Sequences::packed(const std::vector<int64_t>& lengths, Device device) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) {
    GRAFT_CHECK(length >= 0, "Sequences: expected lengths from 0, got ", length);
    offsets.push_back(offsets.back() + length);
  }
  return {{}, Tensor::of(offsets).to(device)};
}

MultiheadAttention::MultiheadAttention(int64_t width, int64_t heads, std::optional<RngKey> key)
    : width_(width),
      heads_(heads),
      q_proj_(width, width),
      k_proj_(width, width),
      v_proj_(width, width),
      out_proj_(width, width) {
  GRAFT_CHECK(heads > 0, "MultiheadAttention: expected at least 1 head, got ", heads);
  GRAFT_CHECK(width % heads == 0, "MultiheadAttention: a width of ", width,
              " does not divide into ", heads, " heads; ", heads_for(width, heads), " would do");
  child("q_proj", q_proj_);
  child("k_proj", k_proj_);
  child("v_proj", v_proj_);
  child("out_proj", out_proj_);
  if (key) initialise_as_pytorch(*key);
}

Tensor MultiheadAttention::forward(const Tensor& x, const Sequences& sequences) {
  const bool packed = sequences.offsets.defined();
  GRAFT_CHECK(!packed || !sequences.mask.defined(),
              "MultiheadAttention: packed sequences take no mask; give one of the two");
  GRAFT_CHECK(x.defined() && x.rank() == (packed ? 2 : 3) && x.dim(-1) == width_,
              "MultiheadAttention: expected x ",
              packed ? text("of packed sequences (tokens, ", width_, ")")
                     : text("(batch, tokens, ", width_, ")"),
              ", got ", x,
              packed ? "; padded ones go with a mask, or alone"
                     : "; reshape() it, or for packed sequences give their offsets");
  const auto heads_of = [&](Linear& projection) {
    const Tensor y = cast(projection(x), Dtype::f32);
    const int64_t depth = width_ / heads_;
    if (packed) return reshape(y, {x.dim(0), heads_, depth});
    return permute(reshape(y, {x.dim(0), x.dim(1), heads_, depth}), {0, 2, 1, 3});
  };
  // One after the other: dropout of adapters draws its keys in this order.
  const Tensor q = heads_of(q_proj_), k = heads_of(k_proj_), v = heads_of(v_proj_);
  const Tensor mixed =
      packed ? scaled_dot_product_attention_varlen(q, k, v, sequences.offsets, sequences.offsets)
             : permute(scaled_dot_product_attention(q, k, v, sequences.mask), {0, 2, 1, 3});
  return out_proj_(cast(reshape(mixed, x.shape()), x.dtype()));
}

void MultiheadAttention::initialise_as_pytorch(RngKey key) {
  uint64_t part = 0;
  for (Linear* projection : {&q_proj_, &k_proj_, &v_proj_}) {
    xavier_uniform(projection->weight, width_, 3 * width_, derive(key, part++));
    projection->bias.fill(0);
  }
  default_uniform(out_proj_.weight, width_, derive(key, part));
  out_proj_.bias.fill(0);
}

StateDict separate_projections(const StateDict& file) {
  StateDict result;
  for (const auto& [name, tensor] : file) {
    bool packed = false;
    for (const std::string kind : {"weight", "bias"}) {
      std::string prefix;
      if (!strip(name, "in_proj_" + kind, prefix) && !strip(name, "qkv." + kind, prefix)) continue;
      separate(result, prefix, "." + kind, name, tensor);
      packed = true;
    }
    if (!packed) result[renamed(name, file)] = tensor;
  }
  return result;
}

}  // namespace graft
