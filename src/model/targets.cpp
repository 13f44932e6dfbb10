#include "peft/targets.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "model/families.h"
#include "model/index.h"
#include "model/names.h"
#include "model/path.h"
#include "model/target_match.h"
#include "model/target_names.h"
#include "peft/error.h"

namespace peft {
namespace {

using model::is_below;
using model::TargetMatcher;
using model::Visit;
using Version = AdapterConfig::Version;

constexpr Version kNewest{0, 21, 2};
constexpr Version kConvertsSince{0, 19, 1};  // PEFT rewrites v4 targets on transformers v5
constexpr Version kInvertedSwap{0, 19, 0};   // swapped exactly the wrong parameters
constexpr Version kSwapSince{0, 19, 1};
constexpr Version kOwnErrorSince{0, 21, 2};  // NoMatchingPeftModuleError; a dimension check of its own

// Types whose out_proj and conv1d PEFT refuses as targets.
const std::set<std::string, std::less<>> kMambaTypes = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"};

[[noreturn]] void refuse(const std::string& python_class, const std::string& target, const std::string& problem,
                         const std::string& hint = {}) {
  throw Error(ErrorCode::CF_TARGET, {.tensor = target, .problem = problem, .got = python_class, .hint = hint});
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::vector<std::string> sorted_set(const std::vector<std::string>& names) {
  const std::set<std::string> unique(names.begin(), names.end());
  return {unique.begin(), unique.end()};
}

bool is_known_init(const std::string& init) {
  static const std::set<std::string> kInits = {"true",  "false", "gaussian",   "eva",  "olora",  "pissa",
                                               "corda", "loftq", "orthogonal", "mica", "lora_ga"};
  return kInits.contains(init) || init.starts_with("pissa_niter_");
}

class Resolver {
 public:
  Resolver(const AdapterConfig& config, const ModuleTree& tree, const Model& model, Generation generation,
           Version version)
      : config_(config),
        tree_(tree),
        model_(model),
        generation_(generation),
        version_(version),
        visits_(model::walk(tree)) {
    result_.config_after = config;
  }

  ResolvedTargets run() {
    check_config();
    add_task_heads("SEQ_CLS", {"classifier", "score"});
    choose_modules();
    target_modules();
    target_parameters();
    if (result_.targets.empty()) nothing_found();
    save_modules();
    add_task_heads("TOKEN_CLS", {"classifier", "score"});
    add_task_heads("QUESTION_ANS", {"qa_outputs"});
    warn();
    if (auto& parameters = after().target_parameters) parameters = sorted_set(*parameters);  // sets in PEFT
    if (auto* names = std::get_if<std::vector<std::string>>(&after().exclude_modules)) *names = sorted_set(*names);
    std::sort(result_.targets.begin(), result_.targets.end(),
              [](const Target& a, const Target& b) { return a.name < b.name; });
    return std::move(result_);
  }

 private:
  AdapterConfig& after() { return result_.config_after; }

  void check_config() const {
    if (config_.bias != "none" && config_.bias != "all" && config_.bias != "lora_only") {
      refuse("NotImplementedError", "bias", "an unknown value of bias", "use none, all or lora_only");
    }
    if (!is_known_init(config_.init_lora_weights))
      refuse("ValueError", "init_lora_weights", "an unknown way to initialise");
    const bool zero =
        config_.layers_to_transform_is_int && config_.layers_to_transform && config_.layers_to_transform->front() == 0;
    if (config_.layers_pattern && zero && version_ < kOwnErrorSince) {
      refuse("ValueError", "layers_pattern", "layers_to_transform is 0, which this version takes for absent");
    }
  }

  void add_task_heads(const std::string& task, const std::vector<std::string>& heads) {
    if (config_.task_type != task) return;
    auto& saved = after().modules_to_save;
    if (!saved) saved.emplace();
    for (const std::string& head : heads) {
      if (std::find(saved->begin(), saved->end(), head) == saved->end()) saved->push_back(head);
    }
  }

  // Null, "all-linear" and long lists become the names PEFT goes on with (and saves).
  void choose_modules() {
    NamesOrPattern& modules = after().target_modules;
    const bool no_parameters = !config_.target_parameters || config_.target_parameters->empty();
    if (std::holds_alternative<std::monostate>(modules)) {
      const auto& family = model_.index ? model_.index->family : nullptr;
      const bool converted =
          generation_ == Generation::v5 && version_ >= kConvertsSince && family && !family->peft_config.empty();
      if (converted) {
        modules = std::vector<std::string>{};  // the rewriting runs first and leaves nothing for the defaults
        result_.warnings.push_back(
            "PEFT takes target_modules null for an empty list on this model type: its default targets are lost");
      } else {
        modules = model::default_targets(model_.default_targets_type);
        if (std::holds_alternative<std::monostate>(modules) && no_parameters) {
          refuse("ValueError", "target_modules", "no targets, and PEFT has no default ones for this model type",
                 "name target_modules or target_parameters");
        }
      }
    }
    if (const auto* text = std::get_if<std::string>(&modules); text && lower(*text) == "all-linear")
      modules = all_linear();
    if (auto* names = std::get_if<std::vector<std::string>>(&modules)) {
      *names = sorted_set(*names);
      if (names->size() >= model::kMinimiseFrom) {
        std::vector<std::string> fewer = model::minimise(*names, visits_);
        if (fewer.size() < names->size()) *names = std::move(fewer);
      }
    }
  }

  std::vector<std::string> all_linear() const {
    std::string output = tree_.output_embedding;
    if (output.empty() && config_.task_type == "SEQ_CLS") {
      for (const char* head : {"score", "classifier"}) {
        if (output.empty() && tree_.find(head) != nullptr) output = head;
      }
    }
    std::vector<std::string> names;
    for (const Module& module : tree_.modules) {
      const bool linear = module.kind == ModuleKind::linear || module.kind == ModuleKind::conv1d;
      if (linear && module.name != output) names.push_back(module.name);
    }
    return names;
  }

  void target_modules() {
    const TargetMatcher matcher(after(), version_);
    for (const Visit& visit : visits_) {
      const auto found = matcher.check(visit.name);
      if (found.answer == TargetMatcher::Answer::excluded) result_.excluded.push_back(visit.name);
      if (found.answer == TargetMatcher::Answer::yes) {
        used_.insert(found.pattern);
        add_module(visit, found.pattern);
      }
    }
  }

  void add_module(const Visit& visit, const std::string& pattern) {
    if (visit.module == nullptr || visit.module->kind == ModuleKind::other) {
      refuse("ValueError", visit.name, "LoRA cannot sit on a module of this kind",
             "name Linear, Embedding or Conv modules; for experts and routers use target_parameters");
    }
    const std::string_view last = model::leaf(visit.name);
    if ((last == "out_proj" || last == "conv1d") && kMambaTypes.contains(model_.model_type)) {
      refuse("ValueError", visit.name, "PEFT refuses this module in Mamba models");
    }
    Target target = named_target(visit.name, pattern);
    const Module& module = *visit.module;
    target.shape = module.weight;
    target.key = visit.name;
    correct_fan(module.kind);
    shape_module(module, target);
    module_names_.insert(visit.name);
    result_.targets.push_back(std::move(target));
  }

  // PEFT sets the flag of the whole config to what the layer at hand needs.
  void correct_fan(ModuleKind kind) {
    const bool conv1d = kind == ModuleKind::conv1d;
    if ((kind != ModuleKind::linear && !conv1d) || after().fan_in_fan_out == conv1d) return;
    after().fan_in_fan_out = conv1d;
    result_.warnings.push_back(conv1d ? "fan_in_fan_out is false but a target is a Conv1D; set to true"
                                      : "fan_in_fan_out is true but a target is a Linear; set to false");
  }

  static void shape_module(const Module& module, Target& target) {
    const auto& weight = module.weight;
    if (weight.size() < 2) return;  // shape unknown
    const std::int64_t rank = target.rank;
    switch (module.kind) {
      case ModuleKind::linear:
        target.a = {rank, weight[1]}, target.b = {weight[0], rank};
        return;
      case ModuleKind::conv1d:
        target.a = {rank, weight[0]}, target.b = {weight[1], rank};
        return;
      case ModuleKind::embedding:
        target.a = {rank, weight[0]}, target.b = {weight[1], rank};
        return;
      case ModuleKind::conv:
        target.a = weight;
        target.a[0] = rank;
        target.b.assign(weight.size(), 1);
        target.b[0] = weight[0];
        target.b[1] = rank;
        return;
      case ModuleKind::other:
        return;
    }
  }

  Target named_target(const std::string& name, const std::string& pattern) const {
    Target target;
    target.name = name;
    target.pattern = pattern;
    target.rank = config_.rank_for(name);
    if (target.rank <= 0) refuse("ValueError", name, "the rank is not positive");
    if (config_.init_lora_weights == "orthogonal" && target.rank % 2 != 0) {
      refuse("ValueError", name, "orthogonal initialisation needs an even rank");
    }
    target.alpha = config_.alpha_for(name);
    target.scaling = config_.scale_for(name, target.rank);
    return target;
  }

  // Parameters, module by module; the first one registered is the innermost wrapper.
  void target_parameters() {
    if (!config_.target_parameters) return;
    const std::set<std::string, std::less<>> wanted(config_.target_parameters->begin(),
                                                    config_.target_parameters->end());
    std::map<std::string, std::vector<const Parameter*>, std::less<>> own;
    for (const Parameter& parameter : tree_.parameters) own[parameter.module].push_back(&parameter);
    for (const Module& module : tree_.modules) {
      std::vector<Target> found;
      const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
        const std::string full = module.name + "." + name;
        const std::string entry = model::matching_end(wanted, full);
        if (!entry.empty()) found.push_back(parameter_target(module, name, full, shape, entry));
      };
      if (module.kind != ModuleKind::other && !module.weight.empty()) add("weight", module.weight);
      if (const auto parameters = own.find(module.name); parameters != own.end() && module.kind == ModuleKind::other) {
        for (const Parameter* parameter : parameters->second) add(parameter->name, parameter->shape);
      }
      nest(module.name, found);
    }
    check_unlisted_norms(wanted);
  }

  void nest(const std::string& module, std::vector<Target>& found) {
    for (std::size_t i = 0; i < found.size(); ++i) {
      found[i].key = module;
      for (std::size_t outer = i + 1; outer < found.size(); ++outer) found[i].key += ".base_layer";
      result_.targets.push_back(std::move(found[i]));
    }
  }

  Target parameter_target(const Module& module, const std::string& name, const std::string& full,
                          const std::vector<std::int64_t>& shape, const std::string& entry) {
    used_.insert(entry);
    if (module_names_.contains(module.name)) {
      refuse("ValueError", full, "its module is a target too", "take the module out of target_modules");
    }
    check_wrapper(full);
    check_dimensions(full, shape.size());
    Target target = named_target(full, entry);
    target.parameter = true;
    target.shape = shape;
    std::int64_t experts = 1, in = shape[shape.size() - 1], out = shape[shape.size() - 2];
    if (shape.size() == 3) {
      experts = shape[0];
      if (!swaps(module.name, name)) std::swap(in, out);
    }
    std::int64_t rows = 0;
    if (__builtin_mul_overflow(target.rank, experts, &rows))
      refuse("ValueError", full, "rank times experts does not fit 64 bits");
    target.a = {rows, in};
    target.b = {out, rows};
    return target;
  }

  // What no wrapper of a parameter can do; one value in the config counts for all of them.
  void check_wrapper(const std::string& target) const {
    const char* what = config_.lora_dropout != 0 ? "lora_dropout"
                       : config_.fan_in_fan_out  ? "fan_in_fan_out"
                       : config_.lora_bias       ? "lora_bias"
                       : config_.use_dora        ? "use_dora"
                                                 : nullptr;
    if (what != nullptr) refuse("ValueError", target, std::string(what) + " does not work with target_parameters");
  }

  void check_dimensions(const std::string& target, std::size_t dimensions) const {
    if (dimensions == 2 || dimensions == 3) return;
    refuse(version_ >= kOwnErrorSince || dimensions > 3 ? "ValueError" : "IndexError", target,
           "a parameter of " + std::to_string(dimensions) + " dimensions; LoRA needs 2 or 3");
  }

  // Whether PEFT takes the last dimension of [E, d1, d2] as the input.
  bool swaps(const std::string& module, const std::string& name) const {
    if (version_ < kInvertedSwap) return false;
    bool transposed = false;
    if (const auto located = model_.locate(module)) {
      const ExpertsForm& form = *located->experts->form;
      for (const ExpertsForm::Fused& fused : generation_ == Generation::v4 ? form.v4 : form.v5) {
        if (fused.name == name && located->experts->fused_module(generation_, fused) == module) {
          transposed = fused.is_transposed.value_or(false);
        }
      }
    }
    return version_ >= kSwapSince ? !transposed : transposed;
  }

  // Tree files leave out norms. A target that names one is a vector all the same.
  void check_unlisted_norms(const std::set<std::string, std::less<>>& wanted) const {
    for (const std::string& entry : wanted) {
      const std::string_view module = model::parent(entry);
      if (used_.contains(entry) || model::leaf(entry) != "weight" || !model::is_norm_name(module)) continue;
      check_wrapper(entry);
      check_dimensions(entry, 1);
    }
  }

  [[noreturn]] void nothing_found() const {
    const std::string python_class = version_ >= kOwnErrorSince ? "NoMatchingPeftModuleError" : "ValueError";
    if (!result_.excluded.empty()) {
      refuse(python_class, "target_modules", "no module is left: those that match are excluded or saved whole",
             "check target_modules, exclude_modules and modules_to_save");
    }
    const auto* names = std::get_if<std::vector<std::string>>(&result_.config_after.target_modules);
    const bool none =
        std::holds_alternative<std::monostate>(result_.config_after.target_modules) || (names && names->empty());
    if (none) refuse(python_class, "target_modules", "no target modules are named and no target parameter was found");
    refuse(python_class, "target_modules",
           config_.layers_to_transform ? "no module of the base has such a name in these layers"
                                       : "no module of the base has such a name",
           "list the model's modules with `peft targets`");
  }

  // PEFT compares ends of names without a dot in between: "head" saves lm_head.
  void save_modules() {
    if (!after().modules_to_save) return;
    std::set<std::string> names;
    for (const std::string& saved : *after().modules_to_save) {
      for (const Visit& visit : visits_) {
        if (!visit.name.ends_with(saved)) continue;
        if (visit.module == nullptr && is_module_list(visit.name)) {
          refuse("TypeError", visit.name, "modules_to_save cannot hold a list of modules");
        }
        names.insert(visit.name);
      }
    }
    result_.modules_to_save.assign(names.begin(), names.end());
  }

  // A container whose children are numbers.
  bool is_module_list(const std::string& container) const {
    const auto child =
        std::find_if(visits_.begin(), visits_.end(), [&](const Visit& v) { return is_below(v.name, container); });
    return child != visits_.end() && std::isdigit(static_cast<unsigned char>(child->name[container.size() + 1]));
  }

  void warn() {
    const auto* names = std::get_if<std::vector<std::string>>(&after().target_modules);
    for (const std::string& name : names ? *names : std::vector<std::string>{}) {
      if (!used_.contains(name)) result_.warnings.push_back("target_modules: \"" + name + "\" matches nothing");
    }
    for (const std::string& name : config_.target_parameters.value_or(std::vector<std::string>{})) {
      if (!used_.contains(name)) result_.warnings.push_back("target_parameters: \"" + name + "\" matches nothing");
    }
    const bool excludes = !std::holds_alternative<std::monostate>(config_.exclude_modules);
    if (excludes && result_.excluded.empty()) result_.warnings.push_back("exclude_modules matches nothing");
    warn_patterns(config_.rank_pattern, "rank_pattern");
    warn_patterns(config_.alpha_pattern, "alpha_pattern");
  }

  // Patterns that match no target, and targets that several patterns with different values match: PEFT saves the
  // patterns sorted, so another one wins once the file is read again.
  void warn_patterns(const PatternMap& patterns, const std::string& key) {
    std::map<std::string, std::string> winners;  // target -> pattern that decides
    std::set<std::string> traps;
    for (const auto& [pattern, number] : patterns) {
      const PythonRegex regex("^(.*\\.)?(" + pattern + ")$", key);
      bool matched = false;
      for (const Target& target : result_.targets) {
        if (!regex.matches(target.name)) continue;
        matched = true;
        const auto [winner, fresh] = winners.try_emplace(target.name, pattern);
        if (!fresh && pattern < winner->second) traps.insert("\"" + winner->second + "\" and \"" + pattern + "\"");
      }
      if (!matched) result_.warnings.push_back(key + ": \"" + pattern + "\" matches no target");
    }
    for (const std::string& trap : traps) {
      result_.warnings.push_back(key + ": " + trap +
                                 " fit the same targets; the other one decides once the config was saved and read");
    }
  }

  const AdapterConfig& config_;
  const ModuleTree& tree_;
  const Model& model_;
  const Generation generation_;
  const Version version_;
  const std::vector<Visit> visits_;
  std::set<std::string, std::less<>> module_names_;  // modules that are targets
  std::set<std::string, std::less<>> used_;          // entries of the config that matched something
  ResolvedTargets result_;
};

}  // namespace

ResolvedTargets resolve_targets(const AdapterConfig& config, const ModuleTree& tree, const Model& model,
                                Generation generation, std::optional<AdapterConfig::Version> as_of) {
  return Resolver(config, tree, model, generation, as_of.value_or(kNewest)).run();
}

}  // namespace peft
