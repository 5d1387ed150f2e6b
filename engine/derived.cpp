#include "engine/derived.h"

#include <map>
#include <mutex>
#include <string_view>
#include <tuple>

#include "engine/dispatch.h"

namespace graft {
namespace {

using FullKey = std::tuple<std::string_view, int64_t, int64_t>;  // kind, detail, offset of the view

// What hangs in Storage::cache().
struct DerivedForms {
  uint64_t version = 0;
  std::map<FullKey, std::shared_ptr<void>> forms;
};

// One lock for all storages: it is held for a look-up, never while a form is made.
std::mutex& forms_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

// The forms of the contents as they are now.
DerivedForms& current_forms(Storage& storage, uint64_t version) {
  if (storage.cache() == nullptr) storage.cache() = std::make_shared<DerivedForms>();
  auto& all = *static_cast<DerivedForms*>(storage.cache().get());
  if (all.version != version) {
    all.forms.clear();
    all.version = version;
  }
  return all;
}

}  // namespace

std::shared_ptr<void> derived_form(const Tensor& x, const DerivedKey& key,
                                   const std::function<std::shared_ptr<void>()>& make) {
  Storage& storage = *x.storage();
  const uint64_t version = storage.version();
  const FullKey full{key.kind, key.detail, x.offset()};
  {
    std::lock_guard lock(forms_mutex());
    const auto& forms = current_forms(storage, version).forms;
    const auto found = forms.find(full);
    if (found != forms.end()) return found->second;
  }
  std::shared_ptr<void> form = make();
  std::lock_guard lock(forms_mutex());
  return current_forms(storage, version).forms.emplace(full, std::move(form)).first->second;
}

LibraryWeight library_weight(const Tensor& weight, const LibraryPlan& plan, bool keep) {
  if (plan.packing == 0) return {nullptr, weight.raw()};
  const auto pack = [&] {
    auto packed = std::make_shared<Storage>(plan.packed_bytes, weight.device());
    GRAFT_KERNEL(pack_weight, weight.device())
    (plan, packed->data(), weight.data<float>());
    return packed;
  };
  std::shared_ptr<Storage> packed =
      keep ? std::static_pointer_cast<Storage>(derived_form(weight, {"packed", plan.packing}, pack))
           : pack();
  return {packed, packed->data()};
}

}  // namespace graft
