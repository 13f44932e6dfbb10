// Adapters made by tests: safetensors bytes and configs, written without the library.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "support/golden.h"
#include "support/matrix.h"

namespace peft::testing {

struct NewMatrix {
  std::string name;
  Matrix values;
};
// A safetensors file of 2-D tensors, all of one dtype (f32, f16, bf16), which must hold the values exactly.
std::string safetensors_image(std::vector<NewMatrix> tensors, Dtype dtype);

// One fused pair from per-expert factors: A row e*r + k; B column k*E + e, or e*r + k when `grouped`.
// `turned`: stored the other way round, each expert's A and B trading places as transposes.
struct FusedPair {
  Matrix a, b;
};
struct ExpertFactors {
  Matrix a, b;  // [r, in], [out, r]
};
FusedPair fuse(const std::vector<ExpertFactors>& experts, bool turned, bool grouped);

void write_adapter(const std::filesystem::path& folder, std::vector<NewMatrix> tensors, Dtype dtype, const Json& config);

// A base model's config.json: all that names and shapes need. Keys of the family's own transformers config.
struct TinyModel {
  std::string model_type = "mixtral";
  std::int64_t hidden = 0, intermediate = 0, experts = 0, layers = 1;
};
void write_model(const std::filesystem::path& folder, const TinyModel& model);

}  // namespace peft::testing
