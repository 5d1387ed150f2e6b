// Convolution on oneDNN, NHWC images in f32 or bf16 and OHWI filters; accumulated in f32.
//
// bf16 convolutions take bf16 filters (packing an f32 one rounds it) and give f32 gradients of
// theirs. On a machine without instructions for them they run in f32 on copies (onednn.h).
//
// Filters are read in the layout that oneDNN prefers (plan.packing), images as they are.
// Backward-data of a 1x1 convolution is a matrix product g (pixels, out) x weight (out, in):
// oneDNN's product is faster than its convolution there once the result has 64 channels (measured
// on AVX-512: 411-535 against 330-499 GFLOP/s), slower below.
//
// Determinism: for one number of threads results are bitwise repeatable. Backward-weights splits
// the batch among the threads, so that its last bits depend on their number.
#include <cstring>

#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu {

using namespace onednn;

namespace {

constexpr auto kF32 = Memory::data_type::f32;
constexpr auto kAny = Memory::format_tag::any;
constexpr auto kDirect = dnnl::algorithm::convolution_direct;
constexpr int64_t kProductChannels = 64;

struct Geometry {
  Layout x, y, weight, any_weight, any_gradient, bias;
  Memory::dims stride, dilation, pad_begin, pad_end;

  Geometry(const ConvShape& s, Memory::data_type type)
      : x({s.batch, s.in_channels, s.in_height, s.in_width}, type, Memory::format_tag::nhwc),
        y({s.batch, s.out_channels, s.out_height, s.out_width}, type, Memory::format_tag::nhwc),
        bias({s.out_channels}, kF32, Memory::format_tag::x),
        stride{s.stride_height, s.stride_width},
        dilation{s.dilation_height - 1, s.dilation_width - 1},
        pad_begin{s.pad_top, s.pad_left},
        pad_end{s.pad_bottom, s.pad_right} {
    const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups;
    const int64_t row = s.kernel_width * in, filter = s.kernel_height * row;
    if (s.groups == 1) {
      const Memory::dims dims{out, in, s.kernel_height, s.kernel_width};
      weight = Layout(dims, kF32, Memory::dims{filter, 1, row, in});
      any_weight = Layout(dims, type, kAny);
      any_gradient = Layout(dims, kF32, kAny);
    } else {
      const Memory::dims dims{s.groups, out, in, s.kernel_height, s.kernel_width};
      weight = Layout(dims, kF32, Memory::dims{out * filter, filter, 1, row, in});
      any_weight = Layout(dims, type, kAny);
      any_gradient = Layout(dims, kF32, kAny);
    }
  }

  dnnl::convolution_forward::primitive_desc forward(dnnl::prop_kind kind,
                                                    const ConvEpilogue& epilogue) const {
    dnnl::primitive_attr attributes = user_scratchpad();
    dnnl::post_ops after;
    if (epilogue.residual) after.append_sum(1.0f);
    if (epilogue.activation == Activation::relu) {
      after.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
    } else if (epilogue.activation == Activation::relu6) {
      after.append_eltwise(1.0f, dnnl::algorithm::eltwise_bounded_relu, 6.0f, 0.0f);
    }
    attributes.set_post_ops(after);
    return {epilogue.bias ? dnnl::convolution_forward::desc(kind, kDirect, x, any_weight, bias, y,
                                                            stride, dilation, pad_begin, pad_end)
                          : dnnl::convolution_forward::desc(kind, kDirect, x, any_weight, y, stride,
                                                            dilation, pad_begin, pad_end),
            attributes, engine()};
  }
};

LibraryPlan plan(int64_t kind, const ConvShape& s, const ConvEpilogue& epilogue,
                 const std::function<LibraryPlan()>& make) {
  const int64_t after =
      epilogue.bias + 2 * epilogue.residual + 4 * static_cast<int64_t>(epilogue.activation);
  return cached({kind,
                 after,
                 s.batch,
                 s.in_height,
                 s.in_width,
                 s.in_channels,
                 s.out_height,
                 s.out_width,
                 s.out_channels,
                 s.kernel_height,
                 s.kernel_width,
                 s.stride_height,
                 s.stride_width,
                 s.pad_top,
                 s.pad_bottom,
                 s.pad_left,
                 s.pad_right,
                 s.groups,
                 s.dilation_height,
                 s.dilation_width,
                 static_cast<int64_t>(s.dtype)},
                [&] {
                  return checked("conv2d", make, " for x [", s.batch, ", ", s.in_height, ", ",
                                 s.in_width, ", ", s.in_channels, "], filters [", s.out_channels,
                                 ", ", s.kernel_height, ", ", s.kernel_width, ", ",
                                 s.in_channels / s.groups, "]");
                });
}

bool backward_data_as_product(const ConvShape& s) {
  return s.groups == 1 && s.kernel_height == 1 && s.kernel_width == 1 && s.stride_height == 1 &&
         s.stride_width == 1 && s.out_height == s.in_height && s.out_width == s.in_width &&
         s.pad_top == 0 && s.pad_left == 0 && s.in_channels >= kProductChannels;
}

// Whether each tap along one axis meets the image somewhere.
bool taps_meet(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t dilation,
               int64_t pad) {
  for (int64_t tap = 0; tap < kernel; ++tap) {
    bool meets = false;
    for (int64_t o = 0; o < out && !meets; ++o) {
      const int64_t at = o * stride + tap * dilation - pad;
      meets = at >= 0 && at < in;
    }
    if (!meets) return false;
  }
  return true;
}

// What backward-weights computes with. In bf16 oneDNN 2.6 leaves the gradient of a tap that meets
// nothing but padding as it was.
Memory::data_type gradient_computed_as(const ConvShape& s) {
  const bool meet = taps_meet(s.in_height, s.out_height, s.kernel_height, s.stride_height,
                              s.dilation_height, s.pad_top) &&
                    taps_meet(s.in_width, s.out_width, s.kernel_width, s.stride_width,
                              s.dilation_width, s.pad_left);
  return meet ? computed_as(s.dtype) : kF32;
}

// Copies of the images and of the result, where the types differ.
Copies image_copies(const ConvShape& s, Memory::data_type type) {
  const bool wide = s.dtype == Dtype::bf16 && type == kF32;
  return {wide, false, wide};
}

void copy(void* to, const void* from, int64_t bytes) {
  parallel_for(bytes, 1, [=](int64_t begin, int64_t end) {
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                static_cast<size_t>(end - begin));
  });
}

}  // namespace

LibraryPlan conv_forward_plan(const ConvShape& s, const ConvEpilogue& epilogue) {
  return plan('f', s, epilogue, [&] {
    const Geometry geometry(s, computed_as(s.dtype));
    const auto chosen = geometry.forward(dnnl::prop_kind::forward_inference, epilogue);
    Operation made;
    made.source = geometry.x;
    made.target = geometry.y;
    if (epilogue.bias) made.bias = geometry.bias;
    made.weight = chosen.weights_desc();
    made.scratch = chosen.scratchpad_desc();
    made.primitive = dnnl::convolution_forward(chosen);
    return plan_of(std::move(made), geometry.weight, image_copies(s, computed_as(s.dtype)));
  });
}

LibraryPlan conv_backward_data_plan(const ConvShape& s) {
  return plan('d', s, {}, [&] {
    if (backward_data_as_product(s)) {
      MatmulShape shape{.batch = 1,
                        .m = s.batch * s.out_height * s.out_width,
                        .n = s.in_channels,
                        .k = s.out_channels,
                        .packed_b = true,
                        .weight_b = true,
                        .dtype = s.dtype,
                        .y_dtype = s.dtype};
      Layout plain;
      Operation made = product(shape, plain);
      made.as_product = true;
      return plan_of(std::move(made), plain, copies_of(shape));
    }
    const Geometry geometry(s, computed_as(s.dtype));
    const dnnl::convolution_backward_data::primitive_desc chosen(
        {kDirect, geometry.x, geometry.any_weight, geometry.y, geometry.stride, geometry.dilation,
         geometry.pad_begin, geometry.pad_end},
        user_scratchpad(), engine(), geometry.forward(dnnl::prop_kind::forward_training, {}));
    Operation made;
    made.source = geometry.y;
    made.target = geometry.x;
    made.weight = chosen.weights_desc();
    made.scratch = chosen.scratchpad_desc();
    made.primitive = dnnl::convolution_backward_data(chosen);
    return plan_of(std::move(made), geometry.weight, image_copies(s, computed_as(s.dtype)));
  });
}

LibraryPlan conv_backward_weight_plan(const ConvShape& s) {
  return plan('w', s, {}, [&] {
    const Memory::data_type type = gradient_computed_as(s);
    const Geometry geometry(s, type);
    const dnnl::convolution_backward_weights::primitive_desc chosen(
        {kDirect, geometry.x, geometry.any_gradient, geometry.y, geometry.stride, geometry.dilation,
         geometry.pad_begin, geometry.pad_end},
        user_scratchpad(), engine(), geometry.forward(dnnl::prop_kind::forward_training, {}));
    Operation made;
    made.source = geometry.x;
    made.target = geometry.y;
    made.weight = chosen.diff_weights_desc();
    made.plain_weight = geometry.weight;
    made.scratch = chosen.scratchpad_desc();
    made.primitive = dnnl::convolution_backward_weights(chosen);
    LibraryPlan result;
    result.scratch_bytes = made.scratch.get_size();
    if (made.weight != made.plain_weight) {
      made.intermediate_offset = (result.scratch_bytes + 63) / 64 * 64;
      result.scratch_bytes = made.intermediate_offset + made.weight.get_size();
      made.reorder = dnnl::reorder(
          dnnl::reorder::primitive_desc(engine(), made.weight, engine(), made.plain_weight));
    }
    if (image_copies(s, type).source) {
      made.source_copy = copy_of(made.source, result.scratch_bytes);
      made.target_copy = copy_of(made.target, result.scratch_bytes);
    }
    result.primitive = std::make_shared<const Operation>(std::move(made));
    return result;
  });
}

void conv_forward(const LibraryPlan& plan, Reals y, ConstReals x, const void* weight,
                  const float* bias, ConstReals residual, void* scratch) {
  checked("conv2d", [&] {
    const Operation& op = operation(plan);
    // The sum that oneDNN fuses reads its other term from the result's memory.
    if (residual != nullptr && op.target_copy) {
      widened(op.target, residual.data, op.target_copy, scratch);
    } else if (residual != nullptr && residual.data != y.data) {
      copy(y.data, residual.data, static_cast<int64_t>(op.target.get_size()));
    }
    op.primitive.execute(
        stream(),
        {{DNNL_ARG_SRC, wrap(op.source, widened(op.source, x.data, op.source_copy, scratch))},
         {DNNL_ARG_WEIGHTS, wrap(op.weight, weight)},
         {DNNL_ARG_BIAS, wrap(op.bias, bias)},
         {DNNL_ARG_DST, wrap(op.target, wide_target(y.data, op.target_copy, scratch))},
         {DNNL_ARG_SCRATCHPAD, wrap(op.scratch, scratch)}});
    narrow(y.data, op.target, op.target_copy, scratch);
  });
}

void conv_backward_data(const LibraryPlan& plan, Reals dx, ConstReals g, const void* weight,
                        void* scratch) {
  if (operation(plan).as_product) {
    matmul(plan, dx, g, weight, {}, scratch);
    return;
  }
  checked("conv2d backward", [&] {
    const Operation& op = operation(plan);
    op.primitive.execute(
        stream(),
        {{DNNL_ARG_DIFF_DST, wrap(op.source, widened(op.source, g.data, op.source_copy, scratch))},
         {DNNL_ARG_WEIGHTS, wrap(op.weight, weight)},
         {DNNL_ARG_DIFF_SRC, wrap(op.target, wide_target(dx.data, op.target_copy, scratch))},
         {DNNL_ARG_SCRATCHPAD, wrap(op.scratch, scratch)}});
    narrow(dx.data, op.target, op.target_copy, scratch);
  });
}

void conv_backward_weight(const LibraryPlan& plan, float* dw, ConstReals x, ConstReals g,
                          void* scratch) {
  checked("conv2d backward", [&] {
    const Operation& op = operation(plan);
    const bool direct = op.weight == op.plain_weight;
    const Memory result =
        wrap(op.weight, direct ? static_cast<void*>(dw)
                               : static_cast<char*>(scratch) + op.intermediate_offset);
    op.primitive.execute(
        stream(),
        {{DNNL_ARG_SRC, wrap(op.source, widened(op.source, x.data, op.source_copy, scratch))},
         {DNNL_ARG_DIFF_DST, wrap(op.target, widened(op.target, g.data, op.target_copy, scratch))},
         {DNNL_ARG_DIFF_WEIGHTS, result},
         {DNNL_ARG_SCRATCHPAD, wrap(op.scratch, scratch)}});
    if (!direct) {
      op.reorder.execute(stream(),
                         {{DNNL_ARG_FROM, result}, {DNNL_ARG_TO, wrap(op.plain_weight, dw)}});
    }
  });
}

}  // namespace graft::cpu
