// peft params: what LoRA trains, and all there is. Shapes only: no weight is read.
#include <ATen/ATen.h>
#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/runtime/runtime.h"
#include "cli/output/table.h"
#include "peft/adapter.h"
#include "peft/targets.h"
#include "torch_cli/parameter_kinds.h"
#include "torch_cli/running_model.h"

namespace peft::torch_cli {
namespace {

namespace fs = std::filesystem;

// An adapter's config alone gives a new adapter of these shapes. A saved config says inference_mode; the line is the
// one of training, where it is of interest.
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

}  // namespace
}  // namespace peft::torch_cli

namespace peft::cli {

int run(const ParamsCommand& command) { return torch_cli::run_guarded<ParamsCommand, torch_cli::run_params>(command); }

}  // namespace peft::cli
