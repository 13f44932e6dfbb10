// What a merged tensor's values are, in fp64: loops over a formula.
#include <algorithm>
#include <cmath>
#include <map>

#include "execute/merge_index.h"
#include "execute/value.h"
#include "peft/execute.h"

namespace peft {
namespace {

using execution::MergedPlace;
using execution::MergeIndex;
using execution::RowIndex;
using execution::StepRange;

constexpr std::int64_t kChunk = 64;  // rows of a pass over a whole matrix

// scale * B * A, laid as the tensor is stored: element (i, j) of the place is the sum over k of left(i, k) *
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
  RowIndex blocks;
  MergeIndex index;
  std::vector<std::vector<double>>
      gains;  // of each update: magnitude / norm for each row of W + delta; empty without DoRA
  std::map<std::size_t, std::vector<Delta>> deltas;  // of the places used last

  const std::vector<Delta>& deltas_of(std::size_t place) {
    constexpr std::size_t kPlaces = 8;
    if (const auto known = deltas.find(place); known != deltas.end()) return known->second;
    if (deltas.size() == kPlaces) deltas.clear();
    std::vector<Delta>& made = deltas[place];
    for (std::uint32_t u : index.places[place].updates)
      made.emplace_back(*plan, tensor->merge->updates[u], index.places[place].lattice.swapped);
    return made;
  }

  std::vector<double> base(std::int64_t first, std::int64_t count) const {
    std::vector<double> values(static_cast<std::size_t>(count * tensor->cols));
    blocks.find(first, first + count, [&](std::size_t b) {
      const Block& block = tensor->blocks[b];
      const std::int64_t begin = std::max(first, block.row),
                         end = std::min(first + count, block.row + block.source.rows);
      for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t j = 0; j < block.source.cols; ++j) {
          const double value = execution::value_at(*plan, block, row - block.row, j);
          values[static_cast<std::size_t>((row - first) * tensor->cols + block.col + j * block.col_step)] =
              tensor->merge ? execution::rounded_to(tensor->merge->base_dtype, value) : value;
        }
      }
    });
    return values;
  }

  // Visits the row's elements that the place covers: visit(i, j, value).
  template <class Visit>
  void each(std::size_t p, std::int64_t first, std::int64_t count, std::vector<double>& values, const Visit& visit) {
    const plan::Lattice& lattice = index.places[p].lattice;
    const StepRange rows = execution::steps_in(lattice.rows, first, first + count);
    for (std::int64_t i = rows.first; i < rows.first + rows.count; ++i) {
      visit(i, &values[static_cast<std::size_t>((lattice.rows.first + i * lattice.rows.step - first) * tensor->cols +
                                                lattice.cols.first)]);
    }
  }

  void measure(std::size_t p) {
    const MergedPlace& place = index.places[p];
    const std::vector<Update>& updates = tensor->merge->updates;
    const bool dora = std::any_of(place.updates.begin(), place.updates.end(),
                                  [&](auto u) { return updates[u].magnitude.has_value(); });
    if (!dora) return;
    const plan::Lattice& lattice = place.lattice;
    const std::int64_t begin = lattice.rows.first, end = lattice.rows.last() + 1;
    std::vector<std::vector<double>> sums(
        place.updates.size(),
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
      const Update& update = updates[place.updates[n]];
      if (!update.magnitude) continue;
      std::vector<double>& gain = gains[place.updates[n]];
      for (std::size_t o = 0; o < sums[n].size(); ++o) {
        gain.push_back(execution::value_at(*plan, *update.magnitude, static_cast<std::int64_t>(o), 0) /
                       std::sqrt(sums[n][o]));
      }
    }
  }

  void apply(std::size_t p, std::int64_t first, std::int64_t count, std::vector<double>& values) {
    const MergedPlace& place = index.places[p];
    const plan::Lattice& lattice = place.lattice;
    each(p, first, count, values, [&](std::int64_t i, double* at) {
      for (std::size_t n = 0; n < place.updates.size(); ++n) {
        const std::vector<double> delta = deltas_of(p)[n].row(i);
        const std::vector<double>& gain = gains[place.updates[n]];
        for (std::int64_t j = 0; j < lattice.cols.count; ++j) {
          double& value = at[j * lattice.cols.step];
          value += delta[static_cast<std::size_t>(j)];
          if (!gain.empty()) value *= gain[static_cast<std::size_t>(lattice.swapped ? j : i)];
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
  state.blocks = RowIndex(
      blocks.size(), [&](std::size_t b) { return blocks[b].row; },
      [&](std::size_t b) { return blocks[b].row + blocks[b].source.rows; });
  if (!state.tensor->merge) return;
  state.index = MergeIndex(*state.tensor);
  state.gains.resize(state.tensor->merge->updates.size());
  for (std::size_t p = 0; p < state.index.places.size(); ++p) state.measure(p);
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
