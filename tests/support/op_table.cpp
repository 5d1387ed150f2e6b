#include "tests/support/op_table.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <omp.h>
#include <set>

#include "engine/rng.h"
#include "kernels/device.h"
#include "kernels/element.h"
#include "kernels/error.h"

namespace graft::test {
namespace {

constexpr int64_t kFullGradient = 160;    // up to here every element's gradient is checked
constexpr int64_t kSampledGradient = 40;  // of a larger input, this many
constexpr double kBf16Step = 0x1p-8;      // twice the largest relative error of rounding to bf16

// What one run of the op produced: the result and each input's gradient, bit for bit.
struct Outcome {
  Array result;
  std::vector<std::vector<float>> gradients;  // empty where none was wanted
};

Tensor to_tensor(const Array& array) {
  const auto cast_all = [&]<class T>(T) {
    std::vector<T> values;
    for (double v : array.values) values.push_back(static_cast<T>(v));
    return Tensor::of<T>(values, array.shape);
  };
  switch (array.dtype) {
    case Dtype::f32:
      return cast_all(float{});
    case Dtype::f64:
      return cast_all(double{});
    case Dtype::i64:
      return cast_all(int64_t{});
    case Dtype::i32:
      return cast_all(int32_t{});
    case Dtype::u8:
      return cast_all(uint8_t{});
    default:
      fail("op_table: no inputs of type ", array.dtype);
  }
}

// The dtype in which an input is given to the op.
Dtype dtype_of(const Input& input, Dtype reals) {
  return input.dtype == Dtype::f32 && !input.is_parameter ? reals : input.dtype;
}

double rounded(double value, Dtype dtype) {
  const auto f32 = static_cast<float>(value);
  return static_cast<double>(dtype == Dtype::bf16 ? static_cast<float>(Bf16(f32)) : f32);
}

Array make_input(const Input& input, Dtype reals, RngKey key) {
  const Dtype dtype = dtype_of(input, reals);
  Array array(input.shape, 0.0, input.dtype);
  RandomStream random(key);
  for (double& value : array.values) {
    value = random.uniform(input.low, input.high);
    for (double kink : input.kinks) {
      const double step = dtype == Dtype::bf16 ? kBf16Step * std::fabs(kink) : 0;
      const double margin = std::max(input.margin, 2 * step);
      if (std::fabs(value - kink) < margin) value = kink + std::copysign(margin, value - kink);
    }
    if (input.dtype != Dtype::f32 && input.dtype != Dtype::f64) value = std::floor(value);
  }
  if (!input.values.empty()) array = Array(input.shape, input.values, input.dtype);
  // The reference sees exactly the numbers that the op sees; parameters are rounded where they are
  // used.
  if (input.dtype == Dtype::f32) {
    for (double& value : array.values) value = rounded(value, reals);
  }
  return array;
}

bool wants_gradient(const Input& input) {
  return input.differentiable && input.dtype == Dtype::f32;
}

// Bitwise, but for the sign and payload of NaN, which depend on the order of operands.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](T x, T y) {
    return std::memcmp(&x, &y, sizeof(T)) == 0 || (std::isnan(x) && std::isnan(y));
  });
}
bool same_bits(const Array& a, const Array& b) {
  return a.shape == b.shape && a.dtype == b.dtype && same_bits(a.values, b.values);
}

// Ops with bf16 kernels of their own; ops_bf16_test.cpp has the others.
bool takes_bf16(const std::string& op) {
  static const std::set<std::string> ops{"neg", "relu", "linear", "matmul", "conv2d", "batch_norm"};
  return ops.count(op) > 0;
}

class RowRun {
 public:
  RowRun(const std::string& op, const std::vector<Input>& inputs, const Call& call,
         const Reference& reference, const Options& options, Dtype reals)
      : op_(op),
        inputs_(inputs),
        call_(call),
        reference_(reference),
        options_(options),
        reals_(reals) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      arrays_.push_back(make_input(inputs[i], reals, {options.seed, 0, static_cast<uint32_t>(i)}));
    }
    expected_ = reference(arrays_);
    const RngKey key{options.seed, 1, 0};
    RandomStream random(key);
    for (int64_t i = 0; i < expected_.size(); ++i) {
      const double size = random.uniform(0.25, 1.25);
      const double weight = random.below(2) == 0 ? size : -size;
      weights_.push_back(static_cast<float>(rounded(weight, reals)));
    }
    if (reals_ == Dtype::bf16 && expected_.dtype == Dtype::f32) expected_.dtype = Dtype::bf16;
    if (reals_ == Dtype::bf16) {
      // A result is rounded once, and so is the gradient of an activation; what the backward pass
      // reads may be a rounded result.
      Tolerance& t = options_.tolerance;
      if (t.rtol > 0) t.rtol = std::max(t.rtol, kBf16Step);
      t.grad_rtol = std::max(t.grad_rtol, 2 * kBf16Step);
    }
  }

  std::vector<std::string> problems() {
    bool any_gradient = false;
    for (const Input& input : inputs_) any_gradient |= options_.gradients && wants_gradient(input);
    std::vector<bool> all;
    for (const Input& input : inputs_) all.push_back(options_.gradients && wants_gradient(input));

    const Outcome first = run(all);
    check_result(first.result, "");
    if (!problems_.empty()) return problems_;
    if (any_gradient) check_gradients(first);
    check_repeatable(first, all);
    check_unrecorded();
    if (expected_.size() <= kFullGradient) check_named();
    if (any_gradient && std::count(all.begin(), all.end(), true) > 1) check_one_at_a_time(all);
    return problems_;
  }

 private:
  template <class... Parts>
  void report(const Parts&... parts) {
    problems_.push_back(text(parts...));
  }

  // Runs the op with fresh memory poisoned, and backward when `wanted` marks an input.
  Outcome run(const std::vector<bool>& wanted) {
    Outcome outcome;
    poison_fresh_memory(true);
    {
      Tensors tensors;
      for (size_t i = 0; i < arrays_.size(); ++i) {
        tensors.push_back(to_tensor(arrays_[i]).to(test_device()));
        if (wanted[i]) tensors.back().set_requires_grad();
      }
      const Tensor result = call_(as_given(tensors));
      outcome.result = to_array(result);
      const bool any = std::find(wanted.begin(), wanted.end(), true) != wanted.end();
      if (any && !result.requires_grad()) {
        report("the result does not want a gradient although an input does");
      } else if (any && outcome.result.shape == expected_.shape) {
        backward(result,
                 cast(Tensor::of(weights_, result.shape()).to(result.device()), result.dtype()));
        for (size_t i = 0; i < tensors.size(); ++i) {
          const Tensor grad = tensors[i].grad();
          const bool missing = wanted[i] && !grad.defined();
          if (missing) report("input ", i, " got no gradient");
          if (!wanted[i] && grad.defined()) report("input ", i, " got a gradient it did not want");
          outcome.gradients.push_back(wanted[i] && !missing ? grad.to_vector<float>()
                                                            : std::vector<float>());
        }
      }
      for (size_t i = 0; i < arrays_.size(); ++i) {
        if (!same_bits(to_array(tensors[i]), to_array(to_tensor(arrays_[i])))) {
          report("the op changed its input ", i);
        }
      }
    }
    if (damaged_guards() > 0) report("wrote past the end of ", damaged_guards(), " buffers");
    poison_fresh_memory(false);
    return outcome;
  }

  // The inputs in the types that the op is given. Gradients come back to the f32 leaves.
  Tensors as_given(const Tensors& tensors) const {
    Tensors given;
    for (size_t i = 0; i < tensors.size(); ++i) {
      given.push_back(cast(tensors[i], dtype_of(inputs_[i], reals_)));
    }
    return given;
  }

  void check_result(const Array& result, const char* when) {
    const Tolerance& t = options_.tolerance;
    const std::string difference = compare(result, expected_, t.rtol, t.atol);
    if (!difference.empty()) report("result", when, ": ", difference);
  }

  // d(sum of weight * reference) / d(one input element), by central differences in double.
  double numeric_gradient(size_t input, size_t element) {
    const double value = arrays_[input].values[element];
    const double step = 1e-5 * std::max(1.0, std::fabs(value));
    Arrays moved = arrays_;
    moved[input].values[element] = value + step;
    const Array up = reference_(moved);
    moved[input].values[element] = value - step;
    const Array down = reference_(moved);
    double sum = 0;
    for (size_t k = 0; k < weights_.size(); ++k) {
      const double difference = up.values[k] - down.values[k];
      if (difference != 0) sum += static_cast<double>(weights_[k]) * difference;
    }
    return sum / (2 * step);
  }

  std::vector<size_t> elements_to_check(size_t input) const {
    const int64_t n = arrays_[input].size();
    std::vector<size_t> elements;
    if (n <= kFullGradient) {
      for (int64_t i = 0; i < n; ++i) elements.push_back(static_cast<size_t>(i));
      return elements;
    }
    RandomStream random({options_.seed, 2, static_cast<uint32_t>(input)});
    for (int64_t i = 0; i < kSampledGradient; ++i) {
      elements.push_back(static_cast<size_t>(random.below(n)));
    }
    for (int64_t i : {int64_t{0}, n - 2, n - 1}) elements.push_back(static_cast<size_t>(i));
    return elements;
  }

  void check_gradient(size_t input, const std::vector<float>& ours, const char* when) {
    for (size_t k = 0; k < ours.size(); ++k) {
      if (std::isfinite(ours[k])) continue;
      report("gradient of input ", input, when, " is ", ours[k], " at ",
             unravel(static_cast<int64_t>(k), arrays_[input].shape));
      return;
    }
    const Tolerance& t = options_.tolerance;
    if (references_.size() <= input) references_.resize(inputs_.size());
    if (references_[input].empty()) {
      for (size_t element : elements_to_check(input)) {
        references_[input].push_back({element, numeric_gradient(input, element)});
      }
    }
    double largest = 0;
    for (const auto& [element, wanted] : references_[input]) {
      largest = std::max(largest, std::fabs(wanted));
    }
    // Terms rounded to bf16 may cancel.
    const double atol = t.grad_atol + (reals_ == Dtype::bf16 ? kBf16Step * largest : 0);
    for (const auto& [element, wanted] : references_[input]) {
      const double got = ours[element];
      if (!(std::fabs(got - wanted) <= atol + t.grad_rtol * std::fabs(wanted))) {
        report("gradient of input ", input, when, " at ",
               unravel(static_cast<int64_t>(element), arrays_[input].shape), " is ", got,
               ", the reference's numeric gradient is ", wanted);
        return;
      }
    }
  }

  void check_gradients(const Outcome& outcome) {
    for (size_t i = 0; i < outcome.gradients.size(); ++i) {
      if (wants_gradient(inputs_[i])) check_gradient(i, outcome.gradients[i], "");
    }
  }

  void check_repeatable(const Outcome& first, const std::vector<bool>& wanted) {
    if (test_device().is_cpu()) {
      check_thread_counts(first, wanted);
    } else if (std::getenv("GRAFT_TEST_ONE_ORDER") == nullptr) {
      check_thread_orders(first, wanted);
    }
  }

  // On a real device the order is its own, and two more runs are two more runs.
  void check_thread_orders(const Outcome& first, const std::vector<bool>& wanted) {
    for (const auto order : {cuda::ThreadOrder::reverse, cuda::ThreadOrder::random}) {
      cuda::set_thread_order(order, options_.seed);
      const Outcome again = run(wanted);
      cuda::set_thread_order(cuda::ThreadOrder::forward);
      compare_bits(first, again,
                   order == cuda::ThreadOrder::reverse ? "in reverse order" : "in random order",
                   "in forward order");
    }
  }

  void check_thread_counts(const Outcome& first, const std::vector<bool>& wanted) {
    const int all_threads = omp_get_max_threads();
    std::vector<int> counts{all_threads};
    if (options_.thread_independent) counts.insert(counts.end(), {1, 3});
    for (int threads : counts) {
      omp_set_num_threads(threads);
      const Outcome again = run(wanted);
      omp_set_num_threads(all_threads);
      compare_bits(first, again, text("with ", threads, " threads"), text("with ", all_threads));
    }
  }

  void compare_bits(const Outcome& first, const Outcome& again, const std::string& this_run,
                    const std::string& first_run) {
    if (!same_bits(first.result, again.result)) {
      report("a run ", this_run, " gave other bits than one ", first_run);
    }
    for (size_t i = 0; i < first.gradients.size() && i < again.gradients.size(); ++i) {
      if (same_bits(first.gradients[i], again.gradients[i])) continue;
      report("gradient of input ", i, ": a run ", this_run, " gave other bits than one ",
             first_run);
    }
  }

  void check_unrecorded() {
    const int64_t before = recorded_nodes();
    const Outcome frozen = run(std::vector<bool>(inputs_.size(), false));
    Outcome off;
    {
      NoGrad no_grad;
      Tensors tensors;
      for (size_t i = 0; i < arrays_.size(); ++i) {
        tensors.push_back(to_tensor(arrays_[i]).to(test_device()));
        if (wants_gradient(inputs_[i])) tensors.back().set_requires_grad();
      }
      off.result = to_array(call_(as_given(tensors)));
    }
    if (recorded_nodes() != before) report("recorded a node although nothing wants a gradient");
    // An op may take a shorter way when nothing is saved, hence within tolerance only.
    check_result(frozen.result, " with frozen inputs");
    check_result(off.result, " inside NoGrad");
  }

  // When memory runs out inside the op, a message names it. (A row's call may allocate by itself as
  // well, and an op may allocate nothing.)
  void check_named() {
    const std::string ending = " " + op_ + ":", inside = " " + op_ + " > ";
    std::string last;
    for (int64_t nth = 1;; ++nth) {
      Tensors tensors;
      for (const Array& array : arrays_) tensors.push_back(to_tensor(array).to(test_device()));
      const Tensors given = as_given(tensors);
      fail_allocation(nth);
      try {
        call_(given);
        fail_allocation(0);
        break;
      } catch (const Error& error) {
        fail_allocation(0);
        last = error.what();
      }
      if (last.find(ending) != std::string::npos || last.find(inside) != std::string::npos) return;
    }
    if (!last.empty()) {
      report(
          "does not name itself when memory runs out: open it with a RunningOp "
          "(engine/running.h); the message: ",
          last);
    }
  }

  void check_one_at_a_time(const std::vector<bool>& all) {
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i]) continue;
      std::vector<bool> one(all.size(), false);
      one[i] = true;
      const Outcome outcome = run(one);
      if (outcome.gradients.size() > i) check_gradient(i, outcome.gradients[i], " alone");
    }
  }

  const std::string& op_;
  const std::vector<Input>& inputs_;
  const Call& call_;
  const Reference& reference_;
  Options options_;
  const Dtype reals_;
  Arrays arrays_;
  Array expected_;
  std::vector<float> weights_;
  std::vector<std::vector<std::pair<size_t, double>>> references_;
  std::vector<std::string> problems_;
};

}  // namespace

Tolerance accumulating(int64_t length) {
  const double growth = std::sqrt(static_cast<double>(std::max<int64_t>(1, length)));
  return {1e-5, 4e-7 * growth, 2e-5, 1e-6 * growth};
}

Options Options::without_gradients() const {
  Options copy = *this;
  copy.gradients = false;
  return copy;
}
Options Options::with_seed(uint64_t seed_) const {
  Options copy = *this;
  copy.seed = seed_;
  return copy;
}
Options Options::without_bf16() const {
  Options copy = *this;
  copy.bf16 = false;
  return copy;
}
Options Options::with_threads_mattering() const {
  Options copy = *this;
  copy.thread_independent = false;
  return copy;
}

std::vector<std::string> run_row(const std::string& op, const std::vector<Input>& inputs,
                                 const Call& call, const Reference& reference,
                                 const Options& options) {
  std::vector<std::string> problems;
  try {
    problems = RowRun(op, inputs, call, reference, options, Dtype::f32).problems();
    if (options.bf16 && problems.empty() && takes_bf16(op)) {
      for (const std::string& problem :
           RowRun(op, inputs, call, reference, options, Dtype::bf16).problems()) {
        problems.push_back("in bf16: " + problem);
      }
    }
  } catch (const std::exception& error) {
    problems.push_back(text("threw: ", error.what()));
    cuda::reset_simulated_device();
  }
  poison_fresh_memory(false);
  std::string shapes;
  for (const Input& input : inputs) shapes += text(' ', input.dtype, input.shape);
  for (std::string& problem : problems) problem = text(op, shapes, ": ", problem);
  return problems;
}

void op_row(const std::string& op, const std::vector<Input>& inputs, const Call& call,
            const Reference& reference, const Options& options) {
  const std::vector<std::string> problems = run_row(op, inputs, call, reference, options);
  for (const std::string& problem : problems) FAIL_CHECK(problem);
  CHECK(problems.empty());
}

void op_error(const std::string& op, const std::string& message,
              const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    const std::string got = error.what();
    CAPTURE(got);
    CHECK_MESSAGE(got.starts_with(op), op, ": the message does not start with the op's name");
    CHECK_MESSAGE(got.find(message) != std::string::npos, op, ": wanted a message with \"", message,
                  "\"");
    return;
  }
  FAIL_CHECK(text(op, ": wanted an error with \"", message, "\", got none"));
}

}  // namespace graft::test
