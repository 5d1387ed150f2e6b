#include "kernels/cpu/onednn.h"

#include <deque>
#include <mutex>
#include <omp.h>
#include <unordered_map>

#include "kernels/kernels.h"

namespace graft::cpu {
namespace onednn {
namespace {

// Making a primitive costs up to milliseconds (code is generated); a network needs a few hundred.
// Shapes that change all the time (ragged batches) must not fill the memory.
constexpr size_t kMostPlans = 2048;

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a over words
    for (const int64_t word : key) hash = (hash ^ static_cast<uint64_t>(word)) * 0x100000001b3u;
    return hash ^ (hash >> 29);
  }
};

struct Packing {
  Layout plain, packed;
  dnnl::reorder reorder;
};

// Like the allocators, these live as long as the process: a tensor destroyed after main() may hold
// a plan.
struct Caches {
  std::mutex mutex;
  std::unordered_map<Key, LibraryPlan, KeyHash> plans;
  std::deque<Packing>
      packings;  // number n is packings[n - 1]; never shrinks, references stay valid
};
Caches& caches() {
  static auto* all = new Caches;
  return *all;
}

}  // namespace

const dnnl::engine& engine() {
  static auto* cpu = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *cpu;
}

dnnl::stream& stream() {
  thread_local dnnl::stream own(engine());
  return own;
}

Memory wrap(const Layout& layout, const void* data) {
  return Memory(layout, engine(), const_cast<void*>(data));
}

LibraryPlan cached(Key key, const std::function<LibraryPlan()>& make) {
  // A primitive is made for a number of threads; the last word of a key is free for it.
  key.back() = omp_in_parallel() ? 1 : omp_get_max_threads();
  Caches& all = caches();
  {
    std::lock_guard lock(all.mutex);
    const auto found = all.plans.find(key);
    if (found != all.plans.end()) return found->second;
  }
  LibraryPlan plan = make();
  std::lock_guard lock(all.mutex);
  if (all.plans.size() >= kMostPlans) all.plans.clear();
  return all.plans.emplace(key, std::move(plan)).first->second;
}

int packing_of(const Layout& plain, const Layout& packed) {
  if (plain == packed) return 0;
  Caches& all = caches();
  std::lock_guard lock(all.mutex);
  for (size_t i = 0; i < all.packings.size(); ++i) {
    if (all.packings[i].plain == plain && all.packings[i].packed == packed) {
      return static_cast<int>(i) + 1;
    }
  }
  const dnnl::reorder::primitive_desc description(engine(), plain, engine(), packed);
  all.packings.push_back({plain, packed, dnnl::reorder(description)});
  return static_cast<int>(all.packings.size());
}

bool has_bf16() {
  constexpr int kWanted = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);
  static const bool has = (static_cast<int>(dnnl::get_effective_cpu_isa()) & kWanted) == kWanted;
  return has;
}

Memory::data_type computed_as(Dtype dtype) {
  return dtype == Dtype::bf16 && has_bf16() ? Memory::data_type::bf16 : Memory::data_type::f32;
}

std::optional<size_t> copy_of(const Layout& layout, size_t& scratch_bytes) {
  const size_t offset = (scratch_bytes + 63) / 64 * 64;
  scratch_bytes = offset + layout.get_size();
  return offset;
}

const void* widened(const Layout& layout, const void* data, const std::optional<size_t>& copy,
                    void* scratch) {
  if (!copy) return data;
  void* wide = static_cast<char*>(scratch) + *copy;
  cast(wide, Dtype::f32, data, Dtype::bf16,
       static_cast<int64_t>(layout.get_size() / sizeof(float)));
  return wide;
}

void* wide_target(void* data, const std::optional<size_t>& copy, void* scratch) {
  return copy ? static_cast<char*>(scratch) + *copy : data;
}
void narrow(void* data, const Layout& layout, const std::optional<size_t>& copy, void* scratch) {
  if (!copy) return;
  cast(data, Dtype::bf16, static_cast<char*>(scratch) + *copy, Dtype::f32,
       static_cast<int64_t>(layout.get_size() / sizeof(float)));
}

LibraryPlan plan_of(Operation made, const Layout& plain, const Copies& copies) {
  LibraryPlan plan;
  plan.packing = packing_of(plain, made.weight);
  plan.packed_bytes = plan.packing == 0 ? 0 : made.weight.get_size();
  plan.scratch_bytes = made.scratch.get_size();
  if (copies.source) made.source_copy = copy_of(made.source, plan.scratch_bytes);
  if (copies.weight) made.weight_copy = copy_of(made.weight, plan.scratch_bytes);
  if (copies.target) made.target_copy = copy_of(made.target, plan.scratch_bytes);
  plan.primitive = std::make_shared<const Operation>(std::move(made));
  return plan;
}

}  // namespace onednn

void pack_weight(const LibraryPlan& plan, void* packed, const float* weight) {
  onednn::checked("pack_weight", [&] {
    const onednn::Packing* packing;
    {
      std::lock_guard lock(onednn::caches().mutex);
      packing = &onednn::caches().packings[static_cast<size_t>(plan.packing) - 1];
    }
    packing->reorder.execute(onednn::stream(),
                             {{DNNL_ARG_FROM, onednn::wrap(packing->plain, weight)},
                              {DNNL_ARG_TO, onednn::wrap(packing->packed, packed)}});
  });
}

}  // namespace graft::cpu
