// The verbs of the command line as functions: options in, report out, no printing.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "peft/adapter.h"
#include "peft/execute.h"
#include "peft/layout.h"
#include "peft/plan.h"

namespace peft {

// Options that say how to read an adapter; shared by all verbs.
struct InputOptions {
  std::string base, family, families_file;
  std::int64_t num_experts = 0;
  std::string adapter_name;
  ReadOptions read;
  OpenOptions open;
  std::vector<std::string> further_names;  // without base and family: more names of the same model, to know its type by
};
// An adapter, opened, with its model and its factors. The first three stages in one step.
struct Input {
  Adapter adapter;
  Model model;
  Reading reading;
};
Input load(const std::string& path, const InputOptions& options);
// Module paths of an adapter's tensors.
std::vector<std::string> module_names(const std::string& path, const InputOptions& options);

// ---- convert -------------------------------------------------------------------------------------------------
struct ConvertOptions {
  InputOptions input;
  Layout to = Layout::peft_fused;
  std::optional<Dtype> dtype;   // --dtype
  bool block_diagonal = false;  // keep gate and up apart even where they share A
  bool q8_0 = false;            // --dtype Q8_0: gguf only
  std::string gguf_base;        // --gguf-base: the model's GGUF file, whose names and shapes the adapter gets
};
// Everything is checked here; nothing is written.
Plan plan_convert(const Input& input, const ConvertOptions& options);

// A config alone: what adapter_config.json becomes. `path` is a config file or an adapter folder. Needs a module tree
// (--base).
struct ConfigConversion {
  std::string before, after;  // file texts
  std::vector<std::string> warnings;
};
ConfigConversion convert_config(const std::string& path, const ConvertOptions& options);
// A new adapter's config for a model of transformers 5: target_modules that name single experts' modules or routers, as
// they were in transformers 4, become target_parameters, where PEFT does so too. nullopt: they name none.
std::optional<AdapterConfig> rewrite_v4_targets(const AdapterConfig& config, const Model& model,
                                                std::vector<std::string>& warnings);

// ---- verify --------------------------------------------------------------------------------------------------
struct VerifyOptions {
  InputOptions a, b;
  bool tolerance_rounded = true;  // false: exact
  int threads = 0;
};
struct VerifyDifference {
  std::string site, what;
  double relative = 0;
};
struct VerifyReport {
  bool same = false;
  Exactness exactness = Exactness::bit_exact;  // how b differs from a, when same
  double largest_relative = 0;                 // ||dW_a - dW_b|| / max(||dW_a||, ||dW_b||), Frobenius
  std::string where;                           // site of the largest
  std::int64_t compared = 0, identical = 0;
  std::vector<VerifyDifference> differences;  // up to 50
  std::int64_t num_differences = 0;
  std::vector<std::string> left_out;  // tensors that --ignore-unused left out of the comparison, and why
  std::vector<std::string> notes;
};
VerifyReport verify(const std::string& a, const std::string& b, const VerifyOptions& options);

// ---- inspect -------------------------------------------------------------------------------------------------
struct InspectReport {
  std::string path, producer, layout, family, model_type, dtype;
  std::vector<std::string> evidence;
  struct Row {
    std::string key, shape, meaning;
    std::int64_t count = 1;
  };
  std::vector<Row> tensors;  // grouped over layers and experts
  std::int64_t num_tensors = 0, num_layers = 0, num_experts = 0;
  std::uint64_t bytes = 0, parameters = 0;
  struct RankRow {
    std::string site;
    std::int64_t rank;
    double alpha, scale;
    std::int64_t count;
  };
  std::vector<RankRow> ranks;
  std::string orientation, b_packing;
  std::vector<std::string> anomalies, warnings;
  struct Consumer {
    std::string name, verdict, why;
  };  // "reads it right", "refuses", "silently wrong"
  std::vector<Consumer> consumers;
  // What the config says: r, lora_alpha, target_modules and the like, by their names there, as JSON texts. Also where
  // the weights cannot be opened.
  std::vector<std::pair<std::string, std::string>> config;
  std::string error;  // when the file cannot be decoded: what the reading said
};
InspectReport inspect(const std::string& path, const InputOptions& options);

}  // namespace peft
