#include "execute/kernels/transpose.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

// SVE and RISC-V vectors have no size at compile time; NEON and scalar code take their place.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "execute/kernels/transpose.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace peft::execution::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using InRows = const std::byte* const*;
using OutRows = std::byte* const*;

template <class T>
void transpose_elements(InRows in, std::size_t i_begin, std::size_t i_end, OutRows out, std::size_t j_begin,
                        std::size_t j_end) {
  for (std::size_t j = j_begin; j < j_end; ++j) {
    for (std::size_t i = i_begin; i < i_end; ++i) std::memcpy(out[j] + i * sizeof(T), in[i] + j * sizeof(T), sizeof(T));
  }
}

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE

// Bytes of a block: what Highway's interleaves work on, whatever the vector length.
constexpr std::size_t kBlock = 16;
// Bytes of all input rows, and of one, that are read in one go.
constexpr std::size_t kPacked = 8192, kShortPiece = 256;
constexpr std::size_t kCacheLine = 64;

// A vector whose block b comes from row(b).
template <std::size_t kBytes, class Row>
HWY_INLINE auto load_blocks(const Row& row, std::size_t first = 0) {
  const hn::FixedTag<std::uint8_t, kBytes> d;
  if constexpr (kBytes == kBlock) {
    return hn::LoadU(d, reinterpret_cast<const std::uint8_t*>(row(first)));
  } else {
    constexpr std::size_t kHalf = kBytes / 2;
    const auto lower = load_blocks<kHalf>(row, first);
    const auto upper = load_blocks<kHalf>(row, first + kHalf / kBlock);
    return hn::Combine(d, upper, lower);
  }
}

// kBytes / sizeof(T) rows of 16 bytes become 16 / sizeof(T) rows of kBytes. Block b of vector v holds a piece of
// row b * n + v, so once the blocks are transposed, vector v is a whole piece of output row v. Row r is at row(r).
template <class T, std::size_t kBytes, class Row>
HWY_INLINE void transpose_tile(const Row& row, OutRows out, std::size_t out_offset) {
  constexpr std::size_t n = kBlock / sizeof(T);
  const hn::FixedTag<T, kBytes / sizeof(T)> d;
  const hn::FixedTag<std::uint8_t, kBytes> bytes;
  using V = hn::Vec<decltype(d)>;
  V a[n], b[n];
  HWY_UNROLL(16)
  for (std::size_t v = 0; v < n; ++v) {
    a[v] = hn::BitCast(d, load_blocks<kBytes>([&](std::size_t block) HWY_ATTR { return row(block * n + v); }));
  }
  // log2(n) rounds of the same perfect shuffle transpose n vectors of n elements.
  HWY_UNROLL(4)
  for (std::size_t round = 1; round < n; round *= 2) {
    HWY_UNROLL(8)
    for (std::size_t v = 0; v < n / 2; ++v) {
      b[2 * v] = hn::InterleaveLower(d, a[v], a[v + n / 2]);
      b[2 * v + 1] = hn::InterleaveUpper(d, a[v], a[v + n / 2]);
    }
    HWY_UNROLL(16)
    for (std::size_t v = 0; v < n; ++v) a[v] = b[v];
  }
  HWY_UNROLL(16)
  for (std::size_t v = 0; v < n; ++v) {
    hn::StoreU(hn::BitCast(bytes, a[v]), bytes, reinterpret_cast<std::uint8_t*>(out[v] + out_offset));
  }
}

// Part of the input: a fixed number of rows from i on, `columns` elements of each from j on.
struct Piece {
  std::size_t i, j, columns;
};

// Transposes one piece and prefetches another. Experts often lie a power of two apart, where their lines compete
// for the same few sets of the cache; so each line is read once, into a packed copy, and used from there.
template <class T, std::size_t kBytes, std::size_t kPiece>
HWY_INLINE void transpose_piece(InRows in, OutRows out, const Piece& piece, const Piece& next) {
  constexpr std::size_t kRows = kBytes / sizeof(T), n = kBlock / sizeof(T);
  alignas(64) std::byte packed[kRows * kPiece];
  const InRows rows = in + piece.i;
  const std::size_t offset = piece.j * sizeof(T), bytes = piece.columns * sizeof(T);
  if (bytes == kPiece) {  // sizes known to the compiler are copied without a call
    for (std::size_t r = 0; r < kRows; ++r) std::memcpy(packed + r * kPiece, rows[r] + offset, kPiece);
  } else if (bytes == kBlock) {
    for (std::size_t r = 0; r < kRows; ++r) std::memcpy(packed + r * kPiece, rows[r] + offset, kBlock);
  } else {
    for (std::size_t r = 0; r < kRows; ++r) std::memcpy(packed + r * kPiece, rows[r] + offset, bytes);
  }
  // Rows of the next piece to prefetch with each tile: one more than would do, so that the last are early as well.
  const std::size_t rows_per_tile = kRows / ((piece.columns + n - 1) / n) + 1;
  std::size_t next_row = 0;
  for (std::size_t done = 0; done < piece.columns; done += n) {
    const std::size_t c = std::min(done, piece.columns - n);  // the last tile may overlap the one before
    for (std::size_t r = 0; r < rows_per_tile && next_row < kRows; ++r, ++next_row) {
      const std::byte* row = in[next.i + next_row] + next.j * sizeof(T);
      const std::size_t length = next.columns * sizeof(T);
      for (std::size_t at = 0; at < length; at += kCacheLine) __builtin_prefetch(row + at, 0, 2);
      __builtin_prefetch(row + length - 1, 0, 2);
    }
    const auto row = [&](std::size_t r) HWY_ATTR { return packed + r * kPiece + c * sizeof(T); };
    transpose_tile<T, kBytes>(row, out + piece.j + c, piece.i * sizeof(T));
  }
}

// All pieces, in the order that finishes the rows of the shorter side one after the other. Pieces at the end are
// moved back to full size and overlap. Needs n_in >= kBytes / sizeof(T) and n_out >= 16 / sizeof(T).
// Prefetches the piece that comes `ahead` pieces later.
template <class T, std::size_t kBytes, std::size_t kPiece>
void transpose_pieces(InRows in, std::size_t n_in, OutRows out, std::size_t n_out, std::size_t ahead) {
  constexpr std::size_t kRows = kBytes / sizeof(T), kColumns = kPiece / sizeof(T), n = kBlock / sizeof(T);
  const std::size_t down = (n_in + kRows - 1) / kRows, across = (n_out + kColumns - 1) / kColumns;
  const auto at = [&](std::size_t index) HWY_ATTR {
    const std::size_t row = n_in > n_out ? index / across : index % down;
    const std::size_t column = n_in > n_out ? index % across : index / down;
    const std::size_t j = std::min(column * kColumns, n_out - n);
    return Piece{std::min(row * kRows, n_in - kRows), j, std::min(kColumns, n_out - j)};
  };
  const std::size_t count = down * across;
  Piece piece = at(0), next = at(std::min<std::size_t>(1, count - 1));
  for (std::size_t index = 0; index < count; ++index) {
    const Piece last = at(std::min(index + 2, count - 1));
    transpose_piece<T, kBytes, kPiece>(in, out, piece, ahead == 1 ? next : last);
    piece = next;
    next = last;
  }
}

// Rows shorter than a cache line follow each other in memory: read as they are.
template <class T, std::size_t kBytes>
void transpose_short_rows(InRows in, std::size_t n_in, OutRows out, std::size_t n_out) {
  constexpr std::size_t kRows = kBytes / sizeof(T), n = kBlock / sizeof(T), kAhead = 4 * kRows;
  const std::size_t rows_per_line = kCacheLine / (n_out * sizeof(T));
  for (std::size_t done = 0; done < n_in; done += kRows) {
    const std::size_t i = std::min(done, n_in - kRows);
    for (std::size_t r = done + kAhead; r < std::min(done + kAhead + kRows, n_in); r += rows_per_line) {
      __builtin_prefetch(in[r], 0, 2);
    }
    for (std::size_t j = 0; j < n_out; j += n) {
      const std::size_t c = std::min(j, n_out - n);
      const auto row = [&](std::size_t r) HWY_ATTR { return in[i + r] + c * sizeof(T); };
      transpose_tile<T, kBytes>(row, out + c, i * sizeof(T));
    }
  }
}

// Few long rows are read in long pieces; many short ones follow each other in memory. Lengths and distances as measured
// by bench_kernels.
template <class T, std::size_t kBytes>
void transpose_vectors(InRows in, std::size_t n_in, OutRows out, std::size_t n_out) {
  constexpr std::size_t kRows = kBytes / sizeof(T), kLongPiece = kPacked / kRows;
  if (n_in <= n_out) return transpose_pieces<T, kBytes, kLongPiece>(in, n_in, out, n_out, 1);
  if (n_out * sizeof(T) < kCacheLine) return transpose_short_rows<T, kBytes>(in, n_in, out, n_out);
  transpose_pieces<T, kBytes, kShortPiece>(in, n_in, out, n_out, 2);
}

template <class T>
void transpose_of(InRows in, std::size_t n_in, OutRows out, std::size_t n_out) {
  constexpr std::size_t kVector = HWY_MIN(HWY_MAX_BYTES, 64);
  constexpr std::size_t n = kBlock / sizeof(T);
  if (n_in < n || n_out < n) return transpose_elements<T>(in, 0, n_in, out, 0, n_out);
  if (n_in >= kVector / sizeof(T)) return transpose_vectors<T, kVector>(in, n_in, out, n_out);
  transpose_vectors<T, kBlock>(in, n_in, out, n_out);
}

#else

template <class T>
void transpose_of(InRows in, std::size_t n_in, OutRows out, std::size_t n_out) {
  transpose_elements<T>(in, 0, n_in, out, 0, n_out);
}

#endif

void transpose_any(InRows in, std::size_t n_in, OutRows out, std::size_t n_out, std::size_t element_size) {
  switch (element_size) {
    case 1:
      return transpose_of<std::uint8_t>(in, n_in, out, n_out);
    case 2:
      return transpose_of<std::uint16_t>(in, n_in, out, n_out);
    case 4:
      return transpose_of<std::uint32_t>(in, n_in, out, n_out);
    default:
      return transpose_of<std::uint64_t>(in, n_in, out, n_out);
  }
}

}  // namespace
}  // namespace peft::execution::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace peft::execution {

HWY_EXPORT(transpose_any);

void transpose(std::span<const std::byte* const> in_rows, std::span<std::byte* const> out_rows,
               std::size_t element_size) {
  HWY_DYNAMIC_DISPATCH(transpose_any)(in_rows.data(), in_rows.size(), out_rows.data(), out_rows.size(), element_size);
}

void transpose_scalar(std::span<const std::byte* const> in_rows, std::span<std::byte* const> out_rows,
                      std::size_t element_size) {
  for (std::size_t i = 0; i < in_rows.size(); ++i) {
    for (std::size_t j = 0; j < out_rows.size(); ++j) {
      std::memcpy(out_rows[j] + i * element_size, in_rows[i] + j * element_size, element_size);
    }
  }
}

}  // namespace peft::execution
#endif
