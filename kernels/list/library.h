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

// Images are of the shape's dtype. `weight` is packed when plan.packing is not 0, else f32 as it
// was given. bias and residual: null unless the plan has them. y may not overlap x; residual may be
// y itself.
void conv_forward(const LibraryPlan& plan, Reals y, ConstReals x, const void* weight,
                  const float* bias, ConstReals residual, void* scratch);
void conv_backward_data(const LibraryPlan& plan, Reals dx, ConstReals g, const void* weight,
                        void* scratch);
// dw in OHWI.
void conv_backward_weight(const LibraryPlan& plan, float* dw, ConstReals x, ConstReals g,
                          void* scratch);
// a and b are of the shape's dtype (b: unless it is a packed weight), y of its y_dtype.
void matmul(const LibraryPlan& plan, Reals y, ConstReals a, const void* b,
            const MatmulArrays& others, void* scratch);
