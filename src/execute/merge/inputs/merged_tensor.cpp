#include "execute/merge/inputs/merged_tensor.h"

#include <algorithm>
#include <cstring>

#include "execute/values/element.h"
#include "peft/error.h"

namespace peft::execution {
namespace {

// Copies elements of base_dtype that are `step` elements apart, without gaps.
void gather_columns(const std::byte* from, std::int64_t step, std::size_t cols, std::size_t size, std::byte* to) {
  for (std::size_t j = 0; j < cols; ++j)
    std::memcpy(to + j * size, from + static_cast<std::int64_t>(j * size) * step, size);
}

}  // namespace

MergedTensor::MergedTensor(const Plan& plan, const PlannedTensor& tensor, bool wide)
    : plan_(&plan), tensor_(&tensor), index_(tensor), ops_(make_ops(plan, tensor, wide)) {
  const std::vector<Block>& blocks = tensor.blocks;
  blocks_ = plan::RowIndex(
      blocks.size(), [&](std::size_t b) { return blocks[b].row; },
      [&](std::size_t b) { return blocks[b].row + blocks[b].source.rows; });
}

const Block* MergedTensor::direct_block(std::int64_t row) const {
  const Block* found = nullptr;
  blocks_.find(row, row + 1, [&](std::size_t b) { found = &tensor_->blocks[b]; });
  if (found == nullptr) return nullptr;
  const View& view = found->source;
  const bool as_it_is = view.cols == tensor_->cols &&
                        (view.cols == 1 || (view.col_stride == 1 && found->col_step == 1)) && found->scale == 1 &&
                        !found->scales &&
                        plan_->sources[view.source]->tensors()[view.tensor].dtype == merge().base_dtype;
  return as_it_is ? found : nullptr;
}

std::int64_t MergedTensor::stretch(std::int64_t row) const {
  if (const Block* block = direct_block(row)) return block->row + block->source.rows - row;
  std::int64_t end = tensor_->rows;  // up to the next block that needs no rendering
  blocks_.find(row + 1, tensor_->rows, [&](std::size_t b) {
    const std::int64_t begin = tensor_->blocks[b].row;
    if (begin > row && begin < end && direct_block(begin) != nullptr) end = begin;
  });
  return end - row;
}

BaseRows MergedTensor::base(const Rectangle& area, std::byte* scratch, Scratch& more) const {
  const Dtype dtype = merge().base_dtype;
  const std::int64_t size = element_size(dtype);
  if (const Block* block = direct_block(area.row)) {
    const std::int64_t pitch = block->source.row_stride * size;
    return {first_byte(*plan_, block->source) + (area.row - block->row) * pitch + area.col * size, pitch};
  }
  const bool whole = area.cols == tensor_->cols;
  if (!whole && !any_ops_) any_ops_ = make_ops(*plan_, *tensor_, true);
  if (!render(whole ? ops_ : *any_ops_, dtype, area, scratch, more)) {
    throw Error(ErrorCode::NUM_OVERFLOW,
                {.tensor = tensor_->name,
                 .problem = "a finite value of the base does not fit the dtype it is merged in",
                 .got = std::string(info(dtype).name),
                 .hint = "choose a dtype with a larger range: --base-dtype bfloat16 or float32"});
  }
  return {scratch, area.cols * size};
}

template <class T>
void load_tile(const MergedTensor& tensor, const plan::Lattice& lattice, std::int64_t row, std::size_t rows,
               std::int64_t panel, T* tile, LineBuffer<std::byte>& bytes, Scratch& scratch) {
  const Dtype dtype = tensor.merge().base_dtype;
  const std::int64_t size = element_size(dtype), cols = std::min(kWidth, lattice.cols.count - panel * kWidth);
  const std::int64_t width = (cols - 1) * lattice.cols.step + 1;
  std::byte packed[kPanel * sizeof(double)];
  for (std::size_t i = 0; i < rows;) {
    const std::int64_t at = lattice.rows.first + (row + static_cast<std::int64_t>(i)) * lattice.rows.step;
    const std::int64_t together =
        lattice.rows.step == 1 ? std::min(static_cast<std::int64_t>(rows - i), tensor.stretch(at)) : 1;
    const Rectangle area{at, together, lattice.cols.first + panel * kWidth * lattice.cols.step, width};
    const BaseRows base = tensor.base(area, bytes.resize(static_cast<std::size_t>(together * width * size)), scratch);
    for (std::int64_t r = 0; r < together; ++r, ++i) {
      const std::byte* from = base.data + r * base.pitch;
      if (lattice.cols.step != 1) {
        gather_columns(from, lattice.cols.step, static_cast<std::size_t>(cols), static_cast<std::size_t>(size), packed);
        from = packed;
      }
      T* to = tile + i * kPanel;
      load(dtype, from, static_cast<std::size_t>(cols), to);
      std::fill(to + cols, to + kPanel, T{0});
    }
  }
}

template void load_tile(const MergedTensor&, const plan::Lattice&, std::int64_t, std::size_t, std::int64_t, float*,
                        LineBuffer<std::byte>&, Scratch&);
template void load_tile(const MergedTensor&, const plan::Lattice&, std::int64_t, std::size_t, std::int64_t, double*,
                        LineBuffer<std::byte>&, Scratch&);

}  // namespace peft::execution
