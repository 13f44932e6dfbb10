#include "model/config_json/config_facts.h"

#include <algorithm>

#include "peft/error.h"

namespace peft::model {
namespace {

// The same size under the names the generations and families give it.
const std::vector<std::string> kExpertKeys = {"num_experts", "num_local_experts", "n_routed_experts",
                                              "moe_num_experts"};
const std::vector<std::string> kLayerKeys = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"};
const std::vector<std::string> kHiddenKeys = {"hidden_size", "n_embd", "d_model", "dim"};
const std::vector<std::string> kInnerKeys = {"intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"};
const std::vector<std::string> kHeadKeys = {"num_attention_heads", "n_head", "num_heads", "n_heads"};

constexpr std::uint64_t kMaxCell = 1 << 20;

const std::string kNoText;

const std::string& text_at(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get_ref<const std::string&>() : kNoText;
}

std::optional<Value> value_at(const Json& json, std::string_view key) {
  const auto found = json.find(key);
  return found == json.end() ? std::nullopt : to_value(*found);
}

std::vector<std::string> layer_keys(std::string_view path_template) {
  std::vector<std::string> keys = kLayerKeys;
  if (path_template.find("decoder.") != std::string_view::npos) {
    keys.insert(keys.begin(), {"num_decoder_layers", "decoder_layers"});
  } else if (path_template.find("encoder.") != std::string_view::npos) {
    keys.insert(keys.begin(), {"num_encoder_layers", "encoder_layers"});
  }
  return keys;
}

}  // namespace

std::string ConfigFacts::model_type() const { return text_at(config_, "model_type"); }

std::string ConfigFacts::transformers_version() const { return text_at(config_, "transformers_version"); }

std::string ConfigFacts::architecture() const {
  const auto found = config_.find("architectures");
  if (found == config_.end() || !found->is_array() || found->empty() || !found->front().is_string()) return {};
  return found->front().get<std::string>();
}

const Json& ConfigFacts::section(std::string_view path) const {
  const Json* at = &config_;
  for (std::size_t start = 0; start < path.size();) {
    const std::size_t end = std::min(path.find('.', start), path.size());
    const auto found = at->find(path.substr(start, end - start));
    if (found == at->end() || !found->is_object()) return config_;
    at = &*found;
    start = end + 1;
  }
  return *at;
}

std::optional<std::int64_t> ConfigFacts::integer(std::string_view section_path,
                                                 const std::vector<std::string>& keys) const {
  for (const Json* json : {&section(section_path), &config_}) {
    for (const std::string& key : keys) {
      const auto value = value_at(*json, key);
      const auto* number = value ? std::get_if<std::int64_t>(&*value) : nullptr;
      if (number != nullptr && *number > 0) return *number;
    }
  }
  return std::nullopt;
}

Lookup ConfigFacts::names(const ExpertsRow& row, std::int64_t layer) const {
  const Json& scope = section(row.config);
  const auto plain = [this, &scope, &row](std::string_view name) -> std::optional<Value> {
    if (auto value = value_at(scope, name)) return value;
    if (auto value = value_at(config_, name)) return value;
    // Lists and runs are as long as the default model is deep; only single values carry over.
    const auto standard = row.layer_keys.find(name);
    if (standard != row.layer_keys.end() && (standard->is_number() || *standard == Json::array()))
      return to_value(*standard);
    return std::nullopt;
  };
  return [this, plain, &row, layer](std::string_view name) -> std::optional<Value> {
    if (name == "i") return Value(layer);
    const auto role = row.keys.find(std::string(name));
    if (role == row.keys.end()) return plain(name);
    if (auto value = evaluate(role->second, plain)) return value;
    if (name != "E") return std::nullopt;
    const auto number = integer(row.config, kExpertKeys);
    return number ? std::optional<Value>(*number) : std::nullopt;
  };
}

Lookup ConfigFacts::dense_names(const std::string& section_path) const {
  return [this, section_path](std::string_view name) -> std::optional<Value> {
    const auto one = [&](const std::vector<std::string>& keys) -> std::optional<Value> {
      const auto number = integer(section_path, keys);
      return number ? std::optional<Value>(*number) : std::nullopt;
    };
    const auto hidden = integer(section_path, kHiddenKeys), heads = integer(section_path, kHeadKeys);
    if (name == "H") return one(kHiddenKeys);
    if (name == "V") return one({"vocab_size"});
    if (name == "A") return one(kHeadKeys);
    if (name == "K") {
      if (const auto number = integer(section_path, {"num_key_value_heads", "num_kv_heads"})) return Value(*number);
      return one(kHeadKeys);
    }
    if (name == "D") {
      if (const auto number = integer(section_path, {"head_dim", "d_kv"})) return Value(*number);
      if (hidden && heads) return Value(*hidden / *heads);
      return std::nullopt;
    }
    if (name == "I") {
      if (const auto number = integer(section_path, kInnerKeys)) return Value(*number);
      const auto inner = config_.find("n_inner");  // gpt2: null stands for 4 H
      if (hidden && *hidden < (std::int64_t{1} << 40) && inner != config_.end()) return Value(4 * *hidden);
      if (hidden && *hidden < (std::int64_t{1} << 40) && config_.contains("n_embd")) return Value(4 * *hidden);
    }
    return std::nullopt;
  };
}

std::optional<std::int64_t> ConfigFacts::num_layers(std::string_view section_path,
                                                    std::string_view path_template) const {
  auto number = integer(section_path, layer_keys(path_template));
  if (!number) number = integer("text_config", layer_keys(path_template));
  if (number && *number > kMaxLayers) {
    at(file_, "num_hidden_layers")
        .fail(ErrorCode::MD_FORM, {.problem = "more layers than any model has",
                                   .expected = "at most " + std::to_string(kMaxLayers),
                                   .got = std::to_string(*number)});
  }
  return number;
}

std::optional<bool> ConfigFacts::has_experts(const Table& table, const std::vector<const ExpertsRow*>& rows,
                                             std::int64_t layer) const {
  if (rows.empty()) return std::nullopt;
  bool all = false;
  for (const ExpertsRow* row : rows) {
    for (const std::string& rule : row->moe_layers) {
      all = all || rule == "all";
      const auto holds = evaluate_condition(rule, names(*row, layer));
      if (rule != "all" && holds) return holds;
    }
  }
  if (all) return true;
  // The keys of another generation or family, where the config itself has them.
  ExpertsRow bare;
  bare.config = rows.front()->config;
  for (const std::string& rule : table.layer_rules) {
    if (const auto holds = evaluate_condition(rule, names(bare, layer))) return holds;
  }
  return std::nullopt;
}

std::int64_t ConfigFacts::vocab_size() const { return integer("text_config", {"vocab_size"}).value_or(0); }

std::int64_t ConfigFacts::num_heads() const { return integer("text_config", kHeadKeys).value_or(0); }

std::int64_t ConfigFacts::num_kv_heads() const {
  return integer("text_config", {"num_key_value_heads", "num_kv_heads"}).value_or(num_heads());
}

std::optional<bool> ConfigFacts::tie_word_embeddings() const {
  for (const Json* json : {&config_, &section("text_config")}) {
    const auto found = json->find("tie_word_embeddings");
    if (found != json->end() && found->is_boolean()) return found->get<bool>();
  }
  return std::nullopt;
}

std::optional<std::array<std::int64_t, 2>> ConfigFacts::fp8_cell() const {
  const auto quantization = config_.find("quantization_config");
  if (quantization == config_.end() || !quantization->is_object()) return std::nullopt;
  const auto size = quantization->find("weight_block_size");
  if (size == quantization->end() || !size->is_array() || size->size() != 2) return std::nullopt;
  std::array<std::int64_t, 2> cell{};
  for (std::size_t i = 0; i < cell.size(); ++i) {
    const Json& side = size->at(i);
    if (!side.is_number_unsigned() || side.get<std::uint64_t>() == 0 || side.get<std::uint64_t>() > kMaxCell) {
      at(file_, "quantization_config.weight_block_size")
          .fail(ErrorCode::MD_FORM, {.problem = "no size of a block",
                                     .expected = "two integers from 1 to " + std::to_string(kMaxCell),
                                     .got = size->dump()});
    }
    cell[i] = side.get<std::int64_t>();
  }
  return cell;
}

}  // namespace peft::model
