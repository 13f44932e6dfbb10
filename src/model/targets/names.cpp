#include "model/targets/names.h"

#include <algorithm>
#include <array>
#include <unordered_set>

namespace peft::model {
namespace {

struct Default {
  std::string_view types;    // separated by spaces
  std::string_view targets;  // separated by spaces; one with a * is a regular expression
};

// peft/utils/constants.py, 0.21: the modules LoRA goes on when a config names none.
constexpr std::array kDefaults = {
    Default{"t5 mt5", "q v"},
    Default{"bart opt gptj gpt_neo llama llama4 mistral mixtral stablelm gemma gemma2 gemma3_text qwen2 qwen3",
            "q_proj v_proj"},
    Default{"gpt2 gpt_bigcode", "c_attn"},
    Default{"bloom gpt_neox chatglm RefinedWebModel RefinedWeb falcon", "query_key_value"},
    Default{"blip-2", "q v q_proj v_proj"},
    Default{"bert roberta xlm-roberta electra layoutlm", "query value"},
    Default{"deberta-v2", "query_proj value_proj"},
    Default{"deberta", "in_proj"},
    Default{"mpt", "Wqkv"},
    Default{"btlm", "c_proj c_attn"},
    Default{"codegen", "qkv_proj"},
    Default{"phi", "q_proj v_proj fc1 fc2"},
    Default{"gemma4", R"(.*language_model\..*\.(q_proj|v_proj))"},
    Default{"nemotron_h", "q_proj k_proj v_proj o_proj"},
    Default{"rwkv", "key value receptance output"},
    Default{"rwkv7", "r_proj k_proj v_proj o_proj key value"},
};

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> result;
  while (!text.empty()) {
    const std::size_t space = std::min(text.find(' '), text.size());
    result.emplace_back(text.substr(0, space));
    text.remove_prefix(std::min(space + 1, text.size()));
  }
  return result;
}

// "a.b.c" -> "c", "b.c", "a.b.c"
std::vector<std::string> ends_of(std::string_view name) {
  std::vector<std::string> ends;
  for (std::size_t dot = name.rfind('.'); dot != std::string_view::npos && dot > 0; dot = name.rfind('.', dot - 1)) {
    ends.emplace_back(name.substr(dot + 1));
  }
  ends.emplace_back(name);
  return ends;
}

}  // namespace

std::vector<Visit> walk(const ModuleTree& tree) {
  std::vector<Visit> visits;
  std::unordered_set<std::string> seen;
  visits.reserve(tree.modules.size() * 5 / 4);
  for (const Module& module : tree.modules) {
    for (std::size_t dot = module.name.find('.'); dot != std::string::npos; dot = module.name.find('.', dot + 1)) {
      std::string container = module.name.substr(0, dot);
      if (tree.find(container) == nullptr && seen.insert(container).second)
        visits.push_back({std::move(container), nullptr});
    }
    visits.push_back({module.name, &module});
  }
  return visits;
}

NamesOrPattern default_targets(std::string_view model_type) {
  for (const Default& row : kDefaults) {
    const std::vector<std::string> types = words(row.types);
    if (std::find(types.begin(), types.end(), model_type) == types.end()) continue;
    if (row.targets.find('*') != std::string_view::npos) return std::string(row.targets);
    return words(row.targets);
  }
  return {};
}

std::string matching_end(const std::set<std::string, std::less<>>& ends, std::string_view name) {
  if (ends.contains(name)) return std::string(name);
  for (std::size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
    const std::string_view end = name.substr(dot + 1);
    if (!end.empty() && ends.contains(end)) return std::string(end);
  }
  return {};
}

std::vector<std::string> minimise(const std::vector<std::string>& targets, const std::vector<Visit>& modules) {
  const std::set<std::string, std::less<>> wanted(targets.begin(), targets.end());
  std::unordered_set<std::string> taken;  // ends of modules that must not be selected
  for (const Visit& visit : modules) {
    if (!matching_end(wanted, visit.name).empty()) continue;
    for (std::string& end : ends_of(visit.name)) taken.insert(std::move(end));
  }
  std::vector<std::vector<std::string>> candidates;
  for (const std::string& target : wanted) candidates.push_back(ends_of(target));
  std::sort(candidates.begin(), candidates.end());
  std::set<std::string, std::less<>> chosen;
  for (const std::vector<std::string>& ends : candidates) {
    const std::string& target = ends.back();
    for (const std::string& end : ends) {
      if (chosen.contains(end) || taken.contains(end)) continue;
      const std::string cover = matching_end(chosen, target);
      if (!cover.empty() && cover != target) continue;  // a chosen end selects it already
      chosen.insert(end);
      break;
    }
  }
  return {chosen.begin(), chosen.end()};
}

}  // namespace peft::model
