// A plan carried out element by element, with none of the machinery of execute(): the form to compare with.
// Merges are an exception: they are made as execute() makes them; Evaluator is what they compare with.
#include <cstring>

#include "execute/element.h"
#include "execute/merge.h"
#include "execute/value.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "plan/check.h"

namespace peft {
namespace {

void write_element(const PlannedTensor& tensor, const TensorInfo& source, const std::byte* from, double scale,
                   std::byte* to) {
  const auto size = static_cast<std::size_t>(info(tensor.dtype).bits) / 8;
  if (source.dtype == tensor.dtype && scale == 1) {
    std::memcpy(to, from, size);
  } else if (!execution::store_element(tensor.dtype, execution::load_element(source.dtype, from) * scale, to)) {
    throw Error(ErrorCode::NUM_OVERFLOW,
                {.tensor = tensor.name, .problem = "a finite value does not fit the output dtype"});
  }
}

void write_quantised(const Plan& plan, const PlannedTensor& tensor, const Block& block, std::byte* out) {
  for (std::int64_t i = 0; i < block.source.rows; ++i) {
    for (std::int64_t j = 0; j < block.source.cols; ++j) {
      const std::int64_t to = (block.row + i) * tensor.cols + block.col + j * block.col_step;
      execution::store_element(tensor.dtype, execution::value_at(plan, block, i, j),
                               out + to * info(tensor.dtype).bits / 8);
    }
  }
}

void write_block(const Plan& plan, const PlannedTensor& tensor, const Block& block, std::byte* out) {
  const View& view = block.source;
  const TensorFile& file = *plan.sources[view.source];
  const TensorInfo& source = file.tensors()[view.tensor];
  const std::span<const std::byte> bytes = file.bytes(source);
  if (info(tensor.dtype).bits % 8 != 0) {  // copied whole, as check() demands
    std::memcpy(out, bytes.data(), bytes.size());
    return;
  }
  const std::int64_t from_size = info(source.dtype).bits / 8, to_size = info(tensor.dtype).bits / 8;
  if (block.scales) return write_quantised(plan, tensor, block, out);
  for (std::int64_t i = 0; i < view.rows; ++i) {
    for (std::int64_t j = 0; j < view.cols; ++j) {
      const std::int64_t from = view.offset + i * view.row_stride + j * view.col_stride;
      const std::int64_t to = (block.row + i) * tensor.cols + block.col + j * block.col_step;
      write_element(tensor, source, bytes.data() + from * from_size, block.scale, out + to * to_size);
    }
  }
}

}  // namespace

std::vector<std::vector<std::byte>> execute_in_memory(const Plan& plan) {
  plan::check(plan);
  std::vector<std::vector<std::byte>> images;
  for (const PlannedFile& file : plan.files) {
    const FileLayout layout = layout_file(file);
    std::vector<std::byte>& image = images.emplace_back(layout.file_bytes());
    std::memcpy(image.data(), layout.head.data(), layout.head.size());
    execution::MergeStores stores;
    execution::Merger merger(stores);
    for (std::size_t t = 0; t < file.tensors.size(); ++t) {
      const PlannedTensor& tensor = file.tensors[t];
      std::byte* out = image.data() + layout.head.size() + layout.begin[t];
      if (tensor.merge && tensor.rows * tensor.cols > 0) {
        merger.render(plan, tensor, false, {0, tensor.rows, 0, tensor.cols}, out);
        continue;
      }
      for (const Block& block : tensor.blocks) write_block(plan, tensor, block, out);
    }
  }
  return images;
}

}  // namespace peft
