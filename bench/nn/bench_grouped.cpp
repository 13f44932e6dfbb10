// Rows sorted by expert, times each expert's matrix: our grouped_linear beside libtorch's at::_grouped_mm, by turns.
//
//   bench_grouped [--threads N] [--seconds S] [--experts 64]
//
// One line a case: rows of each expert, in, out, dtype, GFLOP/s of both from the smallest time, and ours / theirs.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "nn/model/network.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Case {
  std::int64_t rows, in, out;  // rows: of each expert
};
// gate and up, and down, of the model of the other benchmarks at prefills of 16 to 2048 tokens, top-8; then
// Qwen3-30B-A3B's at 512.
constexpr Case kCases[] = {{2, 512, 512},  {16, 512, 512}, {64, 512, 512},  {256, 512, 512},  {2, 256, 512},
                           {16, 256, 512}, {64, 256, 512}, {256, 256, 512}, {32, 2048, 1536}, {32, 768, 2048}};

template <class Body>
double once(const Body& body) {
  const auto start = Clock::now();
  body();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void compare(const Case& c, std::int64_t experts, at::ScalarType dtype, double seconds) {
  const at::Tensor x = at::randn({experts * c.rows, c.in}).to(dtype),
                   weight = at::randn({experts, c.out, c.in}).to(dtype);
  const auto groups =
      peft::nn::group_by_expert(at::arange(experts, at::kLong).repeat_interleave(c.rows).unsqueeze(1), experts);
  const at::Tensor turned = weight.transpose(1, 2);
  const auto ours = [&] { return peft::nn::grouped_linear(x, weight, groups); };
  const at::Tensor ends = (at::arange(1, experts + 1) * c.rows).to(at::kInt);  // where each expert has its last row
  const auto theirs = [&] { return at::_grouped_mm(x, turned, ends); };
  const double difference = (ours().to(at::kDouble) - theirs().to(at::kDouble)).abs().max().item<double>();
  double mine = 1e30, real = 1e30;
  const auto start = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - start).count() < seconds) {
    mine = std::min(mine, once(ours));
    real = std::min(real, once(theirs));
  }
  const double work = 2e-9 * static_cast<double>(experts * c.rows * c.in * c.out);
  std::printf("%4lld rows  %4lld -> %4lld  %-8s  ours %6.1f  _grouped_mm %6.1f GFLOP/s  %.2f x  (differ by %.1e)\n",
              static_cast<long long>(c.rows), static_cast<long long>(c.in), static_cast<long long>(c.out),
              at::toString(dtype), work / mine, work / real, real / mine, difference);
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> o = {{"threads", "1"}, {"seconds", "1"}, {"experts", "64"}};
  for (int i = 1; i + 1 < argc; i += 2) o[argv[i] + 2] = argv[i + 1];
  at::set_num_threads(std::atoi(o["threads"].c_str()));
  const c10::NoGradGuard no_gradients;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : kCases) compare(c, std::atoll(o["experts"].c_str()), dtype, std::atof(o["seconds"].c_str()));
  }
  return 0;
}
