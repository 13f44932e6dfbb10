#include "execute/merge/inputs/gathered_factors.h"

#include <algorithm>
#include <utility>

#include "execute/copy/copy_ops.h"
#include "execute/kernels/transpose.h"
#include "execute/values/element.h"

namespace peft::execution {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kAllBytes = std::int64_t{16} << 20;  // limit for all groups that are kept

// A view whose elements are `step` apart and evenly spaced along both axes. `inner` counts along the axis with the
// short stride.
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

std::optional<GatherGroup> group_of(const Plan& plan, const View& view, std::size_t in_turn) {
  const std::int64_t size = element_size(plan.sources[view.source]->tensors()[view.tensor].dtype);
  const Comb comb = comb_of(view);
  const std::int64_t count = comb.inner * comb.outer;
  if (comb.step < 4 || count < kLine || size == 0) return std::nullopt;
  // The position between two elements of the comb: the number of the expert. Groups start at multiples of their size.
  const std::int64_t place = view.offset % comb.step;
  std::int64_t most = kLine / size;
  while (most > 1 && most * count * size > kAllBytes / static_cast<std::int64_t>(in_turn)) most /= 2;
  const std::int64_t before = place % most, neighbours = std::min(most, comb.step - (place - before));
  if (neighbours < 2) return std::nullopt;
  return GatherGroup{first_byte(plan, view) - before * size, count, comb.step * size, neighbours};
}

GatherStore::Lent::Lent(std::shared_ptr<Spare> spare) : spare_(std::move(spare)) {
  const std::lock_guard lock(spare_->mutex);
  ++spare_->use.groups;
  if (spare_->buffers.empty()) {
    ++spare_->use.buffers;
  } else {
    elements = std::move(spare_->buffers.back());
    spare_->buffers.pop_back();
  }
}
GatherStore::Lent::~Lent() {
  if (!spare_) return;
  const std::lock_guard lock(spare_->mutex);
  spare_->buffers.push_back(std::move(elements));
}

GatherStore::Lent GatherStore::gather(const GatherGroup& group, std::int64_t element_size) const {
  Lent lent(spare_);
  std::byte* memory = lent.elements.resize(static_cast<std::size_t>(group.neighbours * group.count * element_size));
  std::vector<const std::byte*> in(static_cast<std::size_t>(group.count));
  std::vector<std::byte*> out(static_cast<std::size_t>(group.neighbours));
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = group.first + static_cast<std::int64_t>(i) * group.step;
  for (std::size_t j = 0; j < out.size(); ++j)
    out[j] = memory + static_cast<std::int64_t>(j) * group.count * element_size;
  transpose(in, out, static_cast<std::size_t>(element_size));
  return lent;
}

GatherStore::Use GatherStore::use() const {
  const std::lock_guard lock(spare_->mutex);
  return spare_->use;
}

FactorSource GatherStore::open(const Plan& plan, const View& view, std::size_t in_turn) {
  FactorSource source = source_of(plan, view);
  const auto group = group_of(plan, view, in_turn);
  if (!group) return source;
  const std::int64_t size = element_size(source.dtype);
  groups_.keep(in_turn);
  const auto lent = groups_.get(*group, [&] { return gather(*group, size); });
  source.data = lent->elements.get() + (source.data - group->first) * group->count;
  const Comb comb = comb_of(view);
  const std::int64_t inner = size, outer = comb.inner * size;
  source.row_stride = comb.inner_is_cols ? outer : inner;
  source.col_stride = comb.inner_is_cols ? inner : outer;
  source.owner = lent;
  return source;
}

}  // namespace peft::execution
