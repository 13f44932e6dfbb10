// What a run will train and on what, found out and checked before any weight is loaded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/output/json.h"
#include "cli/runtime/train.h"
#include "peft/config.h"
#include "peft/train/data.h"
#include "torch_cli/train/token_cache.h"
#include "train/coverage.h"

namespace peft::torch_cli {

struct TrainPlan {
  AdapterConfig config;  // of a new adapter
  train::Coverage coverage;
  std::int64_t trainable = 0, all = 0;  // parameters
  train::Dataset data, eval;            // eval: no rows where --eval-data is not given
  std::int64_t steps = 0, steps_per_epoch = 0;
  std::vector<TokenCache> caches;  // of data and eval, to be saved in OUT
  std::vector<std::string> warnings;
};

// Throws what is wrong with the config, the data or what they have in common.
TrainPlan plan_training(const cli::TrainCommand& command);

cli::Json to_json(const TrainPlan& plan);
// The table of what is trained, and what it costs.
std::string text_of(const TrainPlan& plan);

}  // namespace peft::torch_cli
