// The arithmetic of merges, on tiles of kTileRows x kPanel numbers that stay in the first-level cache.
// Every target gives the same bits: chains of fused multiply-adds in a fixed order, and nothing else is fused.
#pragma once

#include <cstddef>
#include <cstdint>

#include "peft/tensor.h"

namespace peft::execution {

inline constexpr std::size_t kPanel = 64;  // columns of a tile
inline constexpr std::int64_t kWidth = kPanel;
inline constexpr std::size_t kTileRows = 8;  // at most: a few rows from left to right are what memory reads ahead
inline constexpr std::size_t kTileSize = kPanel * kTileRows;

// tile[i][j] = the chain over k, from +0, of fused multiply-adds of left[i * rank + k] * right[k * kPanel + j].
void multiply(const float* left, std::size_t rows, std::size_t rank, const float* right, float* tile);
void multiply(const double* left, std::size_t rows, std::size_t rank, const double* right, double* tile);

// How what a tile holds becomes part of the weights. `d` is a product, W the weight as it is, base() rounds to the
// base's dtype.
enum class AddRule : std::uint8_t {
  fused,          // fma(scale, d, W)
  plain,          // base(W + scale * d)
  delta_rounded,  // base(W + base(scale * d))
  taken_out,      // base(W - base(scale * d))
};
// Rows of W: in fp32 or fp64, whatever their dtype is.
struct AddOptions {
  AddRule rule = AddRule::fused;
  Dtype base = Dtype::bf16;
  double scale = 1;
};
void apply_rule(const AddOptions& options, const float* d, float* w, std::size_t count);
void apply_rule(const AddOptions& options, const double* d, double* w, std::size_t count);

// Rows of a dtype to tiles and back: bf16, f16, f32 and f64. store() rounds to nearest even and is false when some
// result is not finite.
void load(Dtype dtype, const std::byte* from, std::size_t count, float* to);
void load(Dtype dtype, const std::byte* from, std::size_t count, double* to);
bool store(Dtype dtype, const float* from, std::size_t count, std::byte* to);
bool store(Dtype dtype, const double* from, std::size_t count, std::byte* to);
// In place: to the dtype and back.
void round_to(Dtype dtype, float* values, std::size_t count);
void round_to(Dtype dtype, double* values, std::size_t count);

}  // namespace peft::execution
