// Kernels on top of a vendor's library. Included by kernels.h once per backend.
//
// The _plan functions look the shape up in a cache that all threads share. Scratch:
// plan.scratch_bytes, 64-byte aligned, contents arbitrary. Plans depend on the number of threads
// and are made where they are used.

LibraryPlan conv_forward_plan(const ConvShape& shape, const ConvEpilogue& epilogue);
LibraryPlan conv_backward_data_plan(const ConvShape& shape);
LibraryPlan conv_backward_weight_plan(const ConvShape& shape);
LibraryPlan matmul_plan(const MatmulShape& shape);

// Rewrites a weight (OHWI filter, or the b of a product) in the layout that plan.packing names.
void pack_weight(const LibraryPlan& plan, void* packed, const float* weight);

// `weight` is packed when plan.packing is not 0. bias and residual: null unless the plan has them.
// y may not overlap x; residual may be y itself.
void conv_forward(const LibraryPlan& plan, float* y, const float* x, const void* weight,
                  const float* bias, const float* residual, void* scratch);
void conv_backward_data(const LibraryPlan& plan, float* dx, const float* g, const void* weight,
                        void* scratch);
// dw in OHWI.
void conv_backward_weight(const LibraryPlan& plan, float* dw, const float* x, const float* g,
                          void* scratch);
void matmul(const LibraryPlan& plan, float* y, const float* a, const void* b, const float* bias,
            void* scratch);
