// Models in GGUF that tests make: any tensors of any type, with values that are known.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "gguf/gguf_file.h"

namespace peft::testing {

struct GgufTensor {
  std::string name;
  gguf::GgmlType type = gguf::GgmlType::f32;
  std::vector<std::int64_t> shape;  // the slowest dimension first
  std::vector<std::byte> bytes{};
};

// Random numbers around zero in any type: of types that can be packed, rounded to them; of others blocks of random
// bytes with small scales.
GgufTensor random_gguf(std::string name, gguf::GgmlType type, std::vector<std::int64_t> shape, std::uint64_t seed);
void write_gguf(const std::string& path, const std::vector<GgufTensor>& tensors, const gguf::KeyValues& values);

// What a tensor of a file is worth, element by element, as gguf-py says it.
std::vector<float> values_of(const gguf::GgufFile& file, const std::string& tensor);

// A Mixtral of eleven layers whose tensors have one type each, with twelve experts. No two dimensions are equal.
struct TinyGguf {
  static constexpr std::int64_t kLayers = 11, kExperts = 12, kHidden = 256, kInner = 96, kHeads = 4, kKvHeads = 2,
                                kHeadRows = 20, kTokens = 50;
  std::map<std::string, gguf::GgmlType> types{};  // by name below the layer: "attn_q"; F32 where nothing is said
  bool tied = false;

  gguf::KeyValues values() const;
  std::vector<GgufTensor> tensors() const;
};

}  // namespace peft::testing
