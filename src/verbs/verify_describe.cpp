#include "verbs/verify_describe.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "adapter/view_math.h"

namespace peft::verbs {
namespace {

using adapter::Matrix;

// Element (i, j) of the matrices as stored; both are read a block of rows at a time.
std::string first_mismatch(const char* name, const Matrix& x, const Matrix& y) {
  constexpr std::int64_t kRows = 64;
  std::vector<double> vx(static_cast<std::size_t>(kRows * x.cols)), vy(vx.size());
  std::int64_t differing = 0;
  std::string first;
  for (std::int64_t begin = 0; begin < x.rows; begin += kRows) {
    const std::int64_t count = std::min(kRows, x.rows - begin);
    adapter::read(x.row_range(begin, count), vx);
    adapter::read(y.row_range(begin, count), vy);
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t j = 0; j < x.cols; ++j) {
        const double p = vx[j * count + i], q = vy[j * count + i];
        if (p == q) continue;
        if (differing++ == 0) first = fmt::format("{}[{}, {}] is {} and {}", name, begin + i, j, p, q);
      }
    }
  }
  if (differing == 0) return {};
  return fmt::format("{} ({} of {} elements differ)", first, differing, x.rows * x.cols);
}

}  // namespace

std::string describe_shapes(const Factor& x, const Factor& y) {
  const auto form = [](const Factor& f) {
    return fmt::format("{} [{}, {}]", f.kind == FactorKind::embedding ? "embedding" : "linear", f.out, f.in);
  };
  return fmt::format("another weight: {} and {}", form(x), form(y));
}

std::string describe_difference(const Factor& x, const TensorFile& file_x, const Factor& y, const TensorFile& file_y) {
  const Matrix xa = adapter::bind(file_x, x.a), xb = adapter::bind(file_x, x.b);
  const Matrix ya = adapter::bind(file_y, y.a), yb = adapter::bind(file_y, y.b);
  if (adapter::equal(xa.transposed(), yb) && adapter::equal(xb, ya.transposed())) {
    return "lora_A and lora_B trade places: the transposed update";
  }
  if (x.rank != y.rank) return fmt::format("rank {} and {}, and not by zero components alone", x.rank, y.rank);
  std::vector<std::string> parts;
  if (x.scale != y.scale) parts.push_back(fmt::format("scale {} and {}", x.scale, y.scale));
  for (const std::string& part : {first_mismatch("lora_A", xa, ya), first_mismatch("lora_B", xb, yb)}) {
    if (!part.empty()) parts.push_back(part);
  }
  return fmt::format("{}", fmt::join(parts, "; "));
}

const Factor* find_twin(const Factor& x, const TensorFile& file_x, std::span<const Factor> candidates,
                        const TensorFile& file_y) {
  const Matrix a = adapter::bind(file_x, x.a), b = adapter::bind(file_x, x.b);
  for (const Factor& y : candidates) {
    if (y.site == x.site || y.scale != x.scale) continue;
    if (adapter::equal(a, adapter::bind(file_y, y.a)) && adapter::equal(b, adapter::bind(file_y, y.b))) return &y;
  }
  return nullptr;
}

}  // namespace peft::verbs
