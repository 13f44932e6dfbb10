#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "execute/merge/merger.h"
#include "execute/values/element.h"
#include "gguf/types/block_formats.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "plan/check.h"
#include "plan/update_targets.h"

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
  if (info(tensor.dtype).bits % 8 != 0 || tensor.dtype == Dtype::unknown) {  // copied whole, as check() demands
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
      const auto write_values = [&](std::byte* to) {
        if (tensor.merge && tensor.rows * tensor.cols > 0)
          return merger.render(plan, tensor, false, {0, tensor.rows, 0, tensor.cols}, to);
        for (const Block& block : tensor.blocks)
          block.for_each_member([&](const Block& member) { write_block(plan, tensor, member, to); });
      };
      if (!tensor.packing || tensor.dtype == Dtype::unknown) {
        write_values(out);
        continue;
      }
      std::vector<float> values(static_cast<std::size_t>(tensor.rows * tensor.cols));
      write_values(reinterpret_cast<std::byte*>(values.data()));
      if (!gguf::pack_blocks(*tensor.packing, values, out))
        throw Error(ErrorCode::NUM_OVERFLOW, {.tensor = tensor.name, .problem = "a block's scale does not fit F16"});
    }
  }
  return images;
}

namespace {

constexpr std::int64_t kChunk = 64;  // rows that a pass over a matrix takes at once

// scale * B * A in the orientation of the tensor: element (i, j) of the target matrix is the sum over k of left(i, k) *
// right[k][j].
struct Delta {
  const Plan& plan;
  const Update& update;
  bool swapped;
  std::vector<std::vector<double>> right;

  Delta(const Plan& the_plan, const Update& the_update, bool is_swapped)
      : plan(the_plan), update(the_update), swapped(is_swapped) {
    const std::int64_t rank = update.a.rows, cols = swapped ? update.target.rows : update.target.cols;
    for (std::int64_t k = 0; k < rank; ++k) {
      right.emplace_back(static_cast<std::size_t>(cols));
      for (std::int64_t j = 0; j < cols; ++j) right.back()[static_cast<std::size_t>(j)] = swapped ? b(j, k) : a(k, j);
    }
  }
  double a(std::int64_t k, std::int64_t j) const { return execution::value_at(plan, update.a, k, j); }
  double b(std::int64_t i, std::int64_t k) const {
    return update.b.rows == 0 ? 1 : execution::value_at(plan, update.b, i, k);
  }
  std::vector<double> row(std::int64_t i) const {
    std::vector<double> sum(right.front().size());
    for (std::size_t k = 0; k < right.size(); ++k) {
      const double left = swapped ? a(static_cast<std::int64_t>(k), i) : b(i, static_cast<std::int64_t>(k));
      for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += left * right[k][j];
    }
    for (double& value : sum) value *= update.scale;
    return sum;
  }
};

}  // namespace

struct Evaluator::State {
  const Plan* plan;
  const PlannedTensor* tensor;
  plan::RowIndex blocks;
  plan::TargetIndex index;
  std::vector<std::vector<double>>
      row_scales;  // for each update: magnitude / norm of each row of W + delta; empty without DoRA
  std::map<std::size_t, std::vector<Delta>> deltas;  // of the target matrices used last

  const std::vector<Delta>& deltas_of(std::size_t matrix) {
    constexpr std::size_t kKeptMatrices = 8;
    if (const auto known = deltas.find(matrix); known != deltas.end()) return known->second;
    if (deltas.size() == kKeptMatrices) deltas.clear();
    std::vector<Delta>& made = deltas[matrix];
    for (std::uint32_t u : index.matrices[matrix].updates)
      made.emplace_back(*plan, tensor->merge->updates[u], index.matrices[matrix].lattice.swapped);
    return made;
  }

  std::vector<double> base(std::int64_t first, std::int64_t count) const {
    std::vector<double> values(static_cast<std::size_t>(count * tensor->cols));
    blocks.find(first, first + count, [&](std::size_t b) {
      tensor->blocks[b].for_each_member([&](const Block& block) { read(block, first, count, values); });
    });
    return values;
  }

  // Puts the block's values in rows [first, first + count) where they belong.
  void read(const Block& block, std::int64_t first, std::int64_t count, std::vector<double>& values) const {
    const std::int64_t begin = std::max(first, block.row), end = std::min(first + count, block.row_end());
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t j = 0; j < block.source.cols; ++j) {
        const double value = execution::value_at(*plan, block, row - block.row, j);
        values[static_cast<std::size_t>((row - first) * tensor->cols + block.col + j * block.col_step)] =
            tensor->merge ? execution::rounded_to(tensor->merge->base_dtype, value) : value;
      }
    }
  }

  // Calls visit(i, first element) for each row i of the target matrix that lies in rows [first, first + count).
  template <class Visit>
  void each(std::size_t p, std::int64_t first, std::int64_t count, std::vector<double>& values, const Visit& visit) {
    const plan::Lattice& lattice = index.matrices[p].lattice;
    const plan::StepRange rows = plan::steps_in(lattice.rows, first, first + count);
    for (std::int64_t i = rows.first; i < rows.first + rows.count; ++i) {
      visit(i, &values[static_cast<std::size_t>((lattice.rows.first + i * lattice.rows.step - first) * tensor->cols +
                                                lattice.cols.first)]);
    }
  }

  void measure(std::size_t p) {
    const plan::TargetMatrix& matrix = index.matrices[p];
    const std::vector<Update>& updates = tensor->merge->updates;
    const bool dora = std::any_of(matrix.updates.begin(), matrix.updates.end(),
                                  [&](auto u) { return updates[u].magnitude.has_value(); });
    if (!dora) return;
    const plan::Lattice& lattice = matrix.lattice;
    const std::int64_t begin = lattice.rows.first, end = lattice.rows.last() + 1;
    std::vector<std::vector<double>> sums(
        matrix.updates.size(),
        std::vector<double>(static_cast<std::size_t>(lattice.swapped ? lattice.cols.count : lattice.rows.count)));
    for (std::int64_t row = begin; row < end; row += kChunk) {
      const std::int64_t rows = std::min(kChunk, end - row);
      std::vector<double> values = base(row, rows);
      each(p, row, rows, values, [&](std::int64_t i, const double* at) {
        for (std::size_t n = 0; n < sums.size(); ++n) {
          const std::vector<double> delta = deltas_of(p)[n].row(i);
          for (std::int64_t j = 0; j < lattice.cols.count; ++j) {
            const double value = at[j * lattice.cols.step] + delta[static_cast<std::size_t>(j)];
            sums[n][static_cast<std::size_t>(lattice.swapped ? j : i)] += value * value;
          }
        }
      });
    }
    for (std::size_t n = 0; n < sums.size(); ++n) {
      const Update& update = updates[matrix.updates[n]];
      if (!update.magnitude) continue;
      std::vector<double>& row_scale = row_scales[matrix.updates[n]];
      for (std::size_t o = 0; o < sums[n].size(); ++o) {
        row_scale.push_back(execution::value_at(*plan, *update.magnitude, static_cast<std::int64_t>(o), 0) /
                            std::sqrt(sums[n][o]));
      }
    }
  }

  void apply(std::size_t p, std::int64_t first, std::int64_t count, std::vector<double>& values) {
    const plan::TargetMatrix& matrix = index.matrices[p];
    const plan::Lattice& lattice = matrix.lattice;
    each(p, first, count, values, [&](std::int64_t i, double* at) {
      for (std::size_t n = 0; n < matrix.updates.size(); ++n) {
        const std::vector<double> delta = deltas_of(p)[n].row(i);
        const std::vector<double>& row_scale = row_scales[matrix.updates[n]];
        for (std::int64_t j = 0; j < lattice.cols.count; ++j) {
          double& value = at[j * lattice.cols.step];
          value += delta[static_cast<std::size_t>(j)];
          if (!row_scale.empty()) value *= row_scale[static_cast<std::size_t>(lattice.swapped ? j : i)];
        }
      }
    });
  }
};

Evaluator::Evaluator(const Plan& plan, std::size_t file, std::size_t tensor) : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.plan = &plan;
  state.tensor = &plan.files[file].tensors[tensor];
  const std::vector<Block>& blocks = state.tensor->blocks;
  state.blocks = plan::RowIndex(
      blocks.size(), [&](std::size_t b) { return blocks[b].row; }, [&](std::size_t b) { return blocks[b].row_end(); });
  if (!state.tensor->merge) return;
  state.index = plan::TargetIndex(*state.tensor);
  state.row_scales.resize(state.tensor->merge->updates.size());
  for (std::size_t p = 0; p < state.index.matrices.size(); ++p) state.measure(p);
}
Evaluator::~Evaluator() = default;
Evaluator::Evaluator(Evaluator&&) noexcept = default;
Evaluator& Evaluator::operator=(Evaluator&&) noexcept = default;

std::vector<double> Evaluator::base(std::int64_t first, std::int64_t count) const { return state_->base(first, count); }

std::vector<double> Evaluator::merged(std::int64_t first, std::int64_t count) const {
  std::vector<double> values = state_->base(first, count);
  state_->index.by_row.find(first, first + count, [&](std::size_t p) { state_->apply(p, first, count, values); });
  return values;
}

}  // namespace peft
