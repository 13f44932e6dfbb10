// The inner loops of decoding, on the CPU: plain pointers, one thread, the widest vectors of the machine.
// The result of a row does not depend on the rows that are computed with it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace peft::nn::kernels {

// y[r] = dot(w + r * stride, x) for r < rows; cols elements each.
void matvec(const float* w, std::int64_t stride, std::int64_t rows, std::int64_t cols, const float* x, float* y);
// The same for weights in bfloat16, summed in fp32.
void matvec_bf16(const std::uint16_t* w, std::int64_t stride, std::int64_t rows, std::int64_t cols, const float* x,
                 float* y);

// out = x / sqrt(mean(x^2) + eps) * (offset + w), for each of `rows` rows of `cols` elements, `stride` apart in x.
void rms_norm(const float* x, std::int64_t stride, const float* w, float offset, double eps, std::int64_t rows,
              std::int64_t cols, float* out);

// Rotates one head: out[i] = x[i] * cos[i] - x[half + i] * sin[i], out[half + i] = x[half + i] * cos[i] + x[i] *
// sin[i].
void rotate(const float* x, const float* cos, const float* sin, std::int64_t half, float* out);

}  // namespace peft::nn::kernels
