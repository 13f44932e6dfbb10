// What the fast path of a merge works on: a strip of a few rows of W, and the packed factors of one product.
#pragma once

#include <cstddef>
#include <cstdint>

#include "execute/kernels/tile_math.h"

namespace peft::execution {

struct Strip {
  // Packed factors: fp32, fp64, or words of two bf16 (bf16_pairs.h). A row of `left` has `width` of them; a panel of
  // `right` has kPanel times as many. Panels follow each other.
  bool paired = false;
  std::size_t width = 0;
  const void* left = nullptr;
  const void* right = nullptr;

  // Columns [begin, end), counted from the first column of the first panel. `base` and `out` point to column `begin`;
  // columns follow each other without gaps. Pitches are bytes from row to row. `base` and `out` do not overlap.
  std::size_t rows = 0, begin = 0, end = 0;
  const std::byte* base = nullptr;
  std::int64_t base_pitch = 0;
  std::byte* out = nullptr;
  std::int64_t out_pitch = 0;

  // Where |result| < row_limits[row] * panel_limits[panel], cancellation has left too few correct bits. Bit `column` of
  // cancelled[panel * kTileRows + row] is set there. Without row_limits nothing is checked.
  const float* row_limits = nullptr;
  const float* panel_limits = nullptr;
  std::uint64_t* cancelled = nullptr;

  std::size_t panels() const { return (end + kPanel - 1) / kPanel; }
};

struct StripResult {
  bool finite = true;   // all results are finite
  bool marked = false;  // some bit of `cancelled` is set
};

// Prefetches bytes that are needed next: further along this row, and in the row below the strip.
inline void fetch_ahead(const std::byte* from, std::int64_t pitch, std::size_t bytes) {
  constexpr std::uintptr_t kSoon = 512;
  const auto at = reinterpret_cast<std::uintptr_t>(from);
  const std::uintptr_t below = at + static_cast<std::uintptr_t>(pitch) * kTileRows;
  for (std::size_t line = 0; line < bytes; line += 64) {
    // NOLINTBEGIN(performance-no-int-to-ptr): may lie outside of the tensor, and is never read
    __builtin_prefetch(reinterpret_cast<const void*>(at + kSoon + line));
    __builtin_prefetch(reinterpret_cast<const void*>(below + line), 0, 2);
    // NOLINTEND(performance-no-int-to-ptr)
  }
}

}  // namespace peft::execution
