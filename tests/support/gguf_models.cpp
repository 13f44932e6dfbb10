#include "support/gguf_models.h"

#include <fmt/format.h>

#include <cstring>
#include <fstream>
#include <random>
#include <stdexcept>

#include "base/float_formats.h"
#include "gguf/file_layout.h"
#include "gguf/types/block_formats.h"

namespace peft::testing {
namespace {

using gguf::GgmlType;

std::int64_t product_of(const std::vector<std::int64_t>& shape) {
  std::int64_t result = 1;
  for (const std::int64_t size : shape) result *= size;
  return result;
}

void put_half(std::byte* at, float value) {
  const std::uint16_t bits = float_to_f16(value);
  std::memcpy(at, &bits, sizeof bits);
}

// Blocks of random bytes; their scales are small and finite.
std::vector<std::byte> random_blocks(GgmlType type, std::int64_t elements, std::mt19937_64& random) {
  static const std::map<GgmlType, std::vector<std::size_t>> scales = {
      {GgmlType::q4_1, {0, 2}}, {GgmlType::q5_0, {0}},    {GgmlType::q5_1, {0, 2}},
      {GgmlType::q4_k, {0, 2}}, {GgmlType::q5_k, {0, 2}}, {GgmlType::q6_k, {208}}};
  const gguf::GgmlTypeInfo& sizes = gguf::info(type);
  std::vector<std::byte> bytes(static_cast<std::size_t>(elements / sizes.block) * sizes.block_bytes);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  const auto known = scales.find(type);
  if (known == scales.end()) return bytes;
  for (std::size_t block = 0; block < bytes.size(); block += sizes.block_bytes)
    for (const std::size_t at : known->second)
      put_half(bytes.data() + block + at, 0x1p-10F * static_cast<float>(1 + random() % 7));
  return bytes;
}

template <class Bits>
std::vector<std::byte> bytes_of(const std::vector<float>& values, Bits (*encode)(float)) {
  std::vector<std::byte> bytes(values.size() * sizeof(Bits));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Bits bits = encode(values[i]);
    std::memcpy(bytes.data() + i * sizeof bits, &bits, sizeof bits);
  }
  return bytes;
}

}  // namespace

GgufTensor random_gguf(std::string name, GgmlType type, std::vector<std::int64_t> shape, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::int64_t elements = product_of(shape);
  GgufTensor tensor{std::move(name), type, std::move(shape)};
  const bool plain = type == GgmlType::f32 || type == GgmlType::f16 || type == GgmlType::bf16;
  if (!plain && !gguf::can_pack(type)) {
    tensor.bytes = random_blocks(type, elements, random);
    return tensor;
  }
  std::vector<float> values(static_cast<std::size_t>(elements));
  for (float& value : values) value = (static_cast<float>(random() % 4001) - 2000) / 4096;
  if (type == GgmlType::f32) {
    tensor.bytes = bytes_of<std::uint32_t>(values, [](float value) { return std::bit_cast<std::uint32_t>(value); });
  } else if (type == GgmlType::f16) {
    tensor.bytes = bytes_of<std::uint16_t>(values, float_to_f16);
  } else if (type == GgmlType::bf16) {
    tensor.bytes = bytes_of<std::uint16_t>(values, float_to_bf16);
  } else {
    tensor.bytes.resize(*gguf::tensor_bytes(type, tensor.shape));
    if (!gguf::pack_blocks(type, values, tensor.bytes.data())) throw std::runtime_error("numbers do not fit");
  }
  return tensor;
}

void write_gguf(const std::string& path, const std::vector<GgufTensor>& tensors, const gguf::KeyValues& values) {
  std::vector<gguf::NewGgufTensor> list;
  for (const GgufTensor& tensor : tensors) list.push_back({tensor.name, tensor.type, tensor.shape});
  const FileLayout layout = gguf::layout_gguf(list, values);
  std::string image(layout.file_bytes(), '\0');
  layout.head.copy(image.data(), layout.head.size());
  for (std::size_t i = 0; i < tensors.size(); ++i)
    std::memcpy(image.data() + layout.head.size() + layout.begin[i], tensors[i].bytes.data(), tensors[i].bytes.size());
  std::ofstream(path, std::ios::binary) << image;
}

std::vector<float> values_of(const gguf::GgufFile& file, const std::string& name) {
  const TensorInfo* tensor = file.find(name);
  if (tensor == nullptr) throw std::runtime_error("no tensor " + name);
  const auto bytes = file.bytes(*tensor);
  const GgmlType type = file.type_of(*tensor);
  std::int64_t count = 1;
  for (const std::int64_t size : tensor->shape) count *= size;
  std::vector<float> values(static_cast<std::size_t>(count));
  if (gguf::find_block_format(type) != nullptr) {
    gguf::unpack_blocks(type, bytes, values.data());
    return values;
  }
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(decode_float(tensor->dtype, bytes.data() + i * bytes.size() / values.size()));
  return values;
}

gguf::KeyValues TinyGguf::values() const {
  return {{"general.architecture", gguf::text_value("llama")},
          {"general.type", gguf::text_value("model")},
          {"general.name", gguf::text_value("tiny")},
          {"llama.block_count", gguf::u32_value(kLayers)},
          {"llama.embedding_length", gguf::u32_value(kHidden)},
          {"llama.attention.head_count", gguf::u32_value(kHeads)},
          {"llama.attention.head_count_kv", gguf::u32_value(kKvHeads)},
          {"llama.expert_count", gguf::u32_value(kExperts)}};
}

std::vector<GgufTensor> TinyGguf::tensors() const {
  std::vector<GgufTensor> result;
  const auto add = [&](const std::string& prefix, const std::string& name, std::vector<std::int64_t> shape) {
    const auto type = types.find(name);
    result.push_back(random_gguf(prefix + name + ".weight", type == types.end() ? GgmlType::f32 : type->second,
                                 std::move(shape), 100 + result.size()));
  };
  add("", "token_embd", {kTokens, kHidden});
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = fmt::format("blk.{}.", layer);
    add(prefix, "attn_norm", {kHidden});
    add(prefix, "attn_q", {kHeads * kHeadRows, kHidden});
    add(prefix, "attn_k", {kKvHeads * kHeadRows, kHidden});
    add(prefix, "attn_v", {kKvHeads * kHeadRows, kHidden});
    add(prefix, "attn_output", {kHidden, kHeads * kHeadRows});
    add(prefix, "ffn_gate_inp", {kExperts, kHidden});
    add(prefix, "ffn_gate_exps", {kExperts, kInner, kHidden});
    add(prefix, "ffn_up_exps", {kExperts, kInner, kHidden});
    add(prefix, "ffn_down_exps", {kExperts, kHidden, kInner});
  }
  if (!tied) add("", "output", {kTokens, kHidden});
  return result;
}

}  // namespace peft::testing
