// The table of contents: every kernel of every backend, declared once. The files of list/ hold the
// declarations by family and are included into each backend's namespace, so that a kernel has one
// signature everywhere.
//
// list/library.h   kernels on top of oneDNN here and cuBLASLt, cuDNN there
// list/svd.h       on top of Eigen here, our own there
// the other lists  our own kernels; on the CPU compiled twice (AVX2, AVX-512) and picked at start
//
// All pointers are to contiguous row-major arrays on the backend's device; sizes are in elements; n
// == 0 is allowed everywhere. Outputs are overwritten unless a line says they are added to.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/functors.h"
#include "kernels/image.h"
#include "kernels/isa.h"
#include "kernels/plan.h"
#include "kernels/types.h"

namespace graft {

namespace cpu {
#include "kernels/list/library.h"
#include "kernels/list/svd.h"
namespace avx2 {
#include "kernels/list/attention.h"
#include "kernels/list/depthwise.h"
#include "kernels/list/fused.h"
#include "kernels/list/image.h"
#include "kernels/list/loss.h"
#include "kernels/list/noise.h"
#include "kernels/list/norm.h"
#include "kernels/list/optim.h"
#include "kernels/list/pointwise.h"
#include "kernels/list/pooling.h"
#include "kernels/list/reduce.h"
#include "kernels/list/shape.h"
}  // namespace avx2
namespace avx512 {
#include "kernels/list/attention.h"
#include "kernels/list/depthwise.h"
#include "kernels/list/fused.h"
#include "kernels/list/image.h"
#include "kernels/list/loss.h"
#include "kernels/list/noise.h"
#include "kernels/list/norm.h"
#include "kernels/list/optim.h"
#include "kernels/list/pointwise.h"
#include "kernels/list/pooling.h"
#include "kernels/list/reduce.h"
#include "kernels/list/shape.h"
}  // namespace avx512

// Whether the processor (and the GRAFT_ISA environment variable, which can say "avx2") lets us use
// AVX-512. Throws on a processor without AVX2.
bool use_avx512();

#ifndef GRAFT_ISA
// cpu::name is avx2::name or avx512::name, chosen once when the program starts.
#define GRAFT_PICK(name) \
  inline decltype(avx2::name)& name = use_avx512() ? avx512::name : avx2::name
GRAFT_PICK(attention_forward);
GRAFT_PICK(attention_backward);
GRAFT_PICK(unary);
GRAFT_PICK(unary_grad);
GRAFT_PICK(depthwise_forward);
GRAFT_PICK(depthwise_backward_data);
GRAFT_PICK(depthwise_backward_weight);
GRAFT_PICK(render_images);
GRAFT_PICK(max_pool);
GRAFT_PICK(max_pool_grad);
GRAFT_PICK(avg_pool);
GRAFT_PICK(avg_pool_grad);
GRAFT_PICK(adaptive_avg_pool);
GRAFT_PICK(adaptive_avg_pool_grad);
GRAFT_PICK(binary);
GRAFT_PICK(binary_broadcast);
GRAFT_PICK(binary_grad);
GRAFT_PICK(reduce_sum);
GRAFT_PICK(reduce_max);
GRAFT_PICK(reduce_max_grad);
GRAFT_PICK(fill);
GRAFT_PICK(permute);
GRAFT_PICK(copy_rows);
GRAFT_PICK(first_outside);
GRAFT_PICK(gather);
GRAFT_PICK(gather_grad);
GRAFT_PICK(embedding);
GRAFT_PICK(embedding_grad);
GRAFT_PICK(cast);
GRAFT_PICK(batch_norm_statistics);
GRAFT_PICK(batch_norm_frozen_statistics);
GRAFT_PICK(batch_norm_apply);
GRAFT_PICK(batch_norm_grad);
GRAFT_PICK(layer_norm);
GRAFT_PICK(layer_norm_grad);
GRAFT_PICK(group_norm);
GRAFT_PICK(group_norm_grad);
GRAFT_PICK(softmax);
GRAFT_PICK(softmax_grad);
GRAFT_PICK(log_softmax);
GRAFT_PICK(log_softmax_grad);
GRAFT_PICK(cross_entropy);
GRAFT_PICK(cross_entropy_grad);
GRAFT_PICK(pair_loss);
GRAFT_PICK(pair_loss_sum);
GRAFT_PICK(pair_loss_grad);
GRAFT_PICK(loss_sum);
GRAFT_PICK(dropout);
GRAFT_PICK(drop_path);
GRAFT_PICK(bias_gelu_dropout);
GRAFT_PICK(bias_gelu_dropout_grad);
GRAFT_PICK(dropout_add_layer_norm);
GRAFT_PICK(dropout_add_layer_norm_grad);
GRAFT_PICK(sgd_step);
GRAFT_PICK(adamw_step);
GRAFT_PICK(scale_tensors);
GRAFT_PICK(gradient_square_sum);
GRAFT_PICK(clip_factor);
#undef GRAFT_PICK
#endif
}  // namespace cpu

namespace cuda {
#include "kernels/list/attention.h"
#include "kernels/list/depthwise.h"
#include "kernels/list/fused.h"
#include "kernels/list/image.h"
#include "kernels/list/library.h"
#include "kernels/list/loss.h"
#include "kernels/list/noise.h"
#include "kernels/list/norm.h"
#include "kernels/list/optim.h"
#include "kernels/list/pointwise.h"
#include "kernels/list/pooling.h"
#include "kernels/list/reduce.h"
#include "kernels/list/shape.h"
#include "kernels/list/svd.h"
}  // namespace cuda

}  // namespace graft
