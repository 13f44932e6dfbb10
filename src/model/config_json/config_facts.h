// What the config.json of a model says, in the keys of any generation: sub-configs, sizes, layers, which layers have
// experts.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/families/table.h"

namespace peft::model {

// Limits that no real model reaches. A config that claims more would only cost memory.
inline constexpr std::int64_t kMaxLayers = 10'000;
inline constexpr std::int64_t kMaxExperts = 100'000;
inline constexpr std::int64_t kMaxModules = 4'000'000;

class ConfigFacts {
 public:
  ConfigFacts() = default;  // knows nothing
  ConfigFacts(Json config, std::string file) : config_(std::move(config)), file_(std::move(file)) {}

  const Json& config() const { return config_; }
  const std::string& file() const { return file_; }
  std::string model_type() const;
  std::string transformers_version() const;
  std::string architecture() const;  // the first of "architectures"; "" where there is none

  // The sub-config ("text_config", "thinker_config.text_config"); the whole config where there is no such.
  const Json& section(std::string_view path) const;
  // A positive integer under one of the keys, in the section or at the top.
  std::optional<std::int64_t> integer(std::string_view section_path, const std::vector<std::string>& keys) const;

  // Names in the formulas and rules of a row, for layer i.
  Lookup names(const ExpertsRow& row, std::int64_t layer = 0) const;
  // Names in the formulas of dense types: H, I, V, A, K, D.
  Lookup dense_names(const std::string& section_path = "text_config") const;

  // Number of layers of the stack a template is in; throws MD_FORM for an absurd one.
  std::optional<std::int64_t> num_layers(std::string_view section_path, std::string_view path_template) const;
  // Whether layer i has experts by the rules of the rows; nullopt: the config does not say.
  std::optional<bool> has_experts(const Table& table, const std::vector<const ExpertsRow*>& rows,
                                  std::int64_t layer) const;

  std::int64_t vocab_size() const;
  // Attention heads that queries have, and that keys and values have; 0: the config does not say.
  std::int64_t num_heads() const;
  std::int64_t num_kv_heads() const;
  std::optional<bool> tie_word_embeddings() const;
  // weight_block_size of the quantization_config.
  std::optional<std::array<std::int64_t, 2>> fp8_cell() const;

 private:
  Json config_ = Json::object();
  std::string file_;
};

}  // namespace peft::model
