#include "support/tensor_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include <fmt/format.h>

namespace peft::testing {
namespace {

template <typename T>
void append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

// Values that a normal half holds exactly; anything else is a mistake of the test.
std::uint16_t half_bits(double value) {
  if (value == 0) return std::signbit(value) ? 0x8000 : 0;
  int exponent = 0;
  const double fraction = std::frexp(std::fabs(value), &exponent) * 2048;  // [1024, 2048)
  const auto whole = static_cast<int>(fraction);
  if (whole != fraction || exponent < -13 || exponent > 16) throw std::runtime_error("not a half");
  return static_cast<std::uint16_t>((std::signbit(value) ? 0x8000 : 0) | ((exponent + 14) << 10) | (whole - 1024));
}

void append(std::string& out, double value, Dtype dtype) {
  const auto single = static_cast<float>(value);
  if (dtype == Dtype::f32) return append(out, single);
  if (dtype == Dtype::f16) return append(out, half_bits(value));
  append(out, static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(single) >> 16));
}

const char* dtype_name(Dtype dtype) { return dtype == Dtype::f32 ? "F32" : dtype == Dtype::f16 ? "F16" : "BF16"; }

}  // namespace

std::string safetensors_image(std::vector<NewMatrix> tensors, Dtype dtype) {
  std::ranges::sort(tensors, {}, &NewMatrix::name);
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const NewMatrix& tensor : tensors) {
    const std::size_t begin = data.size();
    for (const double value : tensor.values.values) append(data, value, dtype);
    header[tensor.name] = {{"dtype", dtype_name(dtype)},
                           {"shape", {tensor.values.rows, tensor.values.cols}},
                           {"data_offsets", {begin, data.size()}}};
  }
  std::string head = header.dump();
  head.append((8 - head.size() % 8) % 8, ' ');
  std::string image;
  append(image, static_cast<std::uint64_t>(head.size()));
  return image + head + data;
}

FusedPair fuse(const std::vector<ExpertFactors>& experts, bool turned, bool grouped) {
  const auto count = static_cast<std::int64_t>(experts.size());
  const Matrix first_a = turned ? transposed(experts[0].b) : experts[0].a;
  const std::int64_t rank = first_a.rows;
  FusedPair pair{Matrix(count * rank, first_a.cols),
                 Matrix(turned ? experts[0].a.cols : experts[0].b.rows, rank * count)};
  for (std::int64_t e = 0; e < count; ++e) {
    const ExpertFactors& expert = experts[static_cast<std::size_t>(e)];
    const Matrix a = turned ? transposed(expert.b) : expert.a, b = turned ? transposed(expert.a) : expert.b;
    for (std::int64_t k = 0; k < rank; ++k) {
      for (std::int64_t j = 0; j < a.cols; ++j) pair.a.at(e * rank + k, j) = a.at(k, j);
      for (std::int64_t i = 0; i < b.rows; ++i) pair.b.at(i, grouped ? e * rank + k : k * count + e) = b.at(i, k);
    }
  }
  return pair;
}

void write_adapter(const std::filesystem::path& folder, std::vector<NewMatrix> tensors, Dtype dtype, const Json& config) {
  write_file(folder / "adapter_model.safetensors", safetensors_image(std::move(tensors), dtype));
  write_file(folder / "adapter_config.json", config.dump(2));
}

void write_model(const std::filesystem::path& folder, const TinyModel& model) {
  const bool counts_local = model.model_type == "mixtral" || model.model_type == "phimoe" || model.model_type == "gpt_oss" ||
                            model.model_type == "llama4_text";
  Json config = {{"model_type", model.model_type}, {"hidden_size", model.hidden}, {"num_hidden_layers", model.layers},
                 {"num_attention_heads", 1}, {"num_key_value_heads", 1}, {"head_dim", 6}, {"vocab_size", 17},
                 {"tie_word_embeddings", false}, {counts_local ? "num_local_experts" : "num_experts", model.experts},
                 {"num_experts_per_tok", 1}, {"intermediate_size", model.intermediate}};
  if (model.model_type.starts_with("qwen")) {
    config["moe_intermediate_size"] = model.intermediate;
    config["shared_expert_intermediate_size"] = model.intermediate + 1;
    config["decoder_sparse_step"] = 1;
    config["mlp_only_layers"] = Json::array();
  }
  if (model.model_type == "llama4_text") config["interleave_moe_layer_step"] = 1;
  write_file(folder / "config.json", config.dump(2));
}

}  // namespace peft::testing
