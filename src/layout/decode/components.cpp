#include "layout/decode/components.h"

#include <algorithm>
#include <cstring>

#include "base/float_formats.h"

namespace peft::layout {
namespace {

// The bits that make an element non-zero, repeated over a word: all but the sign of floating-point types.
std::uint64_t value_mask(Dtype dtype) {
  const FloatFormat* format = float_format(dtype);
  if (format == nullptr) return ~0ULL;
  std::uint64_t mask = format->value_bits;
  for (int bits = info(dtype).bits; bits < 64; bits *= 2) mask |= mask << bits;
  return mask;
}

// How many rows ahead memory is fetched. The rows lie apart, so the processor does not foresee them by itself.
constexpr std::int64_t kRowsAhead = 4;

// `mask` repeats with the element size and `data` begins on an element, so words and tail see the right bits.
// `ahead`: bytes from here to what will be looked at soon.
bool any_nonzero(const std::byte* data, std::size_t size, std::uint64_t mask, std::size_t ahead) {
  std::size_t at = 0;
  for (; at + 64 <= size; at += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(data) + at + ahead), 0, 2);
    std::uint64_t words[8];
    std::memcpy(words, data + at, 64);
    if (((words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]) & mask) != 0)
      return true;
  }
  for (; at < size; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + at, std::min<std::size_t>(8, size - at));
    if ((word & mask) != 0) return true;
  }
  return false;
}

struct Run {
  std::int64_t begin, end;
};

std::vector<Run> unused_runs(const std::vector<bool>& used) {
  std::vector<Run> runs;
  for (std::int64_t c = 0, n = static_cast<std::int64_t>(used.size()); c < n; ++c) {
    if (used[static_cast<std::size_t>(c)]) continue;
    if (!runs.empty() && runs.back().end == c)
      ++runs.back().end;
    else
      runs.push_back({c, c + 1});
  }
  return runs;
}

class Rows {
 public:
  explicit Rows(const StoredMatrix& matrix)
      : matrix_(matrix),
        element_(static_cast<std::size_t>(info(matrix.dtype).bits) / 8),
        mask_(value_mask(matrix.dtype)) {}

  bool nonzero(std::int64_t row, std::int64_t begin, std::int64_t end) const {
    const auto first = static_cast<std::size_t>(row * matrix_.cols + begin) * element_;
    return any_nonzero(matrix_.bytes.data() + first, static_cast<std::size_t>(end - begin) * element_, mask_,
                       static_cast<std::size_t>(kRowsAhead * matrix_.cols) * element_);
  }
  // Marks the used columns of one row; true if there were new ones.
  bool mark(std::int64_t row, const std::vector<Run>& runs, std::vector<bool>& used) const {
    bool found = false;
    for (const Run& run : runs) {
      if (!nonzero(row, run.begin, run.end)) continue;
      for (std::int64_t c = run.begin; c < run.end; ++c) {
        if (!nonzero(row, c, c + 1)) continue;
        used[static_cast<std::size_t>(c)] = true;
        found = true;
      }
    }
    return found;
  }

 private:
  const StoredMatrix& matrix_;
  std::size_t element_;
  std::uint64_t mask_;
};

// Rows with a value in column `first` or every second one after it.
std::vector<bool> nonzero_in_turn(const StoredMatrix& matrix, std::int64_t first) {
  std::vector<bool> used(static_cast<std::size_t>(matrix.rows), false);
  const Rows rows(matrix);
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    for (std::int64_t col = first; col < matrix.cols && !used[static_cast<std::size_t>(row)]; col += 2)
      used[static_cast<std::size_t>(row)] = rows.nonzero(row, col, col + 1);
  }
  return used;
}

StoredMatrix matrix(const Context& context, std::uint32_t tensor) {
  const TensorInfo& info = context.tensor(tensor);
  return {context.adapter.weights->bytes(info), info.dtype, info.shape[0], info.shape[1]};
}

// Use of the components of all experts, in the stored order of lora_A's rows (expert * rank + k).
class Use {
 public:
  Use(const Context& context, const FusedSlot& slot, const FusedForm& form)
      : slot_(slot), form_(form), a_(matrix(context, slot.slot->a)), b_(matrix(context, slot.slot->b)) {}

  // Components with a value in output rows [first, last) of the natural B.
  std::vector<bool> out(std::int64_t first, std::int64_t last) const {
    return form_.orientation == Orientation::natural ? by_component(nonzero_columns(b_, first, last))
                                                     : nonzero_rows(a_, first, last);
  }
  // The same of the rows of gate, or of up, where the two alternate: rows 0, 2, ... or 1, 3, ...
  std::vector<bool> out_alternating(bool up) const {
    if (form_.orientation == Orientation::reversed) return nonzero_in_turn(a_, up ? 1 : 0);
    // Two rows that follow each other, seen as one, have gate in their first half.
    StoredMatrix pairs = b_;
    pairs.rows /= 2, pairs.cols *= 2;
    const std::vector<bool> both = nonzero_columns(pairs, 0, pairs.rows);
    const auto begin = both.begin() + (up ? b_.cols : 0);
    return by_component({begin, begin + b_.cols});
  }
  // Components with a value in the natural A.
  std::vector<bool> in() const {
    return form_.orientation == Orientation::natural ? nonzero_rows(a_, 0, a_.cols)
                                                     : by_component(nonzero_columns(b_, 0, b_.rows));
  }
  std::int64_t out_width() const { return form_.orientation == Orientation::natural ? slot_.b_width : slot_.a_width; }

 private:
  std::vector<bool> by_component(const std::vector<bool>& columns) const {
    if (form_.packing == BPacking::grouped_by_expert) return columns;
    std::vector<bool> used(columns.size());
    for (std::int64_t e = 0; e < slot_.num_experts; ++e) {
      for (std::int64_t k = 0; k < slot_.rank; ++k) {
        used[static_cast<std::size_t>(e * slot_.rank + k)] =
            columns[static_cast<std::size_t>(k * slot_.num_experts + e)];
      }
    }
    return used;
  }

  const FusedSlot& slot_;
  const FusedForm& form_;
  StoredMatrix a_, b_;
};

bool all(const std::vector<bool>& flags) { return std::find(flags.begin(), flags.end(), false) == flags.end(); }

// The component at which gate ends and up begins, if no expert uses a component for both. -1: there is none.
std::int64_t split_at(const std::vector<bool>& gate, const std::vector<bool>& up, std::int64_t rank) {
  std::int64_t after_gate = 0, first_up = rank;
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const std::int64_t k = static_cast<std::int64_t>(i) % rank;
    if (gate[i]) after_gate = std::max(after_gate, k + 1);
    if (up[i]) first_up = std::min(first_up, k);
  }
  if (after_gate > first_up) return -1;
  if (after_gate > 0 && first_up == rank) return rank;  // only gate
  if (after_gate == 0 && first_up < rank) return 0;     // only up
  const std::int64_t half = rank / 2;
  if (rank % 2 == 0 && after_gate <= half && half <= first_up) return half;
  return after_gate == 0 ? -1 : after_gate;
}

// Drops trailing components that are zero in both factors.
ComponentRange trim(std::int64_t first, std::int64_t last, const std::vector<bool>& used, std::size_t base) {
  while (last > first && !used[base + static_cast<std::size_t>(last - 1)]) --last;
  return {first, last - first};
}

}  // namespace

std::vector<bool> nonzero_columns(const StoredMatrix& matrix, std::int64_t first_row, std::int64_t last_row) {
  std::vector<bool> used(static_cast<std::size_t>(matrix.cols), false);
  const Rows rows(matrix);
  // Most columns show a value in the first rows. What is left are a few long runs, checked as memory.
  std::vector<Run> runs = unused_runs(used);
  for (std::int64_t row = first_row; row < last_row && !runs.empty(); ++row) {
    if (rows.mark(row, runs, used)) runs = unused_runs(used);
  }
  return used;
}

std::vector<bool> nonzero_rows(const StoredMatrix& matrix, std::int64_t first_col, std::int64_t last_col) {
  std::vector<bool> used(static_cast<std::size_t>(matrix.rows), false);
  const Rows rows(matrix);
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    used[static_cast<std::size_t>(row)] = rows.nonzero(row, first_col, last_col);
  }
  return used;
}

Components find_components(const Context& context, const FusedSlot& slot, const FusedForm& form) {
  const Use use(context, slot, form);
  const std::int64_t width = use.out_width();
  const bool two = slot.parameter->projections.size() == 2, alternate = two && slot.parameter->interleaved;
  Components result;
  result.parts = std::max<std::size_t>(1, slot.parameter->projections.size());
  const std::vector<bool> first = alternate ? use.out_alternating(false) : use.out(0, two ? width / 2 : width);
  const std::vector<bool> second = alternate ? use.out_alternating(true) : two ? use.out(width / 2, width) : first;
  std::int64_t split = -1;
  if (two) split = split_at(first, second, slot.rank);
  result.block_diagonal = split >= 0;

  std::vector<bool> used(first.size());
  for (std::size_t i = 0; i < used.size(); ++i) used[i] = first[i] || second[i];
  if (!all(used)) {
    const std::vector<bool> in = use.in();
    for (std::size_t i = 0; i < used.size(); ++i) used[i] = used[i] || in[i];
  }
  for (std::int64_t e = 0; e < slot.num_experts; ++e) {
    const auto base = static_cast<std::size_t>(e * slot.rank);
    for (std::size_t p = 0; p < result.parts; ++p) {
      const bool gate = p == 0;
      if (!result.block_diagonal)
        result.ranges.push_back(trim(0, slot.rank, used, base));
      else
        result.ranges.push_back(gate ? trim(0, split, used, base) : trim(split, slot.rank, used, base));
    }
  }
  return result;
}

}  // namespace peft::layout
