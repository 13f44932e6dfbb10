#include "verbs/merge_tensors.h"

#include <algorithm>

#include "base/float_formats.h"

namespace peft::merging {
namespace {

std::int64_t product(std::span<const std::int64_t> shape) {
  std::int64_t result = 1;
  for (const std::int64_t size : shape) result *= size;
  return result;
}

// The kernel of a convolution is [out, in, height, width], and its delta [out, the rest]: that is the matrix to see it
// as.
void see_as(const View& target, PlannedTensor& planned) {
  const bool whole = target.offset == 0 && target.col_stride == 1 && target.row_stride == target.cols &&
                     target.rows * target.cols == planned.rows * planned.cols;
  if (!whole || planned.shape.size() < 3 || target.rows != planned.shape.front()) return;
  for (const Block& block : planned.blocks) {
    const View& view = block.source;
    if (view.rows != planned.rows || view.cols != planned.cols || view.row_stride != view.cols || view.col_stride != 1)
      return;
  }
  planned.rows = target.rows, planned.cols = target.cols;
  for (Block& block : planned.blocks)
    block.source.rows = target.rows, block.source.cols = block.source.row_stride = target.cols;
}

// Strides and offsets of stored matrices [rows, cols] where each of them lies transposed.
std::int64_t turned_offset(std::int64_t offset, std::int64_t rows, std::int64_t cols) {
  const std::int64_t matrix = offset / (rows * cols), row = offset / cols % rows, col = offset % cols;
  return (matrix * cols + col) * rows + row;
}
std::int64_t turned_stride(std::int64_t stride, std::int64_t rows, std::int64_t cols) {
  return stride % cols == 0 ? stride / cols : stride * rows;
}

}  // namespace

OutTensors::OutTensors(const Checkpoint& checkpoint, const std::vector<QuantizedTensor>& quantized,
                       const std::set<Number>& keep, const MergeOptions& options)
    : options_(options) {
  std::map<Number, const QuantizedTensor*> codes;
  std::set<Number> scales, kept_scales;
  for (const QuantizedTensor& tensor : quantized) {
    const Number number{tensor.codes.view.source, tensor.codes.view.tensor};
    const bool stays = keep.contains(number);
    if (!stays) codes[number] = &tensor;
    (stays ? kept_scales : scales).insert({tensor.codes.scales->grid.source, tensor.codes.scales->grid.tensor});
  }
  for (std::uint32_t file = 0; file < checkpoint.files().size(); ++file) {
    const auto tensors = checkpoint.files()[file]->tensors();
    for (std::uint32_t i = 0; i < tensors.size(); ++i) {
      if (scales.contains({file, i})) continue;
      OutTensor out;
      out.file = file;
      if (const auto found = codes.find({file, i}); found != codes.end()) {
        const QuantizedTensor& tensor = *found->second;
        out.planned = {tensor.name, Dtype::bf16, tensor.shape, 0, tensor.shape.back(), tensor.blocks};
        out.planned.rows = product(tensor.shape) / std::max<std::int64_t>(tensor.shape.back(), 1);
        out.dequantized = out.planned.must_be_finite = true;  // no one looked at the products before
        if (tensor.turned) out.matrix_rows = tensor.shape[2], out.matrix_cols = tensor.shape[1];
      } else {
        out.planned = copy_of(tensors[i], i, std::string(tensors[i].name), tensors[i].dtype);
        for (Block& block : out.planned.blocks) block.source.source = file;
      }
      if (tensors[i].bytes() == 0) out.planned.blocks.clear();
      out.computed = tensors[i].dtype;
      if (!kept_scales.contains({file, i})) cast(out, tensors[i].dtype);
      out.is_copy = !out.dequantized && out.planned.dtype == tensors[i].dtype;
      by_number_[{file, i}] = tensors_.size();
      tensors_.push_back(std::move(out));
    }
  }
}

// The dtype a tensor is written in. Where the base is cast to something narrower than that first, an empty merge says
// so.
void OutTensors::cast(OutTensor& tensor, Dtype stored) const {
  if (!tensor.dequantized && !is_plain_float(stored)) return;
  tensor.computed = options_.base_dtype.value_or(tensor.dequantized ? Dtype::bf16 : stored);
  PlannedTensor& planned = tensor.planned;
  planned.dtype = options_.out_dtype.value_or(tensor.computed);
  const bool twice = planned.dtype != tensor.computed && (tensor.dequantized || tensor.computed != stored);
  if (twice && !planned.blocks.empty()) planned.merge = Merge{options_.mode, tensor.computed, {}};
}

OutTensors::Place OutTensors::place(const WeightPart& part) const {
  const std::size_t number = by_number_.at({part.view.source, part.view.tensor});
  const OutTensor& tensor = tensors_[number];
  View view = part.view;
  view.source = view.tensor = 0;
  if (tensor.matrix_rows > 0) {
    const std::int64_t rows = tensor.matrix_rows, cols = tensor.matrix_cols;
    view.offset = turned_offset(view.offset, rows, cols);
    view.row_stride = turned_stride(view.row_stride, rows, cols);
    view.col_stride = turned_stride(view.col_stride, rows, cols);
  }
  return {number, view};
}

std::size_t OutTensors::add_copy(std::size_t of, std::string name) {
  OutTensor copy = tensors_[of];
  copy.planned.name = std::move(name);
  copy.parts.clear();
  tensors_.push_back(std::move(copy));
  return tensors_.size() - 1;
}

std::size_t OutTensors::add_new(const TensorInfo& tensor, std::uint32_t source, std::uint32_t number,
                                std::string name) {
  OutTensor out;
  out.file = tensors_.empty() ? 0 : tensors_.back().file;
  out.planned = copy_of(tensor, number, std::move(name), tensor.dtype);
  for (Block& block : out.planned.blocks) block.source.source = source;
  out.computed = tensor.dtype;
  cast(out, tensor.dtype);
  tensors_.push_back(std::move(out));
  return tensors_.size() - 1;
}

void OutTensors::note(std::size_t tensor, MergedPart part) {
  part.tensor = tensor;
  tensors_[tensor].is_copy = false;
  tensors_[tensor].parts.push_back(std::move(part));
}

void OutTensors::add(std::size_t tensor, Update update, MergedPart part) {
  PlannedTensor& planned = tensors_[tensor].planned;
  see_as(update.target, planned);
  if (!planned.merge) planned.merge = Merge{options_.mode, tensors_[tensor].computed, {}};
  part.update = static_cast<std::int64_t>(planned.merge->updates.size());
  planned.merge->updates.push_back(std::move(update));
  note(tensor, std::move(part));
}

void OutTensors::replace(std::size_t tensor, const View& source, bool keep, MergedPart part) {
  PlannedTensor& planned = tensors_[tensor].planned;
  planned.blocks = {{0, 0, 1, source, 1}};
  if (!keep) planned.merge.reset();
  note(tensor, std::move(part));
}

// The block that holds the row is cut in two around it.
void OutTensors::replace_row(std::size_t tensor, std::int64_t row, const View& source) {
  std::vector<Block>& blocks = tensors_[tensor].planned.blocks;
  const auto holds = [row](const Block& block) { return block.row <= row && row < block.row + block.source.rows; };
  const auto found = std::find_if(blocks.begin(), blocks.end(), holds);
  if (found == blocks.end()) return;
  const Block whole = *found;
  const std::int64_t before = row - whole.row, after = whole.source.rows - before - 1;
  blocks.erase(found);
  const auto cut = [&](std::int64_t first, std::int64_t count) {
    if (count == 0) return;
    Block piece = whole;
    piece.row = whole.row + first;
    piece.source = whole.source.row_range(first, count);
    blocks.push_back(piece);
  };
  cut(0, before);
  cut(before + 1, after);
  blocks.push_back({row, 0, 1, source, 1});
}

}  // namespace peft::merging
