#include "model/families/runtime_table.h"

#include <map>
#include <utility>

#include "model/families/families.h"
#include "peft/error.h"

namespace peft::model {
namespace {

constexpr const char* kBadRow = "a row of the family table cannot be read";

template <class Value>
using Names = std::vector<std::pair<std::string_view, Value>>;

const Names<Biases> kBiases = {{"none", Biases::none},
                               {"qkv", Biases::qkv},
                               {"qkv_bias", Biases::qkv_by_config},
                               {"attention_bias", Biases::by_config},
                               {"attention_bias, true by default", Biases::by_config_true_default}};
const Names<Windows> kWindows = {{"none", Windows::none},
                                 {"all", Windows::all},
                                 {"all if used", Windows::all_if_used},
                                 {"layer_types, alternate", Windows::layer_types_alternate},
                                 {"layer_types, alternate if used", Windows::layer_types_alternate_if_used},
                                 {"layer_types, from max_window_layers", Windows::layer_types_from_max}};
const Names<Norms> kNorms = {
    {"plain", Norms::plain}, {"zero centred", Norms::zero_centred}, {"fp32 weight", Norms::fp32_weight}};
const Names<bool> kSoftmax = {{"of all", false}, {"of the chosen", true}};
const Names<bool> kRenormalise = {{"always", false}, {"norm_topk_prob", true}};

// Reads one object and takes each key out of it once. A key that is left over is not known.
class RowReader {
 public:
  RowReader(Json json, std::string type) : json_(std::move(json)), type_(std::move(type)) {}

  template <class Value>
  Value take(const char* key, Value fallback) {
    const auto found = json_.find(key);
    if (found == json_.end()) return fallback;
    try {
      fallback = found->get<Value>();
    } catch (const nlohmann::json::exception& error) {
      place(key).fail(ErrorCode::MD_FAMILY, {.problem = kBadRow, .got = error.what()});
    }
    json_.erase(found);
    return fallback;
  }

  template <class Value>
  Value take(const char* key, const Names<Value>& names) {
    const std::string given = take(key, std::string(names.front().first));
    for (const auto& [name, value] : names) {
      if (name == given) return value;
    }
    place(key).fail(ErrorCode::MD_FAMILY, {.problem = kBadRow, .got = given});
  }

  void require_empty() const {
    if (json_.empty()) return;
    place(json_.begin().key()).fail(ErrorCode::MD_FAMILY, {.problem = kBadRow, .got = "a key that is not known"});
  }

  // The place of a key in the table, for errors.
  ErrorPlace place(const std::string& key) const {
    return at("the built-in family table", "runtime." + type_ + "." + key);
  }

 private:
  Json json_;
  std::string type_;
};

// "Qwen3Moe" of "Qwen3MoeForCausalLM".
std::string class_prefix(const std::string& arch) { return arch.substr(0, arch.find("For")); }
// "model.language_model" of "model.language_model.layers.{layer}.mlp.experts".
std::string body_of(const std::string& path) { return path.substr(0, path.find(".layers.")); }

RuntimeExperts read_experts(RowReader reader, const ExpertsRow& row) {
  RuntimeExperts experts;
  experts.row = &row;
  const std::string& first = row.router.front().name;
  experts.router = first.substr(0, first.rfind('.'));
  experts.router_class = row.router.front().owner;
  experts.router_bias = row.router.size() > 1;
  experts.in_out = row.form.layout == "in,out";
  experts.bias = row.form.params.size() > 2;
  experts.first = reader.take("first", false);
  experts.softmax_of_chosen = reader.take("softmax", kSoftmax);
  experts.renormalise_by_config = reader.take("renormalise", kRenormalise);
  experts.clamped = reader.take("clamped", false);
  reader.require_empty();
  return experts;
}

RuntimeRow read_row(const Table& table, const std::string& type, const Json& json) {
  RowReader reader(json, type);
  RuntimeRow row;
  row.model_type = type;
  row.biases = reader.take("biases", kBiases);
  row.windows = reader.take("windows", kWindows);
  row.norms = reader.take("norms", kNorms);
  row.qk_norm = reader.take("qk_norm", false);
  row.sinks = reader.take("sinks", false);
  row.output_gate = reader.take("output_gate", false);
  row.linear_attention = reader.take("linear_attention", false);
  row.mlp_bias = reader.take("mlp_bias", false);
  row.default_head_dim = reader.take("head_dim", std::int64_t{0});
  row.default_eps = reader.take("rms_norm_eps", row.default_eps);
  row.default_theta = reader.take("rope_theta", row.default_theta);
  row.default_partial_rotary = reader.take("partial_rotary_factor", row.default_partial_rotary);
  const Json experts = reader.take("experts", Json());
  reader.require_empty();
  if (const auto family = table.families.find(type); family != table.families.end()) {
    if (!family->second->v5 || experts.is_null())
      reader.place("experts").fail(ErrorCode::MD_FAMILY, {.problem = kBadRow, .got = "a family needs them"});
    const ExpertsRow& own = family->second->v5->experts.front();
    row.class_prefix = class_prefix(family->second->v5->arch);
    row.section = own.config;
    row.body = body_of(own.path);
    row.experts = read_experts(RowReader(experts, type + ".experts"), own);
  } else if (const auto dense = table.dense.find(type); dense != table.dense.end() && dense->second->v5) {
    row.class_prefix = class_prefix(dense->second->arch);
    for (const DenseLinear& linear : *dense->second->v5) {
      if (linear.path.find(".layers.") != std::string::npos) row.body = body_of(linear.path);
    }
  } else {
    reader.place("").fail(ErrorCode::MD_FAMILY,
                          {.problem = kBadRow, .got = "no family and no dense type has this name"});
  }
  return row;
}

struct RuntimeRows {
  std::shared_ptr<const Table> table;  // the rows point into it
  std::map<std::string, RuntimeRow, std::less<>> rows;
};

const RuntimeRows& runtime_rows() {
  static const RuntimeRows result = [] {
    RuntimeRows fresh{load_table(), {}};
    for (const auto& [type, json] : fresh.table->runtime.items())
      fresh.rows.emplace(type, read_row(*fresh.table, type, json));
    return fresh;
  }();
  return result;
}

}  // namespace

const RuntimeRow* find_runtime(std::string_view model_type) {
  const auto found = runtime_rows().rows.find(model_type);
  return found == runtime_rows().rows.end() ? nullptr : &found->second;
}

std::vector<std::string> runtime_types() {
  std::vector<std::string> types;
  for (const auto& [type, row] : runtime_rows().rows) types.push_back(type);
  return types;
}

}  // namespace peft::model
