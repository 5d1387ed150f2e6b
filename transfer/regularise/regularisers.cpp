#include "transfer/regularise/regulariser.h"

namespace graft {

const std::vector<RegulariserRow>& regularisers() {
  static const std::vector<RegulariserRow> rows{
      {"L2-SP", &RegulariseOptions::l2_sp, false, make_l2_sp},
      {"DELTA", &RegulariseOptions::delta, true, make_delta},
      {"BSS", &RegulariseOptions::bss, true, make_bss},
      {"Co-Tuning", &RegulariseOptions::co_tuning, true, make_co_tuning},
  };
  return rows;
}

bool in_head(const ImageModel& model, const std::string& name) {
  return name.starts_with(model.head_name() + ".");
}

}  // namespace graft
