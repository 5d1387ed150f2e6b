// Kernels that move elements. Included by kernels.h once per backend.

void fill(float* y, float value, int64_t n);
// y is contiguous; element_size is 1, 2, 4 or 8 bytes.
void permute(void* y, const void* x, int64_t element_size, const PermuteShape& shape);
// Copies `rows` runs of `bytes` bytes; strides in bytes.
void copy_rows(void* y, int64_t y_stride, const void* x, int64_t x_stride, int64_t rows,
               int64_t bytes);
// The first position whose id is outside 0..limit-1, or -1.
int64_t first_outside(const int64_t* ids, int64_t n, int64_t limit);
// y[..., i, ...] = x[..., index[..., i, ...], ...] along shape.axis; indices were checked.
void gather(float* y, const float* x, const int64_t* index, const GatherShape& shape);
// dx, already zeroed, gets g added at the same places.
void gather_grad(float* dx, const int64_t* index, const float* g, const GatherShape& shape);
// y (count, width) = rows `ids` of weight; ids were checked.
void embedding(float* y, const float* weight, const int64_t* ids, int64_t count, int64_t width);
// dw (rows, width) = for every row the sum of the g (count, width) whose id names it, in their
// order.
void embedding_grad(float* dw, const int64_t* ids, const float* g, int64_t count, int64_t rows,
                    int64_t width);
// Between any two element types. To bf16 and f16: nearest, ties to even. To an integer: truncated
// towards zero, saturated at the range of i64 (NaN gives 0) and then wrapped into the type as
// PyTorch does on x86; to boolean: whether it is not 0.
void cast(void* y, Dtype to, const void* x, Dtype from, int64_t n);
