// PEFT's way from a config and the modules of a model to the modules and parameters that get LoRA.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "model/targets/block_diagonal.h"
#include "model/targets/names.h"
#include "peft/model.h"

namespace peft::model {

inline constexpr AdapterConfig::Version kConvertsSince{0, 19, 1};  // PEFT rewrites v4 targets on transformers v5
// NoMatchingPeftModuleError; a dimension check of its own.
inline constexpr AdapterConfig::Version kOwnErrorSince{0, 21, 2};

// Each step throws CF_TARGET where PEFT raises; ErrorDetail::python_error has the class of its exception.
class TargetResolver {
 public:
  TargetResolver(const AdapterConfig& config, const ModuleTree& tree, const Model& model, Generation generation,
                 AdapterConfig::Version version)
      : config_(config),
        tree_(tree),
        model_(model),
        generation_(generation),
        version_(version),
        visits_(walk(tree)),
        blocks_(block_diagonal(config, version)) {
    result_.config_after = config;
  }

  ResolvedTargets run();

 private:
  AdapterConfig& after() { return result_.config_after; }

  void check_config() const;
  void add_task_heads(const std::string& task);
  void choose_modules();
  std::vector<std::string> all_linear() const;
  [[noreturn]] void nothing_found() const;

  void target_modules();
  void add_module(const Visit& visit, const std::string& pattern);
  void correct_fan(ModuleKind kind);
  static void shape_module(const Module& module, Target& target);
  void shape_blocks(const Module& module, Target& target);
  Target named_target(const std::string& name, const std::string& pattern) const;

  void target_parameters();
  void nest(const std::string& module, std::vector<Target>& found);
  Target parameter_target(const Module& module, const std::string& name, const std::string& full,
                          const std::vector<std::int64_t>& shape, const std::string& entry);
  void check_wrapper(const std::string& target) const;
  void check_dimensions(const std::string& target, std::size_t dimensions) const;
  bool swaps(const std::string& module, const std::string& name) const;
  void check_unlisted_norms(const std::set<std::string, std::less<>>& wanted) const;

  void save_modules();
  bool is_module_list(const std::string& container) const;
  void warn();
  void warn_patterns(const PatternMap& patterns, const std::string& key);

  const AdapterConfig& config_;
  const ModuleTree& tree_;
  const Model& model_;
  const Generation generation_;
  const AdapterConfig::Version version_;
  const std::vector<Visit> visits_;
  const std::optional<BlockDiagonal> blocks_;
  std::set<std::string, std::less<>> module_names_;  // modules that are targets
  std::set<std::string, std::less<>> used_;          // entries of the config that matched something
  ResolvedTargets result_;
};

}  // namespace peft::model
