// What the oracle knows about models: shapes from facts.json, and the few names that differ between v4 and v5.
#include <algorithm>
#include <cmath>
#include <regex>
#include <stdexcept>

#include "support/oracle.h"

namespace peft::testing {
namespace {

using Shape = std::vector<std::int64_t>;

// facts.json has parameters as an object or as a list, at one of three places.
void collect(const Json& json, std::map<std::string, Shape>& shapes) {
  for (const auto& [name, value] : json.items()) {
    if (json.is_array()) {
      shapes[value.at("name").get<std::string>()] = value.at("shape").get<Shape>();
    } else {
      shapes[name] = value.get<Shape>();
    }
  }
}

std::map<std::string, Shape> shapes_of(const Json& facts) {
  std::map<std::string, Shape> shapes;
  for (const char* key : {"parameters", "tensors"})
    if (facts.contains(key)) collect(facts.at(key), shapes);
  for (const char* key : {"v4", "v5"})
    if (facts.contains(key) && facts.at(key).contains("parameters")) collect(facts.at(key).at("parameters"), shapes);
  return shapes;
}

void read_expert_shape(const std::string& name, const Shape& shape, ModelFacts& facts) {
  static const std::regex gate_up(R"((.*)\.(experts\.gate_up_proj|input_linear\.weight))");
  static const std::regex expert(R"((.*)\.experts\.(\d+)\.(gate_proj|w1)\.weight)");
  std::smatch match;
  if (std::regex_match(name, gate_up)) {
    facts.experts = shape.at(0);
    facts.hidden = shape.at(facts.in_out ? 1 : 2);
    facts.intermediate = shape.at(facts.in_out ? 2 : 1) / 2;
  } else if (std::regex_match(name, match, expert)) {
    facts.experts = std::max<std::int64_t>(facts.experts, std::stoll(match[2]) + 1);
    facts.hidden = shape.at(1);
    facts.intermediate = shape.at(0);
  }
}

}  // namespace

ModelFacts facts_of(const std::filesystem::path& model_folder) {
  const Json json = read_json(model_folder / "facts.json");
  ModelFacts facts;
  facts.model_type = read_json(model_folder / "config.json").at("model_type").get<std::string>();
  const std::string folder = model_folder.filename().string();
  const bool is_v4_vision = facts.model_type == "qwen3_vl_moe" && folder.ends_with("-tf4");
  facts.in_out = facts.model_type == "gpt_oss" || facts.model_type == "llama4_text" || is_v4_vision;
  facts.interleaved = facts.model_type == "gpt_oss";
  for (const auto& [name, shape] : shapes_of(json)) read_expert_shape(name, shape, facts);
  return facts;
}

ModelFacts in_v5(ModelFacts facts) {
  facts.in_out = facts.model_type == "gpt_oss" || facts.model_type == "llama4_text";
  return facts;
}

std::string v5_name(const ModelFacts& facts, std::string v4_module) {
  static const std::set<std::string> block_becomes_mlp = {"mixtral", "minimax", "phimoe"};
  if (block_becomes_mlp.contains(facts.model_type)) {
    v4_module = std::regex_replace(v4_module, std::regex(R"(\.block_sparse_moe\b)"), ".mlp");
  }
  if (facts.model_type == "phimoe")
    v4_module = std::regex_replace(v4_module, std::regex(R"(\.mlp\.gate$)"), ".mlp.router");
  if (facts.model_type == "granitemoe") {
    v4_module = std::regex_replace(v4_module, std::regex(R"(\.(input|output)_linear$)"), ".experts");
  }
  return v4_module;
}

std::string orientation_of(const ModelFacts& facts, const std::string& layout) {
  const bool has_attribute = facts.model_type == "gpt_oss";  // is_transposed = True; llama4 has no attribute at all
  if (layout == "peft-fused" || layout == "unsloth-grouped") return has_attribute ? "in_out" : "out_in";
  if (layout == "peft-fused-0.19.0") return has_attribute ? "out_in" : "in_out";
  if (layout == "peft-fused-0.18") return "in_out";
  throw std::runtime_error("no fused layout: " + layout);
}

std::int64_t ScaleRule::rank(const std::string& name) const {
  const Json* found = find("rank_pattern", name);
  if (!found) return config_.contains("r") ? config_.at("r").get<std::int64_t>() : 8;
  return found->get<std::int64_t>();
}

double ScaleRule::scale(const std::string& name, std::int64_t rank) const {
  const Json* found = find("alpha_pattern", name);
  const double fallback = config_.contains("lora_alpha") ? config_.at("lora_alpha").get<double>() : 8;
  const double alpha = found ? found->get<double>() : fallback, r = static_cast<double>(rank);
  return alpha / (config_.value("use_rslora", false) ? std::sqrt(r) : r);
}

const Json* ScaleRule::find(const char* patterns, const std::string& name) const {
  if (!config_.contains(patterns) || !config_.at(patterns).is_object()) return nullptr;
  for (const auto& [key, value] : config_.at(patterns).items()) {
    auto compiled = compiled_.find(key);
    if (compiled == compiled_.end()) compiled = compiled_.emplace(key, R"((.*\.)?()" + key + ")").first;
    if (std::regex_match(name, compiled->second)) return &value;
  }
  return nullptr;
}

}  // namespace peft::testing
