#include "verbs/merge/adapters.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <set>

#include "adapter/view_math.h"
#include "base/float_formats.h"
#include "config/peft_rules.h"
#include "layout/gguf/decode.h"
#include "layout/keys.h"
#include "model/families/disk_names.h"
#include "model/families/families.h"
#include "model/families/index.h"
#include "peft/error.h"
#include "pythonic/python_json.h"

namespace peft::merging {
namespace {

using pythonic::Json;

void refuse_changed_base(const Adapter& adapter, bool base_is_residual) {
  const std::string& init = adapter.config.init_lora_weights;
  if (!config::changes_base(init) || base_is_residual) return;
  at(adapter.config.file, "init_lora_weights")
      .fail(ErrorCode::LO_INIT,
            {.problem = "training began by changing the base model, so this adapter belongs to the changed one",
             .expected = "an adapter of the base as it is",
             .got = init,
             .hint = "save the adapter with path_initial_model_for_weight_conversion, or say --base-is-residual when "
                     "--base is the changed model"});
}

Reading read_for(const Adapter& adapter, const Model& model, const MergeOptions& options) {
  try {
    return read(adapter, model, options.input.read);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::LO_TARGET && error.code() != ErrorCode::LO_NONE) throw;
    auto reading = read_as_other_class(adapter, model, options);
    if (!reading) throw;
    return std::move(*reading);
  }
}

std::string digest_of(const Adapter& adapter) {
  const TensorFile& file = *adapter.weights;
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  for (const TensorInfo& tensor : file.tensors()) {
    XXH3_128bits_update(state, tensor.name.data(), tensor.name.size());
    const auto bytes = file.bytes(tensor);
    XXH3_128bits_update(state, bytes.data(), bytes.size());
  }
  const std::string& config = adapter.config.json;
  XXH3_128bits_update(state, config.data(), config.size());
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

bool all_of(const std::vector<bool>& flags) { return std::find(flags.begin(), flags.end(), false) == flags.end(); }

std::vector<std::string> zero_factors(const MergeAdapter& adapter) {
  std::vector<std::string> zero;
  const TensorFile& file = *adapter.adapter.weights;
  std::set<std::string> with_bias;
  for (const Extra& extra : adapter.reading.factors.extras) {
    if (extra.kind == ExtraKind::lora_bias || extra.kind == ExtraKind::magnitude)
      with_bias.insert(describe(extra.site));
  }
  for (const Factor& factor : adapter.reading.factors.factors) {
    const std::string site = describe(factor.site);
    if (with_bias.contains(site)) continue;
    const bool nothing = factor.scale * adapter.weight == 0 ||
                         all_of(adapter::zero_cols(adapter::bind(file, factor.b))) ||
                         all_of(adapter::zero_rows(adapter::bind(file, factor.a)));
    if (nothing) zero.push_back(site);
  }
  return zero;
}

void require_finite(const MergeAdapter& adapter) {
  const TensorFile& file = *adapter.adapter.weights;
  for (const TensorInfo& tensor : file.tensors()) {
    if (is_float(tensor.dtype)) adapter::require_finite(file, tensor);
  }
}

Json record_of(const Metadata& metadata) {
  const auto found = metadata.find(kMergedKey);
  if (found == metadata.end()) return Json::array();
  Json list = Json::parse(found->second, nullptr, false);
  return list.is_array() ? list : Json::array();
}

// Types that are a part of this one, and those that this one is a part of.
std::vector<std::string> other_types(const std::string& type, const std::string& families_file) {
  const auto table = model::load_table(families_file);
  std::vector<std::string> types;
  for (const auto& [name, family] : table->families) {
    for (const auto& [key, part] : family->sub_configs) {
      if (name == type && table->families.contains(part)) types.push_back(part);
      if (part == type) types.push_back(name);
    }
  }
  return types;
}

bool knows(const Model& base, const std::string& module) {
  if (base.has(Generation::v5, module).value_or(false) || base.has(Generation::v4, module).value_or(false)) return true;
  return std::any_of(base.experts.begin(), base.experts.end(),
                     [&](const Experts& e) { return e.v5_module == module || e.v4_module == module; });
}

class Renaming {
 public:
  explicit Renaming(const Model& base) : base_(base), names_(base.index ? base.index->family.get() : nullptr) {}

  bool rename(std::string& module) const {
    if (knows(base_, module)) return true;
    for (const std::string& other : names_.other_prefixes(module)) {
      if (!knows(base_, other)) continue;
      module = other;
      return true;
    }
    return false;
  }

  bool rename(Factors& factors) const {
    bool all = true;
    for (Factor& factor : factors.factors) all = all && rename(factor.site.module);
    for (Extra& extra : factors.extras) all = all && rename(extra.site.module);
    for (ExpertCount& count : factors.expert_counts) all = all && rename(count.module);
    return all;
  }

 private:
  const Model& base_;
  model::DiskNames names_;
};

}  // namespace

std::vector<MergeAdapter> open_adapters(const MergeOptions& options, const Model& model, std::uint32_t first_source) {
  std::vector<MergeAdapter> adapters;
  for (const WeightedAdapter& given : options.adapters) {
    MergeAdapter adapter;
    adapter.adapter = open(given.path, {options.input.adapter_name, options.input.open});
    adapter.adapter.weights = layout::with_rows_in_order(adapter.adapter, model);
    refuse_changed_base(adapter.adapter, options.base_is_residual);
    adapter.reading = read_for(adapter.adapter, model, options);
    adapter.weight = given.weight;
    adapter.source = first_source + static_cast<std::uint32_t>(adapters.size());
    require_finite(adapter);
    adapter.zero = zero_factors(adapter);
    adapter.digest = digest_of(adapter.adapter);
    adapters.push_back(std::move(adapter));
  }
  return adapters;
}

void refuse_repeats(const std::vector<MergeAdapter>& adapters, const std::vector<Metadata>& base) {
  std::set<std::string> held;
  for (const Metadata& metadata : base) {
    for (const Json& entry : record_of(metadata)) {
      if (entry.is_object() && entry.contains("adapter") && entry.at("adapter").is_string()) {
        held.insert(entry.at("adapter").get<std::string>());
      }
    }
  }
  std::set<std::string> given;
  for (const MergeAdapter& adapter : adapters) {
    const bool twice = !given.insert(adapter.digest).second;
    if (!twice && !held.contains(adapter.digest)) continue;
    at(adapter.adapter.folder)
        .fail(ErrorCode::LO_REPEAT,
              {.problem = twice ? "the same adapter is given twice"
                                : "the base already holds this adapter: merged again it would count twice",
               .got = adapter.digest,
               .hint = "--allow-repeat adds it all the same"});
  }
}

std::string merged_record(const std::vector<MergeAdapter>& adapters, const Metadata& base) {
  Json list = record_of(base);
  for (const MergeAdapter& adapter : adapters) {
    list.push_back(Json{{"adapter", adapter.digest}, {"weight", adapter.weight}});
  }
  return list.dump();
}

std::optional<Reading> read_as_other_class(const Adapter& adapter, const Model& base, const MergeOptions& options) {
  std::set<std::string> modules;
  for (const TensorInfo& tensor : adapter.weights->tensors()) modules.emplace(layout::parse_key(tensor.name).module);
  const std::int64_t experts = base.experts.empty() ? 0 : base.experts.front().num_experts;
  const Renaming renaming(base);
  for (const std::string& type : other_types(base.model_type, options.input.families_file)) {
    try {
      const Model other = describe({.family = type,
                                    .families_file = options.input.families_file,
                                    .num_experts = experts,
                                    .names = {modules.begin(), modules.end()}});
      Reading reading = read(adapter, other, options.input.read);
      if (!renaming.rename(reading.factors)) continue;
      reading.factors.warnings.push_back("its modules are named as in " + type +
                                         ", another class of the base's family: the same layers");
      return reading;
    } catch (const Error&) {
      continue;  // the caller has the error of the base's own class
    }
  }
  return std::nullopt;
}

}  // namespace peft::merging
