#include "torch_cli/parameter_kinds.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <map>
#include <set>

#include "cli/output/output.h"
#include "peft/targets.h"

namespace peft::torch_cli {
namespace {

bool is_number(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// What collects into one ParameterKind.
struct Collected {
  ParameterKind kind;
  std::set<std::string> shapes, adapter_shapes;
};

class Kinds {
 public:
  Collected& at(const std::string& name) {
    const std::string key = without_numbers(name);
    const auto [place, is_new] = places_.emplace(key, all_.size());
    if (is_new) all_.emplace_back().kind.name = key;
    return all_[place->second];
  }
  std::vector<ParameterKind> result() {
    std::vector<ParameterKind> kinds;
    for (auto& [kind, shapes, adapter_shapes] : all_) {
      for (const auto& shape : shapes) kind.shapes += (kind.shapes.empty() ? "" : ", ") + shape;
      for (const auto& shape : adapter_shapes) kind.adapter_shapes += (kind.adapter_shapes.empty() ? "" : "  ") + shape;
      kinds.push_back(std::move(kind));
    }
    return kinds;
  }

 private:
  std::map<std::string, std::size_t> places_;
  std::vector<Collected> all_;
};

// "base_model.model.….q_proj.lora_A.weight" -> ("….q_proj", "lora_A").
std::pair<std::string, std::string> place_of(std::string key) {
  constexpr std::string_view prefix = "base_model.model.";
  if (key.starts_with(prefix)) key.erase(0, prefix.size());
  const auto at = key.find(".lora_");
  if (at == std::string::npos) return {key, ""};
  std::string kind = key.substr(at + 1);
  if (kind.ends_with(".weight")) kind.resize(kind.size() - 7);
  return {key.substr(0, at), kind};
}

// Where on disk -> the parameter of the model that it is on. Experts have wrappers ("….experts.base_layer").
std::map<std::string, std::string> parameters_by_place(const nn::CausalLM& base, const nn::PeftModel& lora,
                                                       const std::string& adapter) {
  const ModuleTree tree = base.tree();
  const Model model = describe({.base = base.folder()});
  std::map<std::string, std::string> names;
  for (const auto& target : resolve_targets(lora.peft_config(adapter), tree, model, Generation::v5).targets) {
    names[target.key] = target.parameter ? target.name : target.name + ".weight";
  }
  return names;
}

void add_adapter(Kinds& kinds, const nn::CausalLM& base, const nn::PeftModel& lora, const std::string& adapter) {
  const auto names = parameters_by_place(base, lora, adapter);
  for (const auto& [key, tensor] : lora.state_dict(adapter)) {
    const auto [place, what] = place_of(key);
    const auto known = names.find(place);
    Collected& row = kinds.at(known == names.end() ? place : known->second);
    row.kind.adapter_parameters += static_cast<std::uint64_t>(tensor.numel());
    row.adapter_shapes.insert((what.empty() ? "saved" : what) + " " + cli::shape_text(tensor.sizes().vec()));
  }
}

}  // namespace

std::string without_numbers(const std::string& name) {
  std::string result;
  for (std::size_t begin = 0; begin <= name.size();) {
    const auto end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    result += (begin == 0 ? "" : ".") + (is_number(part) ? "*" : part);
    begin = end + 1;
  }
  return result;
}

std::vector<ParameterKind> parameter_kinds(const nn::CausalLM& base, const nn::PeftModel* lora) {
  Kinds kinds;
  for (const auto& [name, tensor] : base.parameters()) {
    Collected& row = kinds.at(name);
    ++row.kind.count;
    row.kind.parameters += static_cast<std::uint64_t>(tensor.numel());
    row.shapes.insert(cli::shape_text(tensor.sizes().vec()));
  }
  if (lora != nullptr) {
    for (const auto& adapter : lora->active_adapters()) add_adapter(kinds, base, *lora, adapter);
  }
  return kinds.result();
}

}  // namespace peft::torch_cli
