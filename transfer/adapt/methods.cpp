#include "transfer/adapt/methods.h"

#include "engine/near_names.h"
#include "kernels/error.h"

namespace graft {

const std::vector<MethodInfo>& adapt_methods() {
  static const std::vector<MethodInfo> all{
      source_only_method(), adabn_method(), dann_method(), cdan_method(),  cdan_e_method(),
      adda_method(),        dan_method(),   jan_method(),  coral_method(), mcd_method(),
      mdd_method(),         afn_method(),   bsp_method(),  mcc_method(),   entropy_method(),
  };
  return all;
}

const MethodInfo& adapt_method(const std::string& name) {
  std::vector<std::string> known;
  for (const MethodInfo& method : adapt_methods()) {
    if (method.name == name) return method;
    known.push_back(method.name);
  }
  std::string advice = did_you_mean(name, known);
  if (advice.empty()) advice = text("; there are ", known);
  fail("adapt: there is no method \"", name, "\"", advice);
}

}  // namespace graft
