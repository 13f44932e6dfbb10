#include "layout/zero_scan.h"

#include <algorithm>
#include <cstring>

namespace peft::layout {
namespace {

// Bits of an element that make it non-zero: all but the sign of floating-point types.
std::uint64_t value_mask(Dtype dtype) {
  switch (dtype) {
    case Dtype::f16:
    case Dtype::bf16:
      return 0x7fff7fff7fff7fffULL;
    case Dtype::f32:
      return 0x7fffffff7fffffffULL;
    case Dtype::f64:
      return 0x7fffffffffffffffULL;
    case Dtype::f8_e4m3:
    case Dtype::f8_e5m2:
      return 0x7f7f7f7f7f7f7f7fULL;
    default:
      return ~0ULL;
  }
}

// Rows ahead of the one that is looked at. They lie apart, so that the processor does not see by itself what comes
// next.
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

}  // namespace peft::layout
