// The arithmetic of merges, on tiles of kTileRows x kPanel numbers that stay in the first-level cache.
// Every target gives the same bits: chains of fused multiply-adds in a fixed order, and nothing else is fused.
#pragma once

#include <cstddef>
#include <cstdint>

#include "peft/tensor.h"

namespace peft::execution {

inline constexpr std::size_t kPanel = 64;     // columns of a tile
inline constexpr std::size_t kTileRows = 32;  // at most
inline constexpr std::size_t kTileSize = kPanel * kTileRows;

// tile[i][j] = the chain over k, from +0, of fused multiply-adds of left[i * rank + k] * right[k * kPanel + j].
void multiply(const float* left, std::size_t rows, std::size_t rank, const float* right, float* tile);
void multiply(const double* left, std::size_t rows, std::size_t rank, const double* right, double* tile);

// How what a tile holds becomes part of the weights. `d` is a product, W the weight as it is, base() rounds to the base's dtype.
enum class Tail : std::uint8_t {
  fused,          // fma(scale, d, W)
  plain,          // base(W + scale * d)
  delta_rounded,  // base(W + base(scale * d))
  taken_out,      // base(W - base(scale * d))
};
// Rows of W: in fp32 or fp64, whatever their dtype is.
struct TailOptions {
  Tail tail = Tail::fused;
  Dtype base = Dtype::bf16;
  double scale = 1;
};
void apply_tail(const TailOptions& options, const float* d, float* w, std::size_t count);
void apply_tail(const TailOptions& options, const double* d, double* w, std::size_t count);

// Where a tile lies in memory. Bytes from row to row; columns follow each other.
struct TileRows {
  const std::byte* base = nullptr;
  std::int64_t base_pitch = 0;
  std::byte* out = nullptr;
  std::int64_t out_pitch = 0;
  std::size_t rows = 0, cols = 0;
};
// W from memory, the tail, and the result to memory, all in `base` (bf16, f16, f32). False when some result is not finite.
// Where |result| < smallest[row], bit `col` of suspects[row] is set: too few bits are left of it.
bool finish(const TailOptions& options, const float* d, const TileRows& where, const float* smallest,
            std::uint64_t* suspects);

// Rows of a dtype to tiles and back: bf16, f16, f32 and f64. store() rounds to nearest even and is false when some result
// is not finite.
void load(Dtype dtype, const std::byte* from, std::size_t count, float* to);
void load(Dtype dtype, const std::byte* from, std::size_t count, double* to);
bool store(Dtype dtype, const float* from, std::size_t count, std::byte* to);
bool store(Dtype dtype, const double* from, std::size_t count, std::byte* to);
// In place: to the dtype and back.
void round_to(Dtype dtype, float* values, std::size_t count);
void round_to(Dtype dtype, double* values, std::size_t count);

}  // namespace peft::execution
