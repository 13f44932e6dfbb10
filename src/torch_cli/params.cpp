#include "torch_cli/params.h"

#include <ATen/ATen.h>
#include <ATen/core/Tensor.h>
#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <vector>

#include "base/text.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/table.h"
#include "cli/runtime/runtime.h"
#include "model/path.h"
#include "peft/adapter.h"
#include "peft/model.h"
#include "torch_cli/running_model.h"

namespace peft::torch_cli {
namespace {

// The parameters of all layers that are alike, as one row.
struct ParameterKind {
  std::string name;         // "model.layers.*.self_attn.q_proj.weight"
  std::uint64_t count = 0;  // how many there are
  std::string shapes;       // "[64, 64]", or two when layers differ: "[64, 64], [128, 64]"
  std::uint64_t parameters = 0;
  std::string adapter_shapes;  // "lora_A [8, 64]  lora_B [64, 8]", as they are on disk
  std::uint64_t adapter_parameters = 0;
};

// A ParameterKind while its rows are collected.
struct Collected {
  ParameterKind kind;
  std::set<std::string> shapes, adapter_shapes;
};

class Kinds {
 public:
  Collected& at(const std::string& name) {
    const std::string key = model::without_numbers(name);
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

// From places on disk to parameters of the model. Experts have wrappers ("….experts.base_layer").
std::map<std::string, std::string> parameters_by_place(const nn::CausalLM& base, const nn::PeftModel& lora,
                                                       const std::string& adapter) {
  const ModuleTree tree = base.tree();
  std::map<std::string, std::string> names;
  for (const auto& target : resolve_targets(lora.peft_config(adapter), tree, base.facts(), Generation::v5).targets) {
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
    row.adapter_shapes.insert((what.empty() ? "saved" : what) + " " + shape_text(tensor.sizes().vec()));
  }
}

// In the order of the model; then the adapter's tensors on no parameter of the model.
std::vector<ParameterKind> parameter_kinds(const nn::CausalLM& base, const nn::PeftModel* lora) {
  Kinds kinds;
  for (const auto& [name, tensor] : base.parameters()) {
    Collected& row = kinds.at(name);
    ++row.kind.count;
    row.kind.parameters += static_cast<std::uint64_t>(tensor.numel());
    row.shapes.insert(shape_text(tensor.sizes().vec()));
  }
  if (lora != nullptr) {
    for (const auto& adapter : lora->active_adapters()) add_adapter(kinds, base, *lora, adapter);
  }
  return kinds.result();
}

namespace fs = std::filesystem;

// An adapter's config alone gives a new adapter of these shapes. A saved config says inference_mode, but the counts are
// those of training.
std::unique_ptr<nn::PeftModel> adapter_of_config(std::shared_ptr<nn::CausalLM> base, const std::string& file) {
  nn::LoraConfig config = AdapterConfig::read(file);
  config.set("inference_mode", "false");
  nn::AdapterModelOptions options;
  options.is_trainable = true;
  return nn::get_peft_model(std::move(base), config, options);
}

std::unique_ptr<nn::PeftModel> adapters_on(std::shared_ptr<nn::CausalLM> base, const cli::RuntimeFlags& flags) {
  if (flags.adapters.empty()) return nullptr;
  if (const std::string first = resolve_path(flags.adapters.front()); fs::is_regular_file(first)) {
    if (flags.adapters.size() > 1) {
      throw Error(ErrorCode::USAGE, {.problem = "an adapter_config.json is given with another adapter",
                                     .hint = "give one config, or folders"});
    }
    return adapter_of_config(std::move(base), first);
  }
  nn::AdapterModelOptions options;
  options.is_trainable = true;
  options.changed_base = nn::ChangedBase::is_residual;  // shapes are the same
  auto lora = load_adapters(base, flags, options);
  lora->set_adapter("0");
  return lora;
}

cli::Json to_json(const std::vector<ParameterKind>& kinds, std::int64_t trainable, std::int64_t all,
                  const std::string& line) {
  cli::Json list = cli::Json::array();
  for (const auto& kind : kinds) {
    list.push_back({{"name", kind.name},
                    {"count", kind.count},
                    {"shapes", kind.shapes},
                    {"parameters", kind.parameters},
                    {"adapter_shapes", kind.adapter_shapes},
                    {"adapter_parameters", kind.adapter_parameters}});
  }
  return {{"line", line}, {"trainable_params", trainable}, {"all_params", all}, {"kinds", list}};
}

void print(const std::vector<ParameterKind>& kinds, const std::string& line) {
  cli::Table table({{"parameter"},
                    {"count", cli::Align::right},
                    {"shape"},
                    {"parameters", cli::Align::right},
                    {"LoRA"},
                    {"LoRA parameters", cli::Align::right}});
  for (const auto& kind : kinds) {
    table.add({kind.name, cli::grouped(kind.count), kind.shapes, cli::grouped(kind.parameters), kind.adapter_shapes,
               kind.adapter_parameters == 0 ? "" : cli::grouped(kind.adapter_parameters)});
  }
  cli::write_out(table.render());
  cli::write_out(line + "\n");
}

}  // namespace

int run_params(const cli::ParamsCommand& command) {
  nn::InitOptions shapes_only;
  shapes_only.device = "meta";
  const auto base = nn::init_model(resolve_path(command.model.base), shapes_only);
  const auto lora = adapters_on(base, command.model);
  const auto [trainable, all] =
      lora ? lora->get_nb_trainable_parameters() : std::pair(base->parameter_count(), base->parameter_count());
  const std::string line = trainable_line(trainable, all);
  const auto kinds = parameter_kinds(*base, lora.get());
  if (command.model.json) {
    cli::print_json(to_json(kinds, trainable, all, line));
  } else {
    print(kinds, line);
  }
  return 0;
}

}  // namespace peft::torch_cli

namespace peft::cli {

int run(const ParamsCommand& command) { return torch_cli::run_guarded<ParamsCommand, torch_cli::run_params>(command); }

}  // namespace peft::cli
