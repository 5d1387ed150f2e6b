#include "tools/regularise_flags.h"

#include "tools/command.h"

namespace graft {

std::function<void(FinetuneOptions&)> add_regularise_flags(CLI::App& command) {
  auto pulls = std::make_shared<std::vector<float>>();
  auto values = std::make_shared<RegulariseOptions>();
  std::vector<std::pair<CLI::Option*, std::function<void(RegulariseOptions&)>>> given;
  const auto add = [&](const char* flag, auto RegulariseOptions::*member, const char* help) {
    CLI::Option* option = command.add_option(flag, (*values).*member, help);
    given.emplace_back(option, [=](RegulariseOptions& o) { o.*member = (*values).*member; });
    return option;
  };
  CLI::Option* l2_sp =
      command
          .add_option("--l2-sp", *pulls,
                      "ALPHA[,BETA]: pull the features towards their start and the head towards 0, "
                      "in the place of --weight-decay (0; BETA 0.01)")
          ->delimiter(',')
          ->expected(1, 2);
  add("--delta", &RegulariseOptions::delta,
      "pull of the feature maps towards the starting network's (0)");
  add("--delta-attention", &RegulariseOptions::delta_images,
      "weigh their channels by what the loss on so many training images gains without each, "
      "measured first (0: all alike; 320 is published)");
  add("--bss", &RegulariseOptions::bss,
      "shrink the smallest singular values of a batch's features (0; 0.001 is usual)");
  add("--bss-values", &RegulariseOptions::bss_values, "how many of them (1)");
  add("--co-tuning", &RegulariseOptions::co_tuning,
      "train the weights' own head, too, on the classes it sees in each new class (0; 2.3 is "
      "published)");
  add("--stoch-norm", &RegulariseOptions::stoch_norm,
      "probability that a batch-norm channel uses its running statistics; with --batch-norm train "
      "(0)");
  add("--mixup", &RegulariseOptions::mixup, "mix images and labels, shares from Beta(A, A) (0)");
  add("--cutmix", &RegulariseOptions::cutmix, "paste parts of other images, the same (0)");
  add("--ema", &RegulariseOptions::ema,
      "judge and keep a moving average of the weights with this decay, such as 0.99 (none)")
      ->check(CLI::Range(0.0, 1.0));
  add("--swa", &RegulariseOptions::swa,
      "judge and keep the mean of the epochs after this part of them, such as 0.5 (none)")
      ->check(CLI::Range(0.0, 1.0));
  return [=](FinetuneOptions& options) {
    for (const auto& [option, assign] : given) {
      if (option->count() > 0) assign(options.regularise);
    }
    if (l2_sp->count() == 0) return;
    if (pulls->empty() || pulls->size() > 2) {
      throw UsageError("finetune: --l2-sp: expected ALPHA or ALPHA,BETA, such as 0.1,0.01");
    }
    options.regularise.l2_sp = pulls->front();
    if (pulls->size() == 2) options.regularise.l2_sp_head = pulls->back();
  };
}

}  // namespace graft
