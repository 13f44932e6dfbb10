#include "layout/gguf/names.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "model/json_file.h"

namespace peft::model {
extern const std::string_view kGgufNamesJson;  // data/gguf_names.json, embedded by cmake/embed_tables.cmake
}  // namespace peft::model

namespace peft::layout {
namespace {

using model::Json;

std::vector<GgufNames> read_rows() {
  std::vector<GgufNames> rows;
  const Json table = model::parse_object(model::kGgufNamesJson, "data/gguf_names.json");
  for (const Json& json : table.at("architectures")) {
    GgufNames& row = rows.emplace_back();
    row.architecture = json.at("architecture").get<std::string>();
    row.types = json.at("types").get<std::vector<std::string>>();
    row.prefix = json.at("prefix").get<std::string>();
    row.experts = json.at("experts").get<std::string>();
    row.fused_gate_up = json.at("fused_gate_up").get<bool>();
    row.changed = json.at("changed").get<std::vector<std::string>>();
    const auto permuted = json.at("permuted").get<std::vector<std::string>>();
    for (const Json& tensor : json.at("tensors")) {
      const auto name = tensor.at(0).get<std::string>();
      row.tensors.push_back(
          {name, tensor.at(1).get<std::string>(), std::ranges::find(permuted, name) != permuted.end()});
    }
  }
  return rows;
}

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

}  // namespace

const GgufNames::Tensor* GgufNames::find_module(std::string_view module) const {
  const auto found = std::ranges::find(tensors, module, &Tensor::module);
  return found == tensors.end() ? nullptr : &*found;
}

const GgufNames::Tensor* GgufNames::find_tensor(std::string_view name) const {
  const auto found = std::ranges::find(tensors, name, &Tensor::name);
  return found == tensors.end() ? nullptr : &*found;
}

std::span<const GgufNames> all_gguf_names() {
  static const std::vector<GgufNames> rows = read_rows();
  return rows;
}

const GgufNames* find_gguf_names(std::string_view model_type) {
  for (const GgufNames& row : all_gguf_names())
    if (std::ranges::find(row.types, model_type) != row.types.end()) return &row;
  return nullptr;
}

std::vector<std::string> gguf_model_types(std::string_view architecture) {
  std::vector<std::string> types;
  for (const GgufNames& row : all_gguf_names())
    if (row.architecture == architecture) types.insert(types.end(), row.types.begin(), row.types.end());
  return types;
}

std::span<const GgufExperts> gguf_experts() {
  static const std::array<GgufExperts, 4> rows = {{{"ffn_gate_exps", {Projection::gate}},
                                                   {"ffn_up_exps", {Projection::up}},
                                                   {"ffn_gate_up_exps", {Projection::gate, Projection::up}},
                                                   {"ffn_down_exps", {Projection::down}}}};
  return rows;
}

std::optional<GgufKey> parse_gguf_key(std::string_view name) {
  GgufKey key;
  const std::size_t suffix = name.rfind(".weight.lora_");
  if (suffix == std::string_view::npos) return std::nullopt;
  const std::string_view half = name.substr(suffix + std::string_view(".weight.lora_").size());
  if (half != "a" && half != "b") return std::nullopt;
  key.half = half.front();
  key.tensor = name.substr(0, suffix);
  if (take_prefix(key.tensor, "blk.")) {
    const char* end = key.tensor.data() + key.tensor.size();
    const auto [rest, error] = std::from_chars(key.tensor.data(), end, key.layer);
    if (error != std::errc() || rest == end || *rest != '.' || key.layer < 0) return std::nullopt;
    key.tensor.remove_prefix(static_cast<std::size_t>(rest + 1 - key.tensor.data()));
  }
  if (key.tensor.empty()) return std::nullopt;
  if (gguf_tensor_name(key.layer, key.tensor).size() != suffix + std::string_view(".weight").size())
    return std::nullopt;  // "blk.03."
  return key;
}

std::string gguf_tensor_name(std::int64_t layer, std::string_view tensor) {
  return layer < 0 ? fmt::format("{}.weight", tensor) : fmt::format("blk.{}.{}.weight", layer, tensor);
}

std::string layers_prefix(const Model& model, const GgufNames& names) {
  for (const Experts& experts : model.experts) {
    const std::string& module = experts_module(experts);
    if (const auto layers = module.find(".layers."); layers != std::string::npos) return module.substr(0, layers);
  }
  return names.prefix;
}

GgufPlace gguf_place(const std::string& prefix, const std::string& module) {
  const std::string layers = prefix + ".layers.";
  if (module.starts_with(layers)) {
    const std::size_t dot = module.find('.', layers.size());
    const std::string digits = module.substr(layers.size(), dot == std::string::npos ? dot : dot - layers.size());
    if (dot != std::string::npos && !digits.empty() && digits.size() < 10 &&
        digits.find_first_not_of("0123456789") == std::string::npos)
      return {std::stoll(digits), module.substr(dot + 1)};
  }
  const bool above = module.starts_with(prefix + ".") && module.find(".layers.") == std::string::npos;
  return {-1, above ? module.substr(prefix.size() + 1) : module};
}

std::string gguf_module_path(const std::string& prefix, std::int64_t layer, const std::string& module) {
  if (layer >= 0) return fmt::format("{}.layers.{}.{}", prefix, layer, module);
  return module == "lm_head" ? module : prefix + "." + module;
}

}  // namespace peft::layout
