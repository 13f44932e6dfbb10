#include "model/targets/resolver.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "base/text.h"
#include "config/peft_rules.h"
#include "model/families/index.h"
#include "model/path.h"
#include "model/targets/matcher.h"
#include "peft/error.h"
#include "pythonic/python_regex.h"

namespace peft::model {
namespace {

constexpr AdapterConfig::Version kInvertedSwap{0, 19, 0};  // this version swapped exactly the wrong parameters
constexpr AdapterConfig::Version kSwapSince{0, 19, 1};

// Types whose out_proj and conv1d PEFT refuses as targets.
const std::set<std::string, std::less<>> kMambaTypes = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"};

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// A hint with the names of the linear modules of a tree, each once, in the order of the tree.
std::string linear_names(const ModuleTree& tree) {
  constexpr std::size_t kMost = 20;
  std::vector<std::string> names;
  for (const Module& module : tree.modules) {
    const std::string name(leaf(module.name));
    const bool linear = module.kind == ModuleKind::linear || module.kind == ModuleKind::conv1d;
    if (linear && !name.empty() && std::ranges::find(names, name) == names.end()) names.push_back(name);
  }
  if (names.empty()) return "the base has no linear modules";
  return "the linear modules of the base are named " + list_text(names, kMost, ", ...");
}

std::vector<std::string> sorted_set(const std::vector<std::string>& names) {
  const std::set<std::string> unique(names.begin(), names.end());
  return {unique.begin(), unique.end()};
}

}  // namespace

ResolvedTargets TargetResolver::run() {
  check_config();
  add_task_heads("SEQ_CLS");
  choose_modules();
  target_modules();
  target_parameters();
  if (result_.targets.empty()) nothing_found();
  save_modules();
  add_task_heads("TOKEN_CLS");
  add_task_heads("QUESTION_ANS");
  warn();
  if (auto& parameters = after().target_parameters) parameters = sorted_set(*parameters);  // PEFT makes sets of them
  if (auto* names = std::get_if<std::vector<std::string>>(&after().exclude_modules)) *names = sorted_set(*names);
  std::sort(result_.targets.begin(), result_.targets.end(),
            [](const Target& a, const Target& b) { return a.name < b.name; });
  return std::move(result_);
}

void TargetResolver::check_config() const {
  if (config_.bias != "none" && config_.bias != "all" && config_.bias != "lora_only") {
    ErrorPlace{.tensor = "bias"}.fail(ErrorCode::CF_TARGET, {.problem = "an unknown value of bias",
                                                             .hint = "use none, all or lora_only",
                                                             .python_error = "NotImplementedError"});
  }
  if (!config::lora_init(config_.init_lora_weights))
    ErrorPlace{.tensor = "init_lora_weights"}.fail(
        ErrorCode::CF_TARGET, {.problem = "an unknown way to initialise", .python_error = "ValueError"});
  const bool zero =
      config_.layers_to_transform_is_int && config_.layers_to_transform && config_.layers_to_transform->front() == 0;
  if (config_.layers_pattern && zero && version_ < kOwnErrorSince) {
    ErrorPlace{.tensor = "layers_pattern"}.fail(
        ErrorCode::CF_TARGET,
        {.problem = "layers_to_transform is 0, which this version takes for absent", .python_error = "ValueError"});
  }
}

void TargetResolver::add_task_heads(const std::string& task) {
  if (config_.task_type != task) return;
  auto& saved = after().modules_to_save;
  if (!saved) saved.emplace();
  for (const std::string& head : config::task_heads(task)) {
    if (std::find(saved->begin(), saved->end(), head) == saved->end()) saved->push_back(head);
  }
}

// Null, "all-linear" and long lists become the names that PEFT uses and saves.
void TargetResolver::choose_modules() {
  NamesOrPattern& modules = after().target_modules;
  const bool no_parameters = !config_.target_parameters || config_.target_parameters->empty();
  if (std::holds_alternative<std::monostate>(modules)) {
    const auto& family = model_.index ? model_.index->family : nullptr;
    const bool converted =
        generation_ == Generation::v5 && version_ >= kConvertsSince && family && !family->peft_config.empty();
    if (converted) {
      modules = std::vector<std::string>{};  // PEFT rewrites the config first, and then sees no null any more
      result_.warnings.push_back(
          "PEFT takes target_modules null for an empty list on this model type: its default targets are lost");
    } else {
      modules = default_targets(model_.default_targets_type);
      if (std::holds_alternative<std::monostate>(modules) && no_parameters) {
        ErrorPlace{.tensor = "target_modules"}.fail(
            ErrorCode::CF_TARGET, {.problem = "no targets, and PEFT has no default ones for this model type",
                                   .hint = "name target_modules or target_parameters",
                                   .python_error = "ValueError"});
      }
    }
  }
  if (const auto* text = std::get_if<std::string>(&modules); text && lower(*text) == "all-linear")
    modules = all_linear();
  if (auto* names = std::get_if<std::vector<std::string>>(&modules)) {
    *names = sorted_set(*names);
    if (names->size() >= kMinimiseFrom) {
      std::vector<std::string> fewer = minimise(*names, visits_);
      if (fewer.size() < names->size()) *names = std::move(fewer);
    }
  }
}

std::vector<std::string> TargetResolver::all_linear() const {
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

void TargetResolver::nothing_found() const {
  const std::string python_class = version_ >= kOwnErrorSince ? "NoMatchingPeftModuleError" : "ValueError";
  if (!result_.excluded.empty()) {
    ErrorPlace{.tensor = "target_modules"}.fail(
        ErrorCode::CF_TARGET, {.problem = "no module is left: those that match are excluded or saved whole",
                               .hint = "check target_modules, exclude_modules and modules_to_save",
                               .python_error = python_class});
  }
  const auto* names = std::get_if<std::vector<std::string>>(&result_.config_after.target_modules);
  const bool none =
      std::holds_alternative<std::monostate>(result_.config_after.target_modules) || (names && names->empty());
  if (none)
    ErrorPlace{.tensor = "target_modules"}.fail(
        ErrorCode::CF_TARGET,
        {.problem = "no target modules are named and no target parameter was found", .python_error = python_class});
  ErrorPlace{.tensor = "target_modules"}.fail(
      ErrorCode::CF_TARGET,
      {.problem = config_.layers_to_transform ? "no module of the base has such a name in these layers"
                                              : "no module of the base has such a name",
       .hint = linear_names(tree_),
       .python_error = python_class});
}

// ---- Modules

void TargetResolver::target_modules() {
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

void TargetResolver::add_module(const Visit& visit, const std::string& pattern) {
  if (visit.module == nullptr || visit.module->kind == ModuleKind::other) {
    ErrorPlace{.tensor = visit.name}.fail(
        ErrorCode::CF_TARGET,
        {.problem = "LoRA cannot sit on a module of this kind",
         .hint = "name Linear, Embedding or Conv modules; for experts and routers use target_parameters",
         .python_error = "ValueError"});
  }
  const std::string_view last = leaf(visit.name);
  if ((last == "out_proj" || last == "conv1d") && kMambaTypes.contains(model_.model_type)) {
    ErrorPlace{.tensor = visit.name}.fail(
        ErrorCode::CF_TARGET, {.problem = "PEFT refuses this module in Mamba models", .python_error = "ValueError"});
  }
  Target target = named_target(visit.name, pattern);
  const Module& module = *visit.module;
  target.shape = module.weight;
  target.key = visit.name;
  correct_fan(module.kind);
  shape_module(module, target);
  shape_blocks(module, target);
  module_names_.insert(visit.name);
  result_.targets.push_back(std::move(target));
}

// PEFT sets the flag of the whole config to what this layer needs.
void TargetResolver::correct_fan(ModuleKind kind) {
  const bool conv1d = kind == ModuleKind::conv1d;
  if ((kind != ModuleKind::linear && !conv1d) || after().fan_in_fan_out == conv1d) return;
  after().fan_in_fan_out = conv1d;
  result_.warnings.push_back(conv1d ? "fan_in_fan_out is false but a target is a Conv1D; set to true"
                                    : "fan_in_fan_out is true but a target is a Linear; set to false");
}

void TargetResolver::shape_module(const Module& module, Target& target) {
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

// BD-LoRA stores one of the two factors as the blocks of its diagonal.
void TargetResolver::shape_blocks(const Module& module, Target& target) {
  if (!blocks_ || module.kind != ModuleKind::linear) return;
  const BlockSide side = blocks_->side_of(target.name);
  if (side == BlockSide::none || target.a.size() != 2 || target.b.size() != 2) return;
  std::vector<std::int64_t>& shape = side == BlockSide::a ? target.a : target.b;
  if (shape[0] % blocks_->count != 0 || shape[1] % blocks_->count != 0)
    ErrorPlace{.tensor = target.name}.fail(
        ErrorCode::CF_TARGET,
        {.problem = "the factor cannot be cut into nblocks blocks", .python_error = "ValueError"});
  shape[1] /= blocks_->count;
}

Target TargetResolver::named_target(const std::string& name, const std::string& pattern) const {
  Target target;
  target.name = name;
  target.pattern = pattern;
  target.rank = config_.rank_for(name);
  if (target.rank <= 0)
    ErrorPlace{.tensor = name}.fail(ErrorCode::CF_TARGET,
                                    {.problem = "the rank is not positive", .python_error = "ValueError"});
  if (config_.init_lora_weights == "orthogonal" && target.rank % 2 != 0) {
    ErrorPlace{.tensor = name}.fail(ErrorCode::CF_TARGET, {.problem = "orthogonal initialisation needs an even rank",
                                                           .python_error = "ValueError"});
  }
  target.alpha = config_.alpha_for(name);
  target.scaling = config_.scale_for(name, target.rank);
  return target;
}

// ---- Parameters

// Parameters, module by module. The wrapper of the first one registered is the innermost.
void TargetResolver::target_parameters() {
  if (!config_.target_parameters) return;
  const std::set<std::string, std::less<>> wanted(config_.target_parameters->begin(), config_.target_parameters->end());
  std::map<std::string, std::vector<const Parameter*>, std::less<>> own;
  for (const Parameter& parameter : tree_.parameters) own[parameter.module].push_back(&parameter);
  for (const Module& module : tree_.modules) {
    std::vector<Target> found;
    const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
      const std::string full = module.name + "." + name;
      const std::string entry = matching_end(wanted, full);
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

void TargetResolver::nest(const std::string& module, std::vector<Target>& found) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    found[i].key = module;
    for (std::size_t outer = i + 1; outer < found.size(); ++outer) found[i].key += ".base_layer";
    result_.targets.push_back(std::move(found[i]));
  }
}

Target TargetResolver::parameter_target(const Module& module, const std::string& name, const std::string& full,
                                        const std::vector<std::int64_t>& shape, const std::string& entry) {
  used_.insert(entry);
  if (module_names_.contains(module.name)) {
    ErrorPlace{.tensor = full}.fail(ErrorCode::CF_TARGET, {.problem = "its module is a target too",
                                                           .hint = "take the module out of target_modules",
                                                           .python_error = "ValueError"});
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
    ErrorPlace{.tensor = full}.fail(
        ErrorCode::CF_TARGET, {.problem = "rank times experts does not fit 64 bits", .python_error = "ValueError"});
  target.a = {rows, in};
  target.b = {out, rows};
  return target;
}

// Refuses what no wrapper of a parameter can do. A value in the config holds for all of them.
void TargetResolver::check_wrapper(const std::string& target) const {
  const char* what = config_.lora_dropout != 0 ? "lora_dropout"
                     : config_.fan_in_fan_out  ? "fan_in_fan_out"
                     : config_.lora_bias       ? "lora_bias"
                     : config_.use_dora        ? "use_dora"
                                               : nullptr;
  if (what != nullptr)
    ErrorPlace{.tensor = target}.fail(
        ErrorCode::CF_TARGET,
        {.problem = std::string(what) + " does not work with target_parameters", .python_error = "ValueError"});
}

void TargetResolver::check_dimensions(const std::string& target, std::size_t dimensions) const {
  if (dimensions == 2 || dimensions == 3) return;
  ErrorPlace{.tensor = target}.fail(
      ErrorCode::CF_TARGET,
      {.problem = "a parameter of " + std::to_string(dimensions) + " dimensions; LoRA needs 2 or 3",
       .python_error = version_ >= kOwnErrorSince || dimensions > 3 ? "ValueError" : "IndexError"});
}

// Whether PEFT takes the last dimension of [E, d1, d2] as the input.
bool TargetResolver::swaps(const std::string& module, const std::string& name) const {
  if (version_ < kInvertedSwap) return false;
  bool transposed = false;
  if (const auto located = model_.locate(module)) {
    for (const ExpertsForm::Fused& fused : located->experts->form->fused(generation_)) {
      if (fused.name == name && located->experts->fused_module(generation_, fused) == module) {
        transposed = fused.is_transposed.value_or(false);
      }
    }
  }
  return version_ >= kSwapSince ? !transposed : transposed;
}

// Tree files leave out norms. A target that names one is refused nevertheless, as a vector.
void TargetResolver::check_unlisted_norms(const std::set<std::string, std::less<>>& wanted) const {
  for (const std::string& entry : wanted) {
    const std::string_view module = parent(entry);
    if (used_.contains(entry) || leaf(entry) != "weight" || !is_norm_name(module)) continue;
    check_wrapper(entry);
    check_dimensions(entry, 1);
  }
}

// ---- Modules that are saved whole, and warnings

// PEFT compares the ends of names without a dot before them: "head" saves lm_head.
void TargetResolver::save_modules() {
  if (!after().modules_to_save) return;
  std::set<std::string> names;
  for (const std::string& saved : *after().modules_to_save) {
    for (const Visit& visit : visits_) {
      if (!visit.name.ends_with(saved)) continue;
      if (visit.module == nullptr && is_module_list(visit.name)) {
        ErrorPlace{.tensor = visit.name}.fail(
            ErrorCode::CF_TARGET,
            {.problem = "modules_to_save cannot hold a list of modules", .python_error = "TypeError"});
      }
      names.insert(visit.name);
    }
  }
  result_.modules_to_save.assign(names.begin(), names.end());
}

// A container whose children are numbers.
bool TargetResolver::is_module_list(const std::string& container) const {
  const auto child =
      std::find_if(visits_.begin(), visits_.end(), [&](const Visit& v) { return is_below(v.name, container); });
  return child != visits_.end() && std::isdigit(static_cast<unsigned char>(child->name[container.size() + 1]));
}

void TargetResolver::warn() {
  const auto* names = std::get_if<std::vector<std::string>>(&after().target_modules);
  for (const std::string& name : names ? *names : std::vector<std::string>{}) {
    if (!used_.contains(name)) result_.warnings.push_back("target_modules: \"" + name + "\" matches nothing");
  }
  for (const std::string& name : config_.target_parameters.value_or(std::vector<std::string>{})) {
    if (!used_.contains(name)) result_.warnings.push_back("target_parameters: \"" + name + "\" matches nothing");
  }
  const auto* excluded = std::get_if<std::vector<std::string>>(&config_.exclude_modules);
  const auto* pattern = std::get_if<std::string>(&config_.exclude_modules);
  const bool excludes = (excluded != nullptr && !excluded->empty()) || (pattern != nullptr && !pattern->empty());
  if (excludes && result_.excluded.empty()) result_.warnings.push_back("exclude_modules matches nothing");
  warn_patterns(config_.rank_pattern, "rank_pattern");
  warn_patterns(config_.alpha_pattern, "alpha_pattern");
}

// Warns of patterns that match no target, and of targets that several patterns match: PEFT saves the patterns sorted,
// so that another pattern decides after the file is read again.
void TargetResolver::warn_patterns(const PatternMap& patterns, const std::string& key) {
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

}  // namespace peft::model
