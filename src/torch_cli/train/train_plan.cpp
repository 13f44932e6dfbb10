#include "torch_cli/train/train_plan.h"

#include <fmt/core.h>

#include <cmath>

#include "cli/output/output.h"
#include "cli/output/table.h"
#include "model/config_json/config_section.h"
#include "peft/adapter.h"
#include "peft/error.h"
#include "peft/model.h"
#include "peft/nn/model.h"
#include "peft/nn/peft_model.h"
#include "peft/train/batches.h"
#include "tokenizer/text_rows.h"

namespace peft::torch_cli {
namespace {

AdapterConfig config_of(const cli::TrainCommand& command) {
  AdapterConfig config;
  if (!command.config.empty()) {
    config = AdapterConfig::read(resolve_path(command.config));
  } else {
    const cli::NewAdapterFlags& flags = command.lora;
    config.r = flags.r;
    config.lora_alpha = {flags.lora_alpha, flags.lora_alpha == std::floor(flags.lora_alpha)};
    config.lora_dropout = flags.lora_dropout;
    config.init_lora_weights = flags.init_lora_weights;
    config.use_rslora = flags.use_rslora, config.use_dora = flags.use_dora;
    if (flags.target_modules == std::vector<std::string>{nn::all_linear})
      config.target_modules = nn::all_linear;
    else if (!flags.target_modules.empty())
      config.target_modules = flags.target_modules;
    if (!flags.target_parameters.empty()) config.target_parameters = flags.target_parameters;
    if (!flags.modules_to_save.empty()) config.modules_to_save = flags.modules_to_save;
    config.task_type = "CAUSAL_LM";
  }
  config.set("inference_mode", "false");
  return config;
}

// The model's shapes with the adapter on them, without any weight.
std::unique_ptr<nn::PeftModel> shapes_of(const cli::TrainCommand& command, const std::shared_ptr<nn::CausalLM>& base,
                                         const AdapterConfig& config) {
  nn::AdapterModelOptions options;
  options.is_trainable = true;
  options.changed_base = nn::ChangedBase::is_residual;  // shapes are the same
  if (!command.model.adapters.empty())
    return nn::PeftModel::from_pretrained(base, resolve_path(command.model.adapters.front()), options);
  AdapterConfig shapes = config;
  shapes.init_lora_weights = "true";
  return nn::get_peft_model(base, shapes, options);
}

// The number of positions that config.json names; 0: it names none.
std::int64_t positions_of(const std::string& base) {
  model::ConfigSection config(model::read_config_facts(base));
  if (config.has("text_config")) config = config.section("text_config");
  return config.whole("max_position_embeddings", 0);
}

TextRows::Options text_options(const cli::TrainCommand& command) {
  return {.completion_only_loss = command.completion_only_loss, .assistant_only_loss = command.assistant_only_loss};
}

train::Dataset read_data(const cli::TrainCommand& command, const std::string& file, const nn::CausalLM& base,
                         TextRows& text, std::vector<TokenCache>& caches) {
  TokenCache& cache =
      caches.emplace_back(command.out, resolve_path(file), resolve_path(command.model.base), text_options(command));
  train::DataOptions options;
  options.vocabulary = base.vocab_size();
  options.max_length = command.options.max_length;
  options.model_length = positions_of(resolve_path(command.model.base));
  options.encode = [&](std::string_view line) { return cache.row(line, text); };
  train::Dataset data = train::read_dataset(resolve_path(file), options);
  return command.options.packing ? train::packed(data, command.options.max_length) : data;
}

void warn_of(const train::Dataset& data, std::vector<std::string>& warnings) {
  const auto say = [&](std::int64_t rows, const char* what) {
    if (rows > 0) warnings.push_back(fmt::format("{}: {} {} {}", data.file, rows, rows == 1 ? "row" : "rows", what));
  };
  say(data.cut, "longer than --max-length, cut at its end");
  say(data.without, "left out, because nothing in it is learnt");
}

std::int64_t tokens_of(const train::Dataset& data) {
  std::int64_t tokens = 0;
  for (const train::Row& row : data.rows) tokens += row.tokens();
  return tokens;
}

std::int64_t learnt_of(const train::Dataset& data) {
  std::int64_t tokens = 0;
  for (const train::Row& row : data.rows) tokens += row.predicted();
  return tokens;
}

cli::Json to_json(const train::Dataset& data) {
  if (data.rows.empty()) return nullptr;
  cli::Json json = {{"file", data.file},         {"rows", data.rows.size()}, {"tokens", tokens_of(data)},
                    {"learnt", learnt_of(data)}, {"cut", data.cut},          {"left_out", data.without}};
  if (data.bins > 0) json["rows_before_packing"] = data.bins;
  return json;
}

}  // namespace

TrainPlan plan_training(const cli::TrainCommand& command) {
  TrainPlan plan;
  nn::InitOptions shapes_only;
  shapes_only.device = "meta";
  const auto base = nn::init_model(resolve_path(command.model.base), shapes_only);
  if (command.model.adapters.empty()) plan.config = config_of(command);
  const auto lora = shapes_of(command, base, plan.config);
  std::tie(plan.trainable, plan.all) = lora->get_nb_trainable_parameters();
  const ModuleTree tree = base->tree();
  // The config as it was given names what its writer meant; the model's own says what is there.
  const AdapterConfig& there = lora->peft_config();
  const AdapterConfig& meant = command.model.adapters.empty() ? plan.config : there;
  const ResolvedTargets resolved = resolve_targets(there, tree, base->facts(), Generation::v5);
  plan.coverage = train::coverage_of(meant, resolved, tree, base->facts());
  if (command.model.adapters.empty()) train::require_matches(plan.coverage);
  if (!command.without_experts) train::require_experts(plan.coverage, base->facts(), "--without-experts");
  TextRows text(resolve_path(command.model.base), text_options(command));
  plan.data = read_data(command, command.data, *base, text, plan.caches);
  warn_of(plan.data, plan.warnings);
  if (!command.eval_data.empty()) {
    plan.eval = read_data(command, command.eval_data, *base, text, plan.caches);
    warn_of(plan.eval, plan.warnings);
  }
  std::int64_t guessed = 0;
  for (const TokenCache& cache : plan.caches) guessed += cache.guessed();
  if (guessed > 0) {
    plan.warnings.push_back(fmt::format(
        "{} rows: the prompt alone has other token ids than at the beginning of the row; the completion begins where "
        "they part, as TRL has it, and the end of the prompt is learnt with it",
        guessed));
  }
  const train::Batches batches(plan.data, command.options);
  plan.steps = batches.total_steps(), plan.steps_per_epoch = batches.steps_per_epoch();
  return plan;
}

cli::Json to_json(const TrainPlan& plan) {
  cli::Json rows = cli::Json::array();
  for (const train::CoverageRow& row : plan.coverage.rows) {
    rows.push_back({{"name", row.name},
                    {"layers", row.layers},
                    {"experts", row.experts},
                    {"r", row.rank},
                    {"scaling", cli::number(row.scale)},
                    {"uneven", row.uneven},
                    {"parameters", row.parameters}});
  }
  const train::TrainingBytes bytes = train::bytes_for(plan.trainable);
  return {{"trainable_params", plan.trainable},
          {"all_params", plan.all},
          {"targets", rows},
          {"layers_with_experts", plan.coverage.layers_with_experts},
          {"layers_with_trained_experts", plan.coverage.layers_with_trained_experts},
          {"bytes", {{"weights", bytes.weights}, {"gradients", bytes.gradients}, {"optimizer", bytes.optimizer}}},
          {"data", to_json(plan.data)},
          {"eval_data", to_json(plan.eval)},
          {"max_steps", plan.steps},
          {"steps_per_epoch", plan.steps_per_epoch}};
}

std::string text_of(const TrainPlan& plan) {
  using cli::Align;
  cli::Table table({{"trained"},
                    {"layers", Align::right},
                    {"experts", Align::right},
                    {"rank", Align::right},
                    {"scale", Align::right},
                    {"parameters", Align::right}});
  for (const train::CoverageRow& row : plan.coverage.rows) {
    const std::string more = row.uneven ? " ..." : "";
    table.add({row.name, cli::grouped(static_cast<std::uint64_t>(row.layers)),
               row.experts == 0 ? "" : cli::grouped(static_cast<std::uint64_t>(row.experts)),
               row.rank == 0 ? "whole" : std::to_string(row.rank) + more,
               row.rank == 0 ? "" : cli::short_number(row.scale) + more,
               cli::grouped(static_cast<std::uint64_t>(row.parameters))});
  }
  std::string text = table.render();
  text += trainable_line(plan.trainable, plan.all) + "\n";
  if (plan.coverage.layers_with_experts > 0) {
    text += fmt::format("experts: trained in {} of {} layers that have some\n",
                        plan.coverage.layers_with_trained_experts, plan.coverage.layers_with_experts);
  }
  const train::TrainingBytes bytes = train::bytes_for(plan.trainable);
  text +=
      fmt::format("memory beside the base: weights {}, gradients {}, optimiser {}\n", cli::human_bytes(bytes.weights),
                  cli::human_bytes(bytes.gradients), cli::human_bytes(bytes.optimizer));
  text += fmt::format("data: {} rows, {} tokens, {} learnt; {} steps, {} an epoch\n", plan.data.rows.size(),
                      cli::grouped(static_cast<std::uint64_t>(tokens_of(plan.data))),
                      cli::grouped(static_cast<std::uint64_t>(learnt_of(plan.data))), plan.steps, plan.steps_per_epoch);
  return text;
}

}  // namespace peft::torch_cli
