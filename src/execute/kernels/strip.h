// A few rows of W from memory, one product, its tail, and back to memory in one go: the way of most weights of most
// merges.
#pragma once

#include <cstddef>
#include <cstdint>

#include "execute/kernels/tile_math.h"

namespace peft::execution {

struct Strip {
  // Factors as packed: fp32, or words of two bf16 (merge_pairs.h). A row of `left` has `width` of them, a panel of
  // `right`, and they follow each other, kPanel times as many.
  bool paired = false;
  std::size_t width = 0;
  const void* left = nullptr;
  const void* right = nullptr;

  // Columns [begin, end), counted from the first of the first panel. Pitches are bytes from row to row; columns follow
  // each other, and the first byte is that of column `begin`. `base` and `out` do not overlap.
  std::size_t rows = 0, begin = 0, end = 0;
  const std::byte* base = nullptr;
  std::int64_t base_pitch = 0;
  std::byte* out = nullptr;
  std::int64_t out_pitch = 0;

  // Where |result| < row_limits[row] * panel_limits[panel], too few bits are left of it: bit `column` of
  // suspects[panel * kTileRows + row] is set. None are looked for when row_limits is null.
  const float* row_limits = nullptr;
  const float* panel_limits = nullptr;
  std::uint64_t* cancelled = nullptr;

  std::size_t panels() const { return (end + kPanel - 1) / kPanel; }
};

struct StripResult {
  bool finite = true;   // every result is
  bool marked = false;  // there are suspects
};

// Asks for some bytes to come: soon, from the row; and after the strip, from below it.
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

// Whether the target in use has vectors of 64 bytes.
bool has_wide_vectors();

// All in options.base: bf16, f16 or f32.
StripResult merge_strip(const AddOptions& options, const Strip& strip);

}  // namespace peft::execution
