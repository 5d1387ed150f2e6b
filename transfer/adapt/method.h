// A method of unsupervised domain adaptation: labelled source images, target images without labels.
// One file each; methods.h lists them. The smallest are source_only.cpp and dann.cpp.
//
// Most methods are one term beside the source's cross-entropy and override transfer_loss(). Those
// that take several passes a step (ADDA, MCD) override step() and say with AdaptStep::update() what
// each pass moves.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/types.h"
#include "layers/models/zoo.h"
#include "transfer/adapt/step.h"
#include "transfer/batches.h"

namespace graft {

// --- options of a method, by name

struct MethodOption {
  std::string name;
  std::string value;                   // the default
  std::string about;                   // one line for people
  double least = 0, most = 1e6;        // of a number
  std::vector<std::string> allowed{};  // of a word; empty: the value is a number
  bool odd = false;                    // a number that must be whole and odd
};

// Values for options of one method: its defaults, changed by what the user set.
class MethodSettings {
 public:
  // given: "name=value". Throws on an unknown name (with near ones), on what is no number or out of
  // range, and on a word that is not allowed.
  MethodSettings(std::string method, std::vector<MethodOption> options,
                 const std::vector<std::string>& given);
  double number(const std::string& name) const;
  int64_t integer(const std::string& name) const;
  bool is(const std::string& name, const std::string& word) const;
  // Every option with its value.
  const std::vector<MethodOption>& all() const { return options_; }

 private:
  const MethodOption& find(const std::string& name) const;
  std::string method_;
  std::vector<MethodOption> options_;
};

// What a method is made for.
struct MethodContext {
  int64_t aligned_width = 0;  // columns of DomainPass::aligned
  int64_t feature_width = 0;  // columns of DomainPass::features
  int64_t classes = 0;
  RngKey key;  // of its initial weights
  // A network like the one that is adapted, with unset weights, on its device.
  std::function<std::unique_ptr<ImageModel>()> blank;
};

// --- the method

class AdaptMethod {
 public:
  virtual ~AdaptMethod() = default;

  // Its own modules (a domain classifier, a second head), trained as Part::extra and saved with the
  // run. Frozen copies belong here, too.
  virtual Module* extra() { return nullptr; }

  // The term beside the source's cross-entropy, weighted. `place.strength` is 1 until the health
  // panel backs off; it belongs on everything that pulls the domains together.
  virtual Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) = 0;

  // One step: cross-entropy of the source plus transfer_loss(), and everything moves.
  virtual void step(AdaptStep& step);

  // Before the target is judged and the weights are saved; what it changes in the network's batch
  // norms is undone afterwards (AdaBN). `target`: batches of the target's training images, in
  // order.
  virtual void before_judging(ImageModel&, Batches& /*target*/, Device) {}

  // Throws when the network is none for this method.
  virtual void check(ImageModel&) const {}
};

struct MethodInfo {
  std::string name, about;  // about: one line, with the paper
  std::vector<MethodOption> options;
  bool uses_target = true;  // false: no target image passes through the network while it trains
  std::function<std::unique_ptr<AdaptMethod>(const MethodSettings&, const MethodContext&)> make;
};

}  // namespace graft
