// What a plan can set the dropout of.
#pragma once

namespace graft {

// A module that drops something while it trains: a model before its head, a block its residual
// branch.
class DropsOut {
 public:
  virtual ~DropsOut() = default;
  virtual float dropout_probability() const = 0;
  // Throws unless 0 <= probability < 1.
  virtual void set_dropout(float probability) = 0;
  // Whether it drops whole residual branches, an image at a time (drop path).
  virtual bool drops_paths() const { return false; }
};

}  // namespace graft
