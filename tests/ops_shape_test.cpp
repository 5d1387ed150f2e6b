// reshape, permute, concat, slice, gather, embedding, cast.
#include <cmath>
#include <limits>

#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Numbers that a move must not change.
const std::vector<double> kExtremes{kInf, -kInf, kNan, 3e38, 1e-42, -0.0, 1, -1};

Array reshaped(Array x, Shape shape) {
  x.shape = std::move(shape);
  return x;
}

// Element by element, by index.
Array permuted(const Array& x, const Axes& order) {
  const auto rank = static_cast<int64_t>(order.size());
  Shape shape;
  for (int64_t d : order) shape.push_back(x.shape[static_cast<size_t>((d + rank) % rank)]);
  Array y(shape, 0.0, x.dtype);
  for (int64_t i = 0; i < y.size(); ++i) {
    const Shape to = unravel(i, shape);
    Shape from(to.size());
    for (size_t k = 0; k < to.size(); ++k) {
      from[static_cast<size_t>((order[k] + rank) % rank)] = to[k];
    }
    y.values[static_cast<size_t>(i)] = x.at(from);
  }
  return y;
}

Array concatenated(const Arrays& parts, size_t axis) {
  Shape shape = parts[0].shape;
  for (size_t p = 1; p < parts.size(); ++p) shape[axis] += parts[p].shape[axis];
  Array y(shape, 0.0, parts[0].dtype);
  for (int64_t i = 0; i < y.size(); ++i) {
    Shape at = unravel(i, shape);
    size_t p = 0;
    while (at[axis] >= parts[p].shape[axis]) at[axis] -= parts[p++].shape[axis];
    y.values[static_cast<size_t>(i)] = parts[p].at(at);
  }
  return y;
}

Array sliced(const Array& x, size_t axis, int64_t start, int64_t count) {
  Shape shape = x.shape;
  shape[axis] = count;
  Array y(shape, 0.0, x.dtype);
  for (int64_t i = 0; i < y.size(); ++i) {
    Shape at = unravel(i, shape);
    at[axis] += start;
    y.values[static_cast<size_t>(i)] = x.at(at);
  }
  return y;
}

Array gathered(const Array& x, const Array& ids, size_t axis) {
  Array y(ids.shape);
  for (int64_t i = 0; i < y.size(); ++i) {
    Shape at = unravel(i, ids.shape);
    at[axis] = static_cast<int64_t>(ids.values[static_cast<size_t>(i)]);
    y.values[static_cast<size_t>(i)] = x.at(at);
  }
  return y;
}

}  // namespace

TEST_CASE("reshape") {
  const auto row = [](const Shape& from, const Shape& asked, const Shape& to) {
    CAPTURE(asked);
    op_row(
        "reshape", {real(from)}, [&](const Tensors& in) { return reshape(in[0], asked); },
        [&](const Arrays& in) { return reshaped(in[0], to); }, kExact);
  };
  row({}, {}, {});
  row({}, {1, 1}, {1, 1});
  row({1}, {}, {});
  row({0}, {3, 0, 2}, {3, 0, 2});
  row({0, 3}, {-1, 5}, {0, 5});
  row({2, 3, 5}, {-1}, {30});
  row({2, 3, 5}, {5, -1, 2}, {5, 3, 2});
  row({2, 3, 5}, {6, 5}, {6, 5});
  row({300, 130}, {130, -1}, {130, 300});
  op_row(
      "reshape", {given(kExtremes)},
      [](const Tensors& in) {
        return reshape(in[0], {2, 4});
      },
      [](const Arrays& in) {
        return reshaped(in[0], {2, 4});
      },
      Options(kExact).without_gradients());
  op_row(
      "reshape", {index({4, 3}, 9)},
      [](const Tensors& in) {
        return reshape(in[0], {3, 4});
      },
      [](const Arrays& in) {
        return reshaped(in[0], {3, 4});
      },
      kExact);
  const Tensor x = Tensor::zeros({2, 3});
  CHECK(reshape(x, {3, 2}).storage() == x.storage());
  op_error("reshape", "of 6 elements cannot take [4, 2]", [&] { reshape(x, {4, 2}); });
  op_error("reshape", "cannot take [4, -1]: no size fits -1", [&] { reshape(x, {4, -1}); });
  op_error("reshape", "one may be -1", [&] { reshape(x, {-1, -1}); });
  op_error("reshape", "sizes are 0 or more", [&] { reshape(x, {-2, 3}); });
  op_error("reshape", "no size fits -1", [&] { reshape(Tensor::zeros({0}), {0, -1}); });
  op_error("reshape", "an undefined tensor", [] { reshape(Tensor(), {1}); });
}

TEST_CASE("permute") {
  const auto row = [](const Shape& shape, const Axes& order) {
    CAPTURE(order);
    op_row(
        "permute", {real(shape)}, [&](const Tensors& in) { return permute(in[0], order); },
        [&](const Arrays& in) { return permuted(in[0], order); }, kExact);
  };
  row({}, {});
  row({1}, {0});
  row({0, 3}, {1, 0});
  row({3, 5}, {1, 0});
  row({3, 5}, {0, 1});
  row({2, 3, 5}, {2, 0, 1});
  row({2, 3, 5}, {-2, -3, -1});
  row({2, 3, 5, 7}, {0, 3, 1, 2});  // NHWC to NCHW
  row({2, 3, 5, 7}, {0, 2, 3, 1});  // and back
  row({2, 3, 5, 7}, {3, 1, 2, 0});
  row({2, 1, 5, 1, 7}, {4, 1, 0, 3, 2});
  row({2, 3, 2, 3, 2, 3}, {5, 3, 1, 0, 2, 4});
  row({130, 259}, {1, 0});  // more than one thread's share
  row({3, 19, 35, 33}, {0, 3, 1, 2});
  row({3, 19, 35, 33}, {2, 1, 3, 0});
  row({19, 35, 66}, {1, 0, 2});
  row({3, 5, 6, 8}, {0, 2, 1, 3});    // attention's heads
  row({2, 40, 30, 3}, {0, 3, 1, 2});  // pictures: few channels
  op_row(
      "permute", {given(kExtremes, {2, 4})},
      [](const Tensors& in) {
        return permute(in[0], {1, 0});
      },
      [](const Arrays& in) {
        return permuted(in[0], {1, 0});
      },
      Options(kExact).without_gradients());
  const auto any_type = [](Input input) {
    input.differentiable = false;
    op_row(
        "permute", {input},
        [](const Tensors& in) {
          return permute(in[0], {2, 0, 1});
        },
        [](const Arrays& in) {
          return permuted(in[0], {2, 0, 1});
        },
        kExact);
  };
  for (Dtype dtype : {Dtype::i64, Dtype::i32, Dtype::u8, Dtype::f64}) {
    Input input = real({17, 18, 35}, 0, 200);
    input.dtype = dtype;
    any_type(input);
  }
  const Tensor x = Tensor::zeros({2, 3});
  op_error("permute", "expected each of the 2 axes of f32[2, 3] once, got [0]",
           [&] { permute(x, {0}); });
  op_error("permute", "once, got [1, 1]", [&] { permute(x, {1, 1}); });
  op_error("permute", "axis 2 is outside f32[2, 3]", [&] { permute(x, {0, 2}); });
  op_error("permute", "an undefined tensor", [] { permute(Tensor(), {}); });
}

TEST_CASE("concat") {
  const auto row = [](const std::vector<Shape>& shapes, int64_t axis) {
    CAPTURE(axis);
    std::vector<Input> inputs;
    for (const Shape& shape : shapes) inputs.push_back(real(shape));
    const auto rank = static_cast<int64_t>(shapes[0].size());
    op_row(
        "concat", inputs, [&](const Tensors& in) { return concat(in, axis); },
        [&](const Arrays& in) {
          return concatenated(in, static_cast<size_t>(axis < 0 ? axis + rank : axis));
        },
        kExact);
  };
  row({{1}}, 0);
  row({{0}, {0}}, 0);
  row({{3}, {0}, {2}}, 0);
  row({{2, 3}, {4, 3}}, 0);
  row({{2, 3}, {2, 1}, {2, 4}}, 1);
  row({{2, 3, 5}, {2, 2, 5}}, -2);
  row({{2, 3, 5}, {2, 3, 1}}, -1);
  row({{90, 301}, {90, 203}}, 1);
  row({{301, 90}, {203, 90}}, 0);
  row({{6, 8}, {6, 12}}, 1);
  op_row(
      "concat", {given(kExtremes), given(kExtremes)}, [](const Tensors& in) { return concat(in); },
      [](const Arrays& in) { return concatenated(in, 0); }, Options(kExact).without_gradients());
  op_row(
      "concat", {index({2, 3}, 9), index({2, 1}, 9)},
      [](const Tensors& in) { return concat(in, 1); },
      [](const Arrays& in) { return concatenated(in, 1); }, kExact);
  const Tensor x = Tensor::zeros({2, 3});
  op_error("concat", "expected at least one tensor", [] { concat({}); });
  op_error("concat", "along axis 0 expected parts like f32[2, 3], got f32[2, 4]", [&] {
    concat({x, Tensor::zeros({2, 4})});
  });
  op_error("concat", "got f32[3]", [&] { concat({x, Tensor::zeros({3})}); });
  op_error("concat", "got i64[2, 3]", [&] { concat({x, Tensor::zeros({2, 3}, Dtype::i64)}); });
  op_error("concat", "got an undefined tensor", [&] { concat({x, Tensor()}); });
  op_error("concat", "axis 2 is outside f32[2, 3]", [&] { concat({x, x}, 2); });
}

TEST_CASE("slice") {
  const auto row = [](const Shape& shape, int64_t axis, int64_t start, int64_t count) {
    CAPTURE(axis);
    CAPTURE(start);
    const auto rank = static_cast<int64_t>(shape.size());
    op_row(
        "slice", {real(shape)}, [&](const Tensors& in) { return slice(in[0], axis, start, count); },
        [&](const Arrays& in) {
          return sliced(in[0], static_cast<size_t>(axis < 0 ? axis + rank : axis), start, count);
        },
        kExact);
  };
  row({1}, 0, 0, 1);
  row({5}, 0, 2, 0);
  row({0, 3}, 1, 1, 2);
  row({7, 3}, 0, 2, 4);
  row({7, 3}, 1, 2, 1);
  row({2, 7, 3}, -2, 0, 7);
  row({2, 7, 3}, -2, 6, 1);
  row({130, 301}, 1, 17, 257);
  row({301, 130}, 0, 17, 257);
  op_row(
      "slice", {given(kExtremes)}, [](const Tensors& in) { return slice(in[0], 0, 1, 6); },
      [](const Arrays& in) { return sliced(in[0], 0, 1, 6); }, Options(kExact).without_gradients());
  op_row(
      "slice", {index({5, 3}, 9)}, [](const Tensors& in) { return slice(in[0], 1, 1, 2); },
      [](const Arrays& in) { return sliced(in[0], 1, 1, 2); }, kExact);
  const Tensor x = Tensor::zeros({5, 3});
  op_error("slice", "entries 4 to 4 + 2 along axis 0 are outside f32[5, 3]",
           [&] { slice(x, 0, 4, 2); });
  op_error("slice", "are outside f32[5, 3]", [&] { slice(x, 0, -1, 2); });
  op_error("slice", "are outside f32[5, 3]", [&] { slice(x, 0, 1, -1); });
  op_error("slice", "are outside f32[5, 3]",
           [&] { slice(x, 0, 1, std::numeric_limits<int64_t>::max()); });
  op_error("slice", "axis -3 is outside f32[5, 3]", [&] { slice(x, -3, 0, 1); });
  op_error("slice", "an undefined tensor", [] { slice(Tensor(), 0, 0, 1); });
}

TEST_CASE("gather") {
  const auto row = [](const Shape& shape, const Shape& ids, int64_t axis) {
    CAPTURE(ids);
    CAPTURE(axis);
    const auto rank = static_cast<int64_t>(shape.size());
    const auto d = static_cast<size_t>(axis < 0 ? axis + rank : axis);
    op_row(
        "gather", {real(shape), index(ids, shape[d])},
        [&](const Tensors& in) { return gather(in[0], in[1], axis); },
        [&](const Arrays& in) { return gathered(in[0], in[1], d); }, kExact);
  };
  row({1}, {1}, 0);
  row({5}, {0}, 0);
  row({5}, {9}, 0);  // indices repeat
  row({3, 5}, {3, 2}, 1);
  row({3, 5}, {7, 5}, 0);
  row({3, 5}, {2, 4}, 0);  // indices cover a part
  row({2, 3, 5}, {2, 4, 3}, -2);
  row({64, 1000}, {64, 1}, 1);
  row({50, 301}, {900, 300}, 0);
  row({301, 50}, {300, 900}, 1);
  op_row(
      "gather", {given(kExtremes), given({7, 0, 2, 1, 1}, {5}, Dtype::i64)},
      [](const Tensors& in) { return gather(in[0], in[1], 0); },
      [](const Arrays& in) { return gathered(in[0], in[1], 0); },
      Options(kExact).without_gradients());
  const Tensor x = Tensor::zeros({2, 3});
  const auto ids = [](const std::vector<int64_t>& values, const Shape& shape) {
    return Tensor::of(values, shape);
  };
  op_error("gather", "index 3 at position 1 is outside 0..2", [&] {
    gather(x, ids({0, 3}, {2, 1}), 1);
  });
  op_error("gather", "index -1 at position 0 is outside 0..1", [&] {
    gather(x, ids({-1}, {1, 1}), 0);
  });
  op_error("gather", "expected i64 indices of rank 2, got i64[2]", [&] {
    gather(x, ids({0, 1}, {2}), 1);
  });
  op_error("gather", "expected i64 indices of rank 2, got f32[2, 3]", [&] { gather(x, x, 1); });
  op_error("gather", "indices i64[3, 1] are larger than f32[2, 3] in dimension 0", [&] {
    gather(x, ids({0, 0, 0}, {3, 1}), 1);
  });
  op_error("gather", "axis 2 is outside f32[2, 3]", [&] { gather(x, ids({0}, {1, 1}), 2); });
  op_error("gather", "an undefined tensor", [&] { gather(Tensor(), ids({0}, {1}), 0); });
}

TEST_CASE("embedding") {
  const auto reference = [](const Arrays& in) {
    const int64_t width = in[0].shape[1];
    Shape shape = in[1].shape;
    shape.push_back(width);
    Array y(shape);
    for (int64_t i = 0; i < y.size(); ++i) {
      const auto id = static_cast<int64_t>(in[1].values[static_cast<size_t>(i / width)]);
      y.values[static_cast<size_t>(i)] = in[0].at({id, i % width});
    }
    return y;
  };
  const auto call = [](const Tensors& in) { return embedding(in[0], in[1]); };
  const std::vector<std::pair<Shape, Shape>> cases{
      {{1, 1}, {1}},          {{5, 3}, {0}},      {{5, 3}, {}},
      {{5, 3}, {2, 7}},       {{7, 0}, {3}},      {{3, 5}, {40}},  // every row many times
      {{1003, 37}, {29, 33}}, {{2, 8}, {3, 300}}, {{70000, 4}, {600}},
  };
  for (const auto& [weight, ids] : cases) {
    CAPTURE(ids);
    op_row("embedding", {real(weight), index(ids, weight[0])}, call, reference, kExact);
  }
  op_row("embedding", {given(kExtremes, {4, 2}), index({9}, 4)}, call, reference,
         Options(kExact).without_gradients());
  const Tensor weight = Tensor::zeros({4, 2});
  op_error("embedding", "index 4 at position 1 is outside 0..3", [&] {
    embedding(weight, Tensor::of<int64_t>({0, 4}));
  });
  op_error("embedding", "index -1 at position 0",
           [&] { embedding(weight, Tensor::of<int64_t>({-1})); });
  op_error("embedding", "expected i64 indices, got i32[1]",
           [&] { embedding(weight, Tensor::of<int32_t>({1})); });
  op_error("embedding", "expected an f32 weight of shape (rows, width), got f32[3]",
           [] { embedding(Tensor::zeros({3}), Tensor::of<int64_t>({1})); });
}

TEST_CASE("cast") {
  const auto row = [](const Input& input, Dtype to, const std::function<double(double)>& f) {
    CAPTURE(to);
    op_row(
        "cast", {input}, [&](const Tensors& in) { return cast(in[0], to); },
        [&](const Arrays& in) {
          Array y = map(in[0], f);
          y.dtype = to;
          return y;
        },
        Options(kExact).without_gradients());
  };
  const auto same = [](double x) { return x; };
  const auto truncated = [](double x) { return std::trunc(x); };
  for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{3, 5}, Shape{40009}}) {
    row(real(shape, -300, 300), Dtype::f64, same);
    row(real(shape, -300, 300), Dtype::i64, truncated);
    row(real(shape, -300, 300), Dtype::i32, truncated);
    row(real(shape, 0, 255), Dtype::u8, truncated);
    row(index(shape, 1000), Dtype::f32, same);
    row(index(shape, 1000), Dtype::i32, same);
    row(index(shape, 1000), Dtype::u8, [](double x) { return std::fmod(x, 256.0); });
  }
  row(given({kInf, -kInf, kNan, 1e-42, -0.0, 3e38}), Dtype::f64, same);
  row(given({1e300, -1e300, 1.0 + 0x1p-25, kNan}, {4}, Dtype::f64), Dtype::f32,
      [](double x) { return static_cast<double>(static_cast<float>(x)); });
  row(given({3e38, -kInf, kNan, -1.5}), Dtype::i64, [](double x) {
    if (std::isnan(x)) return 0.0;
    return x > 1 ? 0x1p63 : (x < -2 ? -0x1p63 : -1.0);
  });
  op_error("cast", "an undefined tensor", [] { cast(Tensor(), Dtype::f32); });
  const Tensor x = Tensor::zeros({3}).set_requires_grad();
  CHECK(!cast(x, Dtype::f64).requires_grad());
}

TEST_CASE("cast: half precisions round to nearest, ties to even") {
  // Every 16-bit pattern survives f32 and back; NaN stays NaN.
  std::vector<int32_t> all;
  for (int32_t bits = 0; bits < 65536; ++bits) all.push_back(bits);
  const Tensor patterns = cast(Tensor::of(all).to(test_device()), Dtype::i16);
  for (Dtype half : {Dtype::bf16, Dtype::f16}) {
    const Tensor halves(patterns.storage(), 0, {65536}, half);
    const Tensor back = cast(cast(halves, Dtype::f32), half);
    const Tensor halves_here = halves.to(kCpu), back_here = back.to(kCpu);
    const auto* before = static_cast<const uint16_t*>(halves_here.raw());
    const auto* after = static_cast<const uint16_t*>(back_here.raw());
    const uint16_t infinity = half == Dtype::bf16 ? 0x7F80 : 0x7C00;
    int64_t different = 0;
    for (int64_t i = 0; i < 65536; ++i) {
      const bool nan = (before[i] & 0x7FFF) > infinity;
      const bool still_nan = (after[i] & 0x7FFF) > infinity;
      different += nan ? !still_nan : before[i] != after[i];
    }
    CHECK(different == 0);
  }
  const auto bits_of = [](const std::vector<float>& values, Dtype half) {
    const Tensor halves = cast(Tensor::of(values).to(test_device()), half).to(kCpu);
    const auto* bits = static_cast<const uint16_t*>(halves.raw());
    return std::vector<uint32_t>(bits, bits + values.size());
  };
  // A tie below an even and below an odd number, just above a tie, and beyond the largest.
  CHECK(bits_of({1.0f + 0x1p-8f, 1.0f + 0x3p-8f, 1.0f + 0x1p-8f + 0x1p-20f, 3.4e38f, -3.4e38f},
                Dtype::bf16) == std::vector<uint32_t>{0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80});
  CHECK(bits_of({1.0f + 0x1p-11f, 1.0f + 0x3p-11f, 1.0f + 0x1p-11f + 0x1p-20f, 65519.0f, 65520.0f,
                 0x1p-25f, 0x3p-25f},
                Dtype::f16) ==
        std::vector<uint32_t>{0x3C00, 0x3C02, 0x3C01, 0x7BFF, 0x7C00, 0x0000, 0x0002});
}

TEST_CASE("cast: every pair of types keeps small whole numbers") {
  const std::vector<Dtype> types{Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64, Dtype::i64,
                                 Dtype::i32, Dtype::i16,  Dtype::i8,  Dtype::u8,  Dtype::boolean};
  const Tensor x = Tensor::of<float>({0, 1, 2, 100, 1}).to(test_device());
  const Tensor truth = Tensor::of<float>({0, 1, 1, 1, 1});
  for (Dtype from : types) {
    for (Dtype to : types) {
      CAPTURE(from);
      CAPTURE(to);
      const bool boolean = from == Dtype::boolean || to == Dtype::boolean;
      const Tensor y = cast(cast(cast(x, from), to), Dtype::f32);
      CHECK(y.to_vector<float>() == (boolean ? truth : x).to_vector<float>());
    }
  }
  CHECK(cast(Tensor::of<float>({300, -1, -129}), Dtype::u8).to_vector<uint8_t>() ==
        std::vector<uint8_t>{44, 255, 127});
}
