#include "layout/encode/stack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "layout/encode/encoded.h"

namespace peft::layout {
namespace {

// Two row ranges that are neighbours in their tensor, as one view.
std::optional<View> join_rows(const View& first, const View& second, bool interleaved) {
  View joined = first;
  joined.rows = first.rows + second.rows;
  if (interleaved) joined.row_stride = first.row_stride / 2;
  const std::int64_t next = interleaved ? joined.row_stride : first.rows * first.row_stride;
  View expected = first;
  expected.offset += next;
  if (first.row_stride % (interleaved ? 2 : 1) != 0 || expected != second) return std::nullopt;
  return joined;
}

}  // namespace

double common_scale(const std::vector<const Factor*>& factors) {
  std::vector<std::pair<double, int>> counts;
  for (const Factor* factor : factors) {
    auto at = std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == factor->scale; });
    if (at == counts.end())
      counts.emplace_back(factor->scale, 1);
    else
      ++at->second;
  }
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& x, const auto& y) {
                            return std::pair(x.first != 0, x.second) < std::pair(y.first != 0, y.second);
                          })
      ->first;
}

double common_scale(const std::vector<TargetEntry>& targets) {
  std::map<double, std::size_t> counts;
  for (const TargetEntry& target : targets) ++counts[target.scale];
  const auto most =
      std::ranges::max_element(counts, {}, [](const auto& entry) { return std::pair(entry.first != 0, entry.second); });
  return most == counts.end() ? 1 : most->first;
}

double folded_gain(const Factor& factor, double common) { return factor.scale == common ? 1 : factor.scale / common; }

std::int64_t expert_count(std::int64_t known, bool assumed, std::int64_t counted, std::span<const Factor> group) {
  std::int64_t count = std::max(known, counted);
  if (count != 0 && !assumed) return count;
  for (const Factor& factor : group) count = std::max(count, factor.site.expert + 1);
  return count;
}

Exactness exactness_of_gain(double gain) {
  if (gain == 1) return Exactness::bit_exact;
  int exponent = 0;
  return std::frexp(std::abs(gain), &exponent) == 0.5 ? Exactness::value_exact : Exactness::rounded;
}

Exactness exactness_of_cast(Dtype from, Dtype to) {
  if (from == to) return Exactness::bit_exact;
  const bool from_f8 = from == Dtype::f8_e4m3 || from == Dtype::f8_e5m2;
  const bool widens = to == Dtype::f64 || (to == Dtype::f32 && from != Dtype::f64) || (to == Dtype::f16 && from_f8);
  return widens ? Exactness::value_exact : Exactness::rounded;
}

Dtype wider(Dtype a, Dtype b) {
  if (a == b) return a;
  return a == Dtype::f64 || b == Dtype::f64 ? Dtype::f64 : Dtype::f32;
}

// Gate and up of every expert have the same A: then one A serves both and the rank need not double.
bool shares_a(const TensorFile* file, const Stack& stack) {
  if (stack.parts.size() != 2) return false;
  for (std::size_t e = 0; e < stack.parts[0].size(); ++e) {
    const Factor *gate = stack.parts[0][e], *up = stack.parts[1][e];
    if (gate == nullptr && up == nullptr) continue;
    if (gate == nullptr || up == nullptr) return false;
    if (gate->a != up->a && (file == nullptr || !same_values(*file, gate->a, up->a))) return false;
  }
  return true;
}

std::optional<View> joined_b(const Factor& gate, const Factor& up, bool interleaved) {
  return gate.scale == up.scale ? join_rows(gate.b, up.b, interleaved) : std::nullopt;
}

bool all_join(const Stack& stack, bool interleaved) {
  for (std::size_t e = 0; e < stack.parts[0].size(); ++e) {
    const Factor *gate = stack.parts[0][e], *up = stack.parts[1][e];
    if (gate != nullptr && !joined_b(*gate, *up, interleaved)) return false;
  }
  return true;
}

bool same_values(const TensorFile& file, const View& x, const View& y) {
  if (x == y) return true;
  if (x.rows != y.rows || x.cols != y.cols) return false;
  const TensorInfo &tx = file.tensors()[x.tensor], &ty = file.tensors()[y.tensor];
  if (tx.dtype != ty.dtype) return false;
  const auto size = static_cast<std::size_t>(info(tx.dtype).bits) / 8;
  const std::byte *px = file.bytes(tx).data(), *py = file.bytes(ty).data();
  const auto at = [size](const std::byte* base, const View& v, std::int64_t row, std::int64_t col) {
    return base + static_cast<std::size_t>(v.offset + row * v.row_stride + col * v.col_stride) * size;
  };
  const bool contiguous = x.col_stride == 1 && y.col_stride == 1;
  for (std::int64_t row = 0; row < x.rows; ++row) {
    if (contiguous) {
      if (std::memcmp(at(px, x, row, 0), at(py, y, row, 0), static_cast<std::size_t>(x.cols) * size) != 0) return false;
      continue;
    }
    for (std::int64_t col = 0; col < x.cols; ++col) {
      if (std::memcmp(at(px, x, row, col), at(py, y, row, col), size) != 0) return false;
    }
  }
  return true;
}

Stack collect(std::span<const Factor> group, const ExpertsForm::Fused& parameter, std::int64_t experts) {
  Stack stack;
  stack.experts = experts;
  const std::size_t parts = std::max<std::size_t>(1, parameter.projections.size());
  stack.parts.assign(parts, std::vector<const Factor*>(static_cast<std::size_t>(experts), nullptr));
  for (const Factor& factor : group) {
    if (factor.site.expert < 0 || factor.site.expert >= experts) continue;
    for (std::size_t p = 0; p < parts; ++p) {
      const bool mine = parameter.projections.empty()
                            ? factor.site.parameter == parameter.name
                            : factor.site.parameter.empty() && factor.site.projection == parameter.projections[p];
      if (mine) stack.parts[p][static_cast<std::size_t>(factor.site.expert)] = &factor;
    }
  }
  return stack;
}

std::vector<const Factor*> all_of(const Stack& stack) {
  std::vector<const Factor*> all;
  for (const auto& part : stack.parts) {
    for (const Factor* factor : part) {
      if (factor != nullptr) all.push_back(factor);
    }
  }
  return all;
}

}  // namespace peft::layout
