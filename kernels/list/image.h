// From 8-bit pictures to a model's input. Included by kernels.h once per backend.

// y (images, height, width, channels), f32 or bf16: each picture resampled along both axes, rounded
// to 8 bits after each, laid into a black picture, flipped, changed step by step, and its bytes
// replaced by their levels. The arrays of `batch` are on the backend's device. Whole numbers, and
// changes without fused multiply-adds: the same bits everywhere.
void render_images(const ImageBatch& batch, Reals y);
