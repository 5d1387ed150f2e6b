// Adapters beside the projections of attention: what learns, that they merge, and their delta file.
#include <cmath>
#include <cstring>
#include <doctest/doctest.h>

#include "engine/autograd.h"
#include "engine/optim.h"
#include "engine/rng.h"
#include "layers/models/delta.h"
#include "layers/transformer.h"
#include "tests/support/hashed_weights.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"

namespace graft {
namespace {

using test::test_device;
using testing::TemporaryFolder;
using Floats = std::vector<float>;
using Names = std::vector<std::string>;

constexpr TransformerOptions kBlock{.width = 16, .heads = 2, .hidden = 24};
const std::vector<int64_t> kLengths{5, 3};

Tensor hashed_tensor(const std::string& name, const Shape& shape) {
  const std::vector<double> values = test::hashed(name, numel_of(shape));
  return Tensor::of(Floats(values.begin(), values.end()), shape).to(test_device());
}
Tensor input() { return hashed_tensor("x", {2, 5, 16}); }

// A block whose queries and values have adapters, as Hu et al. 2021 place them.
std::unique_ptr<TransformerBlock> adapted_block(float dropout = 0) {
  auto block = std::make_unique<TransformerBlock>(kBlock);
  test::fill_with_hashed_weights(*block, {});
  block->set_dropout(dropout);
  block->to(test_device());
  const AttachedAdapters attached = attach_adapters(
      *block, {.rank = 3, .alpha = 6, .dropout = dropout, .layers = {"*.q_proj", "*.v_proj"}}, {},
      {9});
  CHECK(attached.layers == Names{"self_attn.q_proj", "self_attn.v_proj"});
  CHECK(attached.left_out.empty());
  CHECK(attached.values == 2 * 3 * (16 + 16));
  return block;
}

// Steps towards a hashed target; the losses before each.
Floats train(TransformerBlock& block, int steps) {
  ParameterGroup group{.name = "adapters", .parameters = {}, .learning_rate = 0.02f};
  for (const NamedTensor& entry : block.named_parameters()) {
    if (entry.tensor->requires_grad()) group.parameters.push_back({entry.name, *entry.tensor});
  }
  const auto optimizer = make_adamw({group}, {});
  const Tensor target = hashed_tensor("target", {2, 5, 16});
  Floats losses;
  for (int step = 0; step < steps; ++step) {
    begin_rng_step(1, static_cast<uint64_t>(step));
    const Tensor loss =
        mse_loss(block(input(), Sequences::padded(kLengths, 5, test_device())), target);
    losses.push_back(loss.to(kCpu).item());
    optimizer->zero_grad();
    backward(loss);
    optimizer->step();
  }
  return losses;
}

Floats output(TransformerBlock& block) {
  const NoGrad guard;
  block.eval();
  return block(input(), Sequences::padded(kLengths, 5, test_device())).to_vector<float>();
}
bool close(const Floats& a, const Floats& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= 4e-6f)) return false;
  }
  return a.size() == b.size();
}
bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

TEST_CASE("adapters beside queries and values learn, nothing else moves, and they merge") {
  const auto block = adapted_block(0.1f);
  const StateDict before = block->state_dict();
  const Floats losses = train(*block, 12);
  CHECK(losses.back() < losses.front());
  const Floats unmerged = output(*block);
  for (const auto& [name, tensor] : block->state_dict()) {
    CAPTURE(name);
    const bool adapter = name.ends_with(".lora_A") || name.ends_with(".lora_B");
    CHECK(same_bytes(tensor, before.at(name)) == !adapter);
  }
  {
    const LoraMerged merged(*block);
    const Floats values = output(*block);
    CHECK(values != unmerged);  // another order of sums
    CHECK(close(values, unmerged));
  }
  CHECK(output(*block) == unmerged);
  merge_adapters(*block);
  CHECK(close(output(*block), unmerged));
  for (const auto& [name, tensor] : block->state_dict()) {
    const bool moved = name == "self_attn.q_proj.weight" || name == "self_attn.v_proj.weight";
    CHECK(same_bytes(tensor, before.at(name)) == !moved);
  }
}

TEST_CASE("every projection takes an adapter, and without patterns all linear layers do") {
  const auto layers_of = [](const Names& patterns) {
    TransformerBlock block(kBlock, RngKey{1});
    return attach_adapters(block, {.rank = 2, .layers = patterns}, {}, {9}).layers;
  };
  for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
    CHECK(layers_of({std::string("*.") + name}) == Names{std::string("self_attn.") + name});
  }
  const Names attention{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                        "self_attn.out_proj"};
  CHECK(layers_of({"self_attn"}) == attention);
  Names all = attention;
  all.insert(all.end(), {"linear1", "linear2"});
  CHECK(layers_of({}) == all);
}

TEST_CASE("a delta file and its base are the block that was trained") {
  const auto block = adapted_block();
  const TemporaryFolder folder;
  const auto base = folder / "base.safetensors", delta = folder / "lora.safetensors";
  write_safetensors(base, merged_state_dict(*block));  // new adapters add nothing
  train(*block, 3);
  const StateDict learnt = delta_state_dict(*block, {});
  DeltaCard card{.model = {}, .lora = {.rank = 3, .alpha = 6}, .base = "base.safetensors"};
  card.base_sha256 = sha256_hex(base);
  write_delta(delta, learnt, card);
  Names names;
  const WeightFile file = read_safetensors(delta);
  for (const FileTensor& entry : file.tensors) names.push_back(entry.name);
  CHECK(names == Names{"self_attn.q_proj.lora_A", "self_attn.q_proj.lora_B",
                       "self_attn.v_proj.lora_A", "self_attn.v_proj.lora_B"});

  TransformerBlock loaded(kBlock);
  CHECK(load_delta(loaded, file, read_safetensors(base), "test") == 2);
  loaded.to(test_device());
  CHECK(output(loaded) == output(*block));
  const StateDict ours = merged_state_dict(*block), theirs = merged_state_dict(loaded);
  REQUIRE(ours.size() == theirs.size());
  for (const auto& [name, tensor] : ours) {
    CAPTURE(name);
    CHECK(same_bytes(tensor, theirs.at(name)));
  }
  TransformerBlock narrow({.width = 8, .heads = 2, .hidden = 24});
  CHECK_THROWS_WITH_AS(load_delta(narrow, file, read_safetensors(base), "my.safetensors"),
                       doctest::Contains("my.safetensors: the tensors do not fit"), Error);
}

}  // namespace
}  // namespace graft
