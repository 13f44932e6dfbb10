#include "peft/targets.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "config/peft_rules.h"
#include "model/families.h"
#include "model/index.h"
#include "model/path.h"
#include "model/target_resolver.h"
#include "peft/error.h"

namespace peft::model {
namespace {

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// A hint: what the linear modules of a tree are called, each name once, in the tree's order.
std::string linear_names(const ModuleTree& tree) {
  constexpr std::size_t kMost = 20;
  std::vector<std::string> names;
  for (const Module& module : tree.modules) {
    const std::string name(leaf(module.name));
    const bool linear = module.kind == ModuleKind::linear || module.kind == ModuleKind::conv1d;
    if (linear && !name.empty() && std::ranges::find(names, name) == names.end()) names.push_back(name);
  }
  if (names.empty()) return "the base has no linear modules";
  std::string text = "the linear modules of the base are named ";
  for (std::size_t i = 0; i < std::min(names.size(), kMost); ++i) text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > kMost ? text + ", ..." : text;
}

std::vector<std::string> sorted_set(const std::vector<std::string>& names) {
  const std::set<std::string> unique(names.begin(), names.end());
  return {unique.begin(), unique.end()};
}

}  // namespace

void refuse_target(const std::string& python_class, const std::string& target, const std::string& problem,
                   const std::string& hint) {
  throw Error(ErrorCode::CF_TARGET, {.tensor = target, .problem = problem, .hint = hint, .python_error = python_class});
}

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
  if (auto& parameters = after().target_parameters) parameters = sorted_set(*parameters);  // sets in PEFT
  if (auto* names = std::get_if<std::vector<std::string>>(&after().exclude_modules)) *names = sorted_set(*names);
  std::sort(result_.targets.begin(), result_.targets.end(),
            [](const Target& a, const Target& b) { return a.name < b.name; });
  return std::move(result_);
}

void TargetResolver::check_config() const {
  if (config_.bias != "none" && config_.bias != "all" && config_.bias != "lora_only") {
    refuse_target("NotImplementedError", "bias", "an unknown value of bias", "use none, all or lora_only");
  }
  if (!config::lora_init(config_.init_lora_weights))
    refuse_target("ValueError", "init_lora_weights", "an unknown way to initialise");
  const bool zero =
      config_.layers_to_transform_is_int && config_.layers_to_transform && config_.layers_to_transform->front() == 0;
  if (config_.layers_pattern && zero && version_ < kOwnErrorSince) {
    refuse_target("ValueError", "layers_pattern", "layers_to_transform is 0, which this version takes for absent");
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

// Null, "all-linear" and long lists become the names PEFT goes on with (and saves).
void TargetResolver::choose_modules() {
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
      modules = default_targets(model_.default_targets_type);
      if (std::holds_alternative<std::monostate>(modules) && no_parameters) {
        refuse_target("ValueError", "target_modules", "no targets, and PEFT has no default ones for this model type",
                      "name target_modules or target_parameters");
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
    refuse_target(python_class, "target_modules", "no module is left: those that match are excluded or saved whole",
                  "check target_modules, exclude_modules and modules_to_save");
  }
  const auto* names = std::get_if<std::vector<std::string>>(&result_.config_after.target_modules);
  const bool none =
      std::holds_alternative<std::monostate>(result_.config_after.target_modules) || (names && names->empty());
  if (none)
    refuse_target(python_class, "target_modules", "no target modules are named and no target parameter was found");
  refuse_target(python_class, "target_modules",
                config_.layers_to_transform ? "no module of the base has such a name in these layers"
                                            : "no module of the base has such a name",
                linear_names(tree_));
}

}  // namespace peft::model

namespace peft {

ResolvedTargets resolve_targets(const AdapterConfig& config, const ModuleTree& tree, const Model& model,
                                Generation generation, std::optional<AdapterConfig::Version> as_of) {
  constexpr AdapterConfig::Version kNewest{0, 21, 2};
  return model::TargetResolver(config, tree, model, generation, as_of.value_or(kNewest)).run();
}

}  // namespace peft
