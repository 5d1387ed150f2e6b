#include "transfer/regularise/options.h"

#include <cmath>

#include "kernels/error.h"
#include "transfer/options.h"

namespace graft {

void check_regularisation(const FinetuneOptions& options) {
  const RegulariseOptions& o = options.regularise;
  const auto not_negative = [](const char* name, float value) {
    GRAFT_CHECK(std::isfinite(value) && value >= 0, "finetune: ", name, " must be at least 0, got ",
                value);
  };
  not_negative("the weight of L2-SP", o.l2_sp);
  not_negative("the weight of L2-SP on the head", o.l2_sp_head);
  not_negative("the weight of DELTA", o.delta);
  not_negative("the weight of BSS", o.bss);
  not_negative("the weight of Co-Tuning", o.co_tuning);
  not_negative("mixup's alpha", o.mixup);
  not_negative("cutmix's alpha", o.cutmix);
  GRAFT_CHECK(o.delta_images >= 0,
              "finetune: the images for DELTA's attention must be at least 0, ", "got ",
              o.delta_images);
  GRAFT_CHECK(o.delta_images == 0 || o.delta > 0,
              "finetune: DELTA's attention says nothing without DELTA; give its weight, too");
  GRAFT_CHECK(o.bss_values >= 1, "finetune: BSS must act on at least 1 singular value, got ",
              o.bss_values);
  GRAFT_CHECK(o.bss == 0 || options.batch >= 2,
              "finetune: BSS needs the features of several images; give a batch of at least 2");
  GRAFT_CHECK(!o.mixes() || options.batch >= 2,
              "finetune: mixup and cutmix mix the images of a batch; give a batch of at least 2");
  GRAFT_CHECK(o.stoch_norm >= 0 && o.stoch_norm <= 1,
              "finetune: StochNorm's probability must be from 0 to 1, got ", o.stoch_norm);
  GRAFT_CHECK(!(o.ema >= 1) && !std::isnan(o.ema),
              "finetune: the decay of EMA must be from 0 to below 1, got ", o.ema);
  GRAFT_CHECK(!(o.swa >= 1) && !std::isnan(o.swa),
              "finetune: SWA must start at a part of the epochs from 0 to below 1, got ", o.swa);
  GRAFT_CHECK(o.ema < 0 || o.swa < 0,
              "finetune: EMA and SWA are two averages of the same weights; give one of the two");
  GRAFT_CHECK(
      o.l2_sp == 0 || options.lora.rank == 0,
      "finetune: L2-SP pulls weights that LoRA keeps at their start anyway; give one of the "
      "two");
  GRAFT_CHECK(!o.needs_start() || !options.weights.empty(), "finetune: ",
              o.l2_sp > 0   ? "L2-SP"
              : o.delta > 0 ? "DELTA"
                            : "Co-Tuning",
              " holds on to pre-trained weights, and from scratch there are none");
}

std::string describe_objective(const FinetuneOptions& options) {
  const RegulariseOptions& o = options.regularise;
  std::string line = "cross entropy";
  if (options.label_smoothing > 0) line += text(", labels smoothed by ", options.label_smoothing);
  if (options.class_weights == ClassWeighting::balanced) line += ", balanced classes";
  if (o.mixup > 0) line += text(", mixup ", o.mixup);
  if (o.cutmix > 0) line += text(", cutmix ", o.cutmix);
  if (o.l2_sp > 0) {
    line += text(" + L2-SP (", o.l2_sp, " towards the start, ", o.l2_sp_head, " on the head)");
  }
  if (o.delta > 0) line += text(" + ", o.delta, " DELTA");
  if (o.delta_images > 0) line += text(", attention from ", o.delta_images, " images");
  if (o.bss > 0) line += text(" + ", o.bss, " BSS of ", o.bss_values);
  if (o.co_tuning > 0) line += text(" + ", o.co_tuning, " Co-Tuning");
  if (o.stoch_norm > 0) line += text("; StochNorm ", o.stoch_norm);
  if (o.ema >= 0) line += text("; judged by the weights' EMA ", o.ema);
  if (o.swa >= 0) line += text("; judged by SWA from ", o.swa, " of a phase on");
  return line;
}

}  // namespace graft
