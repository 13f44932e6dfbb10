// Base models and adapters made by tests: tensors of any dtype and shape, quantised ones too, in one file or several,
// written without the library; and what a model's folder holds, read back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "support/golden.h"
#include "support/matrix.h"

namespace peft::testing {

// Nearest numbers, ties to even; what the tests round their fp64 sums by.
double nearest_bf16(double value);
double nearest_f16(double value);
double nearest(const std::string& dtype, double value);  // "BF16", "F16", "F32"

// As a safetensors file holds it. `values` is what the bytes mean where that is a number each; else empty.
struct Stored {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
  std::vector<double> values;
};
// "F32", "BF16", "F16"; values are rounded to the nearest.
Stored stored(std::string name, std::string dtype, std::vector<std::int64_t> shape, std::vector<double> values);
Stored stored(std::string name, std::string dtype, const Matrix& matrix);
Stored stored_bytes(std::string name, std::string dtype, std::vector<std::int64_t> shape, std::string bytes);

std::string safetensors_of(std::vector<Stored> tensors, const Json& metadata = {{"format", "pt"}});
// One file: model.safetensors. Several: model-0000i-of-0000n.safetensors and an index.
void write_base(const std::filesystem::path& folder, const Json& config,
                const std::vector<std::vector<Stored>>& shards);
void write_lora(const std::filesystem::path& folder, const Json& config, std::vector<Stored> tensors);
Json lora_config(std::int64_t rank, double alpha, const Json& changes);

// Matrices of one dtype (f32, f16, bf16), sorted by name, which must hold the values exactly.
struct NewMatrix {
  std::string name;
  Matrix values;
};
std::string safetensors_image(std::vector<NewMatrix> tensors, Dtype dtype);
void write_adapter(const std::filesystem::path& folder, std::vector<NewMatrix> tensors, Dtype dtype,
                   const Json& config);

// A base model's config.json: all that names and shapes need. Keys of the family's own transformers config.
struct TinyModel {
  std::string model_type = "mixtral";
  std::int64_t hidden = 0, intermediate = 0, experts = 0, layers = 1;
  std::int64_t heads = 1;  // of six: self_attn.q_proj has 6 * heads rows
};
void write_model(const std::filesystem::path& folder, const TinyModel& model);

// Numbers that repeat nowhere soon: multiples of `unit` up to `span` of them, the first never zero.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
  std::uint64_t bits();
  Matrix matrix(std::int64_t rows, std::int64_t cols, double unit, int span);

 private:
  std::uint64_t state_;
};

// [E, rows, cols] in MXFP4, as gpt-oss ships it: NAME_blocks [E, rows, cols / 32, 16], NAME_scales; and its values.
struct Mxfp4 {
  Stored blocks, scales;
  std::vector<Matrix> values;  // of each expert, as the codes lie: [rows, cols]
};
Mxfp4 draw_mxfp4(const std::string& name, std::int64_t experts, std::int64_t rows, std::int64_t cols,
                 std::uint64_t seed);

// [rows, cols] in float8_e4m3fn with NAME_scale_inv [rows / cell, cols / cell]; values are code * scale in fp32, not
// yet rounded.
struct BlockFp8 {
  Stored codes, scales;
  Matrix values;
};
BlockFp8 draw_fp8(const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t cell, std::uint64_t seed);
double value_of_e4m3(std::uint8_t code);

// All tensors of a folder's safetensors files by name, with the file that holds each. Throws when a name is there
// twice.
struct Found {
  std::string dtype, file;
  std::vector<std::int64_t> shape;
  std::string bytes;
  std::vector<double> values;  // of F32, BF16, F16
  std::size_t begin = 0;       // of the bytes, in the file
};
std::map<std::string, Found> tensors_in(const std::filesystem::path& folder);

}  // namespace peft::testing
