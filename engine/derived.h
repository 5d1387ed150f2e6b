// Forms of a tensor that are computed once and kept beside it, in Storage::cache(): packed weights,
// filters with a batch norm folded in.
#pragma once

#include <functional>
#include <memory>

#include "engine/tensor.h"
#include "kernels/plan.h"

namespace graft {

// What a derived form is: the kind is a literal, one for each family of forms.
struct DerivedKey {
  const char* kind;
  int64_t detail = 0;
};

// The form that `make` returns for x as it is now. Kept until x's storage is changed in place or
// freed. Any number of threads may ask at once; make may then run in several, and one result stays.
std::shared_ptr<void> derived_form(const Tensor& x, const DerivedKey& key,
                                   const std::function<std::shared_ptr<void>()>& make);

// A weight in the layout that a plan reads.
struct LibraryWeight {
  std::shared_ptr<Storage> packed;  // null where the plan reads the weight as it is
  const void* data;
};
// keep: hold on to the packed copy for the next call. Right for weights that stay as they are; one
// that an optimizer is about to change would only cost memory.
LibraryWeight library_weight(const Tensor& weight, const LibraryPlan& plan, bool keep);

}  // namespace graft
