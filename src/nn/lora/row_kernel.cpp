#include "nn/lora/row_kernel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

// A copy of the loop for machines with AVX2, chosen when the program starts.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define PEFT_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define PEFT_CLONES
#endif

namespace peft::nn {
namespace {

constexpr std::int64_t kLanes = 16;

PEFT_CLONES float dot(const float* a, const float* x, std::int64_t n) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t k = 0; k < kLanes; ++k) lanes[k] += a[i + k] * x[i + k];
  }
  float sum = 0;
  for (; i < n; ++i) sum += a[i] * x[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

// y += h0 b0 + h1 b1 + h2 b2 + h3 b3: four rows of B for one pass over y.
PEFT_CLONES void add_four(const float* b, std::int64_t n, const float* h, float* y) {
  const float *b0 = b, *b1 = b + n, *b2 = b + 2 * n, *b3 = b + 3 * n;
  for (std::int64_t i = 0; i < n; ++i) y[i] += (h[0] * b0[i] + h[1] * b1[i]) + (h[2] * b2[i] + h[3] * b3[i]);
}

PEFT_CLONES void add_one(const float* b, std::int64_t n, float h, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += h * b[i];
}

void add_row(const RowFactors& f, std::int64_t expert, const float* x, float* y, float* hidden) {
  const float* a = f.a + expert * f.rank * f.in;
  const float* b = f.b + expert * f.rank * f.out;
  for (std::int64_t k = 0; k < f.rank; ++k) hidden[k] = f.scale * dot(a + k * f.in, x, f.in);
  std::int64_t k = 0;
  for (; k + 4 <= f.rank; k += 4) add_four(b + k * f.out, f.out, hidden + k, y);
  for (; k < f.rank; ++k) add_one(b + k * f.out, f.out, hidden[k], y);
}

}  // namespace

void add_lora_rows(const RowFactors& factors, const float* x, float* y, std::span<const std::int64_t> hit,
                   std::span<const std::int64_t> begin) {
  std::vector<std::int64_t> expert_of;
  for (std::size_t i = 0; i < hit.size(); ++i) {
    expert_of.insert(expert_of.end(), static_cast<std::size_t>(begin[i + 1] - begin[i]), hit[i]);
  }
  const std::int64_t work = factors.rank * (factors.in + factors.out);
  constexpr std::int64_t kWorthAThread = 1 << 17;
  const std::int64_t grain = std::max<std::int64_t>(1, kWorthAThread / std::max<std::int64_t>(1, work));
  at::parallel_for(0, static_cast<std::int64_t>(expert_of.size()), grain, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> hidden(static_cast<std::size_t>(factors.rank));
    for (std::int64_t i = first; i < last; ++i) {
      add_row(factors, expert_of[static_cast<std::size_t>(i)], x + i * factors.in, y + i * factors.out, hidden.data());
    }
  });
}

}  // namespace peft::nn
