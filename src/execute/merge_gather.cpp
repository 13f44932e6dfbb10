#include "execute/merge_gather.h"

#include <algorithm>
#include <vector>

#include "execute/op.h"
#include "execute/transpose.h"

namespace peft::execution {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kAllBytes = std::int64_t{16} << 20;  // of all groups that are kept

// A view of elements `step` apart, which follow each other evenly along both sides: `inner` counts those of the short
// stride.
struct Comb {
  std::int64_t step = 0, inner = 0, outer = 0;
  bool inner_is_cols = true;
};
Comb comb_of(const View& view) {
  if (view.row_stride == view.cols * view.col_stride) return {view.col_stride, view.cols, view.rows, true};
  if (view.col_stride == view.rows * view.row_stride) return {view.row_stride, view.rows, view.cols, false};
  return {};
}

}  // namespace

FactorSource source_of(const Plan& plan, const View& view) {
  FactorSource source;
  source.data = first_byte(plan, view);
  source.dtype = plan.sources[view.source]->tensors()[view.tensor].dtype;
  source.row_stride = view.row_stride * element_size(source.dtype);
  source.col_stride = view.col_stride * element_size(source.dtype);
  return source;
}

GatherStore::Elements GatherStore::gather(const Key& key, std::int64_t element_size) {
  Elements elements;
  std::byte* memory = elements.resize(static_cast<std::size_t>(key.neighbours * key.count * element_size));
  std::vector<const std::byte*> in(static_cast<std::size_t>(key.count));
  std::vector<std::byte*> out(static_cast<std::size_t>(key.neighbours));
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = key.first + static_cast<std::int64_t>(i) * key.step;
  for (std::size_t j = 0; j < out.size(); ++j)
    out[j] = memory + static_cast<std::int64_t>(j) * key.count * element_size;
  transpose(in, out, static_cast<std::size_t>(element_size));
  return elements;
}

FactorSource GatherStore::open(const Plan& plan, const View& view, std::size_t in_turn) {
  FactorSource source = source_of(plan, view);
  const std::int64_t size = element_size(source.dtype);
  const Comb comb = comb_of(view);
  const std::int64_t count = comb.inner * comb.outer;
  if (comb.step < 4 || count < kLine || size == 0) return source;
  // The element's place between two of the comb: an expert's number. Groups start at multiples of their size.
  const std::int64_t place = view.offset % comb.step;
  std::int64_t most = kLine / size;
  while (most > 1 && most * count * size > kAllBytes / static_cast<std::int64_t>(in_turn)) most /= 2;
  const std::int64_t before = place % most, neighbours = std::min(most, comb.step - (place - before));
  if (neighbours < 2) return source;
  groups_.keep(in_turn);
  const Key key{source.data - before * size, count, comb.step * size, neighbours};
  const auto elements = groups_.get(key, [&] { return gather(key, size); });
  source.data = elements->get() + before * count * size;
  const std::int64_t inner = size, outer = comb.inner * size;
  source.row_stride = comb.inner_is_cols ? outer : inner;
  source.col_stride = comb.inner_is_cols ? inner : outer;
  source.owner = elements;
  return source;
}

}  // namespace peft::execution
