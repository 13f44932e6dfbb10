#include "support/model_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

// A number with `digits` significant bits whose smallest normal exponent is `least`.
double nearest_of(double value, int digits, int least, double largest) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent = 0;
  std::frexp(value, &exponent);
  const int unit = std::max(exponent, least + 1) - digits;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);  // the default mode: ties to even
  return std::fabs(rounded) > largest ? std::copysign(HUGE_VAL, value) : rounded;
}

template <typename T>
void append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

std::uint16_t f16_bits(double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(nearest_f16(value));
  if (std::isinf(size)) return sign | 0x7c00;
  if (size < 0x1p-14) return static_cast<std::uint16_t>(sign | static_cast<int>(size * 0x1p24));
  int exponent = 0;
  const double fraction = std::frexp(size, &exponent) * 2048;
  return static_cast<std::uint16_t>(sign | ((exponent + 14) << 10) | (static_cast<int>(fraction) - 1024));
}

double f16_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double size = exponent == 31  ? (fraction != 0 ? std::nan("") : HUGE_VAL)
                      : exponent == 0 ? fraction * 0x1p-24
                                      : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & 0x8000) != 0 ? -size : size;
}

void append_value(std::string& out, const std::string& dtype, double value) {
  if (dtype == "F32") return append(out, static_cast<float>(value));
  if (dtype == "F16") return append(out, f16_bits(value));
  if (dtype != "BF16") throw std::runtime_error("tests do not write values in " + dtype);
  append(out, static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(nearest_bf16(value))) >> 16));
}

template <typename T>
T word_at(const std::string& bytes, std::size_t at) {
  T word;
  std::memcpy(&word, bytes.data() + at, sizeof(T));
  return word;
}

std::vector<double> values_of(const std::string& dtype, const std::string& bytes) {
  std::vector<double> values;
  if (dtype == "F32") {
    for (std::size_t at = 0; at < bytes.size(); at += 4)
      values.push_back(static_cast<double>(word_at<float>(bytes, at)));
  } else if (dtype == "BF16") {
    for (std::size_t at = 0; at < bytes.size(); at += 2)
      values.push_back(
          static_cast<double>(std::bit_cast<float>(std::uint32_t{word_at<std::uint16_t>(bytes, at)} << 16)));
  } else if (dtype == "F16") {
    for (std::size_t at = 0; at < bytes.size(); at += 2) values.push_back(f16_value(word_at<std::uint16_t>(bytes, at)));
  }
  return values;
}

}  // namespace

double nearest_bf16(double value) { return nearest_of(value, 8, -126, 0x1.fep127); }
double nearest_f16(double value) { return nearest_of(value, 11, -14, 65504); }
double nearest(const std::string& dtype, double value) {
  if (dtype == "BF16") return nearest_bf16(value);
  if (dtype == "F16") return nearest_f16(value);
  if (dtype != "F32") throw std::runtime_error("tests do not round to " + dtype);
  return static_cast<double>(static_cast<float>(value));
}

Stored stored(std::string name, std::string dtype, std::vector<std::int64_t> shape, std::vector<double> values) {
  Stored tensor{std::move(name), std::move(dtype), std::move(shape), {}, std::move(values)};
  for (double& value : tensor.values) {
    value = nearest(tensor.dtype, value);
    append_value(tensor.bytes, tensor.dtype, value);
  }
  return tensor;
}
Stored stored(std::string name, std::string dtype, const Matrix& matrix) {
  return stored(std::move(name), std::move(dtype), {matrix.rows, matrix.cols}, matrix.values);
}
Stored stored_bytes(std::string name, std::string dtype, std::vector<std::int64_t> shape, std::string bytes) {
  return {std::move(name), std::move(dtype), std::move(shape), std::move(bytes), {}};
}

std::string safetensors_of(std::vector<Stored> tensors, const Json& metadata) {
  Json header = {{"__metadata__", metadata}};
  std::string data;
  for (const Stored& tensor : tensors) {
    const std::size_t begin = data.size();
    data += tensor.bytes;
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string head = header.dump();
  head.append((8 - head.size() % 8) % 8, ' ');
  std::string image;
  append(image, static_cast<std::uint64_t>(head.size()));
  return image + head + data;
}

void write_base(const fs::path& folder, const Json& config, const std::vector<std::vector<Stored>>& shards) {
  write_file(folder / "config.json", config.dump(2));
  if (shards.size() == 1) return write_file(folder / "model.safetensors", safetensors_of(shards.front()));
  Json places = Json::object();
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05d}-of-{:05d}.safetensors", i + 1, shards.size());
    write_file(folder / name, safetensors_of(shards[i]));
    for (const Stored& tensor : shards[i]) places[tensor.name] = name, bytes += tensor.bytes.size();
  }
  write_file(folder / "model.safetensors.index.json",
             Json{{"metadata", {{"total_size", bytes}}}, {"weight_map", places}}.dump(2));
}

void write_lora(const fs::path& folder, const Json& config, std::vector<Stored> tensors) {
  write_file(folder / "adapter_model.safetensors", safetensors_of(std::move(tensors)));
  write_file(folder / "adapter_config.json", config.dump(2));
}

Json lora_config(std::int64_t rank, double alpha, const Json& changes) {
  Json config = {{"peft_type", "LORA"},
                 {"r", rank},
                 {"lora_alpha", alpha},
                 {"rank_pattern", Json::object()},
                 {"alpha_pattern", Json::object()},
                 {"bias", "none"},
                 {"target_modules", Json::array()},
                 {"peft_version", "0.21.2"},
                 {"lora_ga_config", nullptr}};
  config.update(changes);
  return config;
}

std::string safetensors_image(std::vector<NewMatrix> tensors, Dtype dtype) {
  std::ranges::sort(tensors, {}, &NewMatrix::name);
  std::vector<Stored> list;
  for (const NewMatrix& tensor : tensors) {
    list.push_back(stored(tensor.name, std::string(info(dtype).name), tensor.values));
    const auto same = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
    if (!std::ranges::equal(list.back().values, tensor.values.values, same))
      throw std::runtime_error(tensor.name + ": the dtype does not hold a value");
  }
  return safetensors_of(std::move(list));
}

void write_adapter(const fs::path& folder, std::vector<NewMatrix> tensors, Dtype dtype, const Json& config) {
  write_file(folder / "adapter_model.safetensors", safetensors_image(std::move(tensors), dtype));
  write_file(folder / "adapter_config.json", config.dump(2));
}

void write_model(const fs::path& folder, const TinyModel& model) {
  const bool counts_local = model.model_type == "mixtral" || model.model_type == "phimoe" ||
                            model.model_type == "gpt_oss" || model.model_type == "llama4_text";
  Json config = {{"model_type", model.model_type},
                 {"hidden_size", model.hidden},
                 {"num_hidden_layers", model.layers},
                 {"num_attention_heads", model.heads},
                 {"num_key_value_heads", 1},
                 {"head_dim", 6},
                 {"vocab_size", 17},
                 {"tie_word_embeddings", false},
                 {counts_local ? "num_local_experts" : "num_experts", model.experts},
                 {"num_experts_per_tok", 1},
                 {"intermediate_size", model.intermediate}};
  if (model.model_type.starts_with("qwen")) {
    config["moe_intermediate_size"] = model.intermediate;
    config["shared_expert_intermediate_size"] = model.intermediate + 1;
    config["decoder_sparse_step"] = 1;
    config["mlp_only_layers"] = Json::array();
  }
  if (model.model_type == "llama4_text") config["interleave_moe_layer_step"] = 1;
  write_file(folder / "config.json", config.dump(2));
}

std::uint64_t Draw::bits() {
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  return state_ >> 33;
}
Matrix Draw::matrix(std::int64_t rows, std::int64_t cols, double unit, int span) {
  Matrix m(rows, cols);
  for (double& value : m.values)
    value = unit * (static_cast<int>(bits() % static_cast<std::uint64_t>(2 * span + 1)) - span);
  m.values.front() = unit;
  return m;
}

Mxfp4 draw_mxfp4(const std::string& name, std::int64_t experts, std::int64_t rows, std::int64_t cols,
                 std::uint64_t seed) {
  static constexpr double kValues[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  Draw draw(seed);
  const std::int64_t groups = cols / 32;
  std::string blocks, scales;
  std::vector<Matrix> values(static_cast<std::size_t>(experts), Matrix(rows, cols));
  for (Matrix& matrix : values) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t g = 0; g < groups; ++g) {
        const int exponent = static_cast<int>(draw.bits() % 4) - 3;
        scales += static_cast<char>(exponent + 127);
        for (std::int64_t n = 0; n < 16; ++n) {
          const auto byte = static_cast<unsigned>(draw.bits() % 256);
          blocks += static_cast<char>(byte);
          const auto value = [&](unsigned code) {
            return std::ldexp((code & 8) != 0 ? -kValues[code & 7] : kValues[code & 7], exponent);
          };
          matrix.at(i, g * 32 + 2 * n) = value(byte & 15);
          matrix.at(i, g * 32 + 2 * n + 1) = value(byte >> 4);
        }
      }
    }
  }
  return {stored_bytes(name + "_blocks", "U8", {experts, rows, groups, 16}, blocks),
          stored_bytes(name + "_scales", "U8", {experts, rows, groups}, scales), values};
}

double value_of_e4m3(std::uint8_t code) {
  const int exponent = (code >> 3) & 15, fraction = code & 7;
  if (exponent == 15 && fraction == 7) return std::nan("");
  const double size = exponent == 0 ? fraction * 0x1p-9 : std::ldexp(8 + fraction, exponent - 10);
  return (code & 0x80) != 0 ? -size : size;
}

BlockFp8 draw_fp8(const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t cell,
                  std::uint64_t seed) {
  Draw draw(seed);
  const std::int64_t down = (rows + cell - 1) / cell, across = (cols + cell - 1) / cell;
  std::vector<double> scales;
  for (std::int64_t i = 0; i < down * across; ++i)
    scales.push_back(nearest("F32", (1.0 + static_cast<double>(draw.bits() % 997)) / 7919));
  std::string codes;
  Matrix values(rows, cols);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      const std::uint8_t code =
          static_cast<std::uint8_t>((draw.bits() % 2 != 0 ? 0x80 : 0) | (0x20 + draw.bits() % 0x30));
      codes += static_cast<char>(code);
      values.at(i, j) =
          nearest("F32", value_of_e4m3(code) * scales[static_cast<std::size_t>(i / cell * across + j / cell)]);
    }
  }
  return {stored_bytes(name, "F8_E4M3", {rows, cols}, codes),
          stored(name + "_scale_inv", "F32", {down, across}, scales), values};
}

std::map<std::string, Found> tensors_in(const fs::path& folder) {
  std::map<std::string, Found> all;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const std::string image = read_file(entry.path());
    const auto head = word_at<std::uint64_t>(image, 0);
    const Json header = Json::parse(image.substr(8, head));
    for (const auto& [name, tensor] : header.items()) {
      if (name == "__metadata__") continue;
      const auto begin = tensor.at("data_offsets").at(0).get<std::uint64_t>(),
                 end = tensor.at("data_offsets").at(1).get<std::uint64_t>();
      Found found{tensor.at("dtype"),
                  entry.path().filename().string(),
                  tensor.at("shape"),
                  image.substr(8 + head + begin, end - begin),
                  {},
                  8 + head + begin};
      found.values = values_of(found.dtype, found.bytes);
      if (!all.emplace(name, std::move(found)).second) throw std::runtime_error(name + " is there twice");
    }
  }
  return all;
}

}  // namespace peft::testing
