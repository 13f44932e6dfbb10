// peft train: its flags. peft-torch carries it out (src/torch_cli).
#pragma once

#include <string>
#include <vector>

#include "cli/runtime/runtime.h"
#include "peft/train/options.h"

namespace peft::cli {

// A new adapter, as LoraConfig has it. r 0: --r was not given.
struct NewAdapterFlags {
  std::int64_t r = 0;
  double lora_alpha = 8, lora_dropout = 0;
  std::vector<std::string> target_modules, target_parameters, modules_to_save;
  std::string init_lora_weights = "true";
  bool use_rslora = false, use_dora = false;
};

struct TrainCommand {
  RuntimeFlags model;  // adapters: the one to go on with
  std::string config;  // adapter_config.json of a new one
  NewAdapterFlags lora;
  std::string data, eval_data, out, metrics, report;
  train::Options options;
  std::string schedule = "linear", loss_average = "tokens";
  bool completion_only_loss = true, assistant_only_loss = false;
  bool tensorboard = false, resume = false, overwrite = false, dry_run = false, quiet = false;
  bool without_experts = false;  // the config's experts may be missed
};

void add_train(CLI::App& app, TrainCommand& command);
int run(const TrainCommand& command);

}  // namespace peft::cli
