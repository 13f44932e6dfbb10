// The arithmetic of merges, on tiles of kTileRows x kPanel numbers that stay in the first-level cache.
// Every instruction set gives the same bits: chains of fused multiply-adds in a fixed order, and nothing else is fused.
#pragma once

#include <cstddef>
#include <cstdint>

#include "peft/tensor.h"

namespace peft::execution {

inline constexpr std::size_t kPanel = 64;       // columns of a tile
inline constexpr std::int64_t kWidth = kPanel;  // the same, for arithmetic with indexes
inline constexpr std::size_t kTileRows =
    8;  // at most; the processor prefetches a few rows that are read from left to right
inline constexpr std::size_t kTileSize = kPanel * kTileRows;

// tile[i][j] = the chain over k, from +0, of fused multiply-adds of left[i * rank + k] * right[k * kPanel + j].
void multiply(const float* left, std::size_t rows, std::size_t rank, const float* right, float* tile);
void multiply(const double* left, std::size_t rows, std::size_t rank, const double* right, double* tile);

// Whether the instruction set in use has vectors of 64 bytes.
bool has_wide_vectors();

// How a product d is added to the weight W. base() rounds to the base's dtype.
enum class AddRule : std::uint8_t {
  fused,          // fma(scale, d, W)
  plain,          // base(W + scale * d)
  delta_rounded,  // base(W + base(scale * d))
  taken_out,      // base(W - base(scale * d))
};
// `base` is the dtype that base() rounds to. W itself is held in fp32 or fp64.
struct AddOptions {
  AddRule rule = AddRule::fused;
  Dtype base = Dtype::bf16;
  double scale = 1;
};
void apply_rule(const AddOptions& options, const float* d, float* w, std::size_t count);
void apply_rule(const AddOptions& options, const double* d, double* w, std::size_t count);

// Rows of bf16, f16, f32 or f64 to fp32 or fp64 and back. store() rounds to nearest even. It returns false if a result
// is not finite.
void load(Dtype dtype, const std::byte* from, std::size_t count, float* to);
void load(Dtype dtype, const std::byte* from, std::size_t count, double* to);
bool store(Dtype dtype, const float* from, std::size_t count, std::byte* to);
bool store(Dtype dtype, const double* from, std::size_t count, std::byte* to);
// Rounds values to the dtype, in place.
void round_to(Dtype dtype, float* values, std::size_t count);
void round_to(Dtype dtype, double* values, std::size_t count);

}  // namespace peft::execution
