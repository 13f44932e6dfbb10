#include "verbs/merge_other_class.h"

#include <algorithm>
#include <set>

#include "layout/keys.h"
#include "model/disk_names.h"
#include "model/families.h"
#include "model/index.h"
#include "peft/error.h"

namespace peft::merging {
namespace {

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
