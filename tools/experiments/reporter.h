// What an experiment says while it runs: a bar with the run under way, a line for a finished one.
#pragma once

#include "tools/progress.h"
#include "tools/stop_signal.h"
#include "transfer/adapt/trainer.h"

namespace graft {

class ExperimentReporter : public AdaptObserver {
 public:
  void start(const std::string& run, size_t number, size_t runs) {
    run_ = text("run ", number, "/", runs, " ", run);
  }
  void progress(const Progress& now) override {
    bar_.show(static_cast<double>(now.done) / static_cast<double>(now.total), run_, "");
  }
  bool stop_requested() override { return stop_signal() != 0; }
  void done(const std::string& line) { bar_.line(line); }
  void clear() { bar_.clear(); }
  // After a stop: says what is kept, and ends the program.
  [[noreturn]] void stopped(size_t finished, size_t runs);
  // After an error of the run under way: throws it with what is kept, in the place of how to go on
  // with that run alone.
  [[noreturn]] void failed(const Error& error, size_t finished, size_t runs);

 private:
  std::string run_;
  ProgressBar bar_;
};

}  // namespace graft
