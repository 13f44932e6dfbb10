#include "cli/runtime/train.h"

#include <CLI/CLI.hpp>

#include "cli/flags.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

constexpr const char* kTrainExamples = R"(Examples:
  peft train --base Qwen3-30B-A3B --r 16 --lora-alpha 32 --target-modules q_proj,v_proj \
      --target-parameters mlp.experts.gate_up_proj,mlp.experts.down_proj --data train.jsonl --out my-lora
  peft train --base M --adapter my-lora --data more.jsonl --out my-lora-2 --max-steps 500 --learning-rate 1e-4
  peft train --base M --config adapter_config.json --data ids.jsonl --out my-lora --metrics log.jsonl --dry-run
  peft train ... --out my-lora --resume                       goes on with the newest checkpoint in my-lora

Names and defaults are those of transformers' TrainingArguments and TRL's SFTConfig (docs/train.md).)";

struct WholeFlag {
  const char* name;
  std::int64_t train::Options::*value;
  const char* help;
};
constexpr WholeFlag kWhole[] = {
    {"--per-device-train-batch-size", &train::Options::per_device_train_batch_size, "Rows of a micro batch"},
    {"--per-device-eval-batch-size", &train::Options::per_device_eval_batch_size, "The same, when evaluating"},
    {"--gradient-accumulation-steps", &train::Options::gradient_accumulation_steps, "Micro batches of a step"},
    {"--max-steps", &train::Options::max_steps, "What the schedule counts to; 0: from --num-train-epochs"},
    {"--stop-after-steps", &train::Options::stop_after_steps, "Save OUT/checkpoint-N after N steps and end; 0: never"},
    {"--max-length", &train::Options::max_length, "Cut longer rows; 0: never"},
    {"--logging-steps", &train::Options::logging_steps, "Log every N steps; 0: never"},
    {"--save-steps", &train::Options::save_steps, "Write OUT/checkpoint-N every N steps; 0: never"},
    {"--save-total-limit", &train::Options::save_total_limit, "Keep the newest N checkpoints; 0: all"},
    {"--eval-steps", &train::Options::eval_steps, "Evaluate every N steps; 0: at the end only"},
};

struct RealFlag {
  const char* name;
  double train::Options::*value;
  const char* help;
};
constexpr RealFlag kReal[] = {
    {"--num-train-epochs", &train::Options::num_train_epochs, "How often the data is gone through"},
    {"--learning-rate", &train::Options::learning_rate, "The highest learning rate"},
    {"--warmup-steps,--warmup-ratio", &train::Options::warmup_steps, "Steps of warming up; below 1: a share of all"},
    {"--weight-decay", &train::Options::weight_decay, "AdamW's decay, of every trained tensor"},
    {"--adam-beta1", &train::Options::adam_beta1, "AdamW"},
    {"--adam-beta2", &train::Options::adam_beta2, "AdamW"},
    {"--adam-epsilon", &train::Options::adam_epsilon, "AdamW"},
    {"--max-grad-norm", &train::Options::max_grad_norm, "Clip gradients to this norm; 0: never"},
    {"--loraplus-lr-ratio", &train::Options::loraplus_lr_ratio, "LoRA+: learning rate of lora_B over that of lora_A"},
    {"--loraplus-lr-embedding", &train::Options::loraplus_lr_embedding, "LoRA+: learning rate of embeddings"},
};

void add_model(CLI::App& verb, TrainCommand& command) {
  verb.add_option("--base", command.model.base, "The base model's folder, as transformers 4 or 5 writes it")
      ->required()
      ->type_name("DIR");
  auto* adapter = verb.add_option("--adapter", command.model.adapters, "The adapter to go on with, in any layout");
  adapter->expected(1)->type_name("DIR");
  auto* config = verb.add_option("--config", command.config, "adapter_config.json of a new adapter");
  config->excludes(adapter)->type_name("FILE");
  NewAdapterFlags& lora = command.lora;
  auto* r =
      verb.add_option("--r", lora.r, "Rank of a new adapter")->excludes(adapter)->excludes(config)->type_name("N");
  const auto names = [&](const char* flag, std::vector<std::string>& list, const char* help) {
    verb.add_option(flag, list, help)->delimiter(',')->needs(r)->type_name("NAME,...");
  };
  verb.add_option("--lora-alpha", lora.lora_alpha, "Its alpha: the scale is alpha / r")->needs(r)->type_name("X");
  verb.add_option("--lora-dropout", lora.lora_dropout, "Dropout of its inputs, on Linear layers")
      ->needs(r)
      ->type_name("P");
  names("--target-modules", lora.target_modules, "Modules it sits on; all-linear: all Linear layers");
  names("--target-parameters", lora.target_parameters, "Parameters it sits on: those of experts");
  names("--modules-to-save", lora.modules_to_save, "Modules that are trained as a whole");
  verb.add_option("--init-lora-weights", lora.init_lora_weights, "How it starts")->needs(r)->type_name("NAME");
  verb.add_flag("--use-rslora", lora.use_rslora, "The scale is alpha / sqrt(r)")->needs(r);
  verb.add_flag("--use-dora", lora.use_dora, "DoRA: trains magnitudes too")->needs(r);
  verb.add_option("--device", command.model.device, "Where to run: cpu, cuda, cuda:1")->type_name("D");
  verb.add_option("--dtype", command.model.dtype, "The base's dtype: F32, BF16, F16; its own when not given")
      ->type_name("T");
  auto* residual = verb.add_flag("--base-is-residual", command.model.base_is_residual,
                                 "The base is what PiSSA, OLoRA, CorDA or LoftQ left of the original");
  verb.add_flag("--change-base", command.model.change_base, "Take the start of PiSSA or OLoRA out of the base")
      ->excludes(residual);
  verb.add_option("--threads", command.model.threads, "Threads; as many as libtorch takes when not given")
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1024)));
}

void add_numbers(CLI::App& verb, TrainCommand& command) {
  train::Options& o = command.options;
  for (const WholeFlag& flag : kWhole)
    verb.add_option(flag.name, o.*flag.value, flag.help)->capture_default_str()->type_name("N");
  for (const RealFlag& flag : kReal)
    verb.add_option(flag.name, o.*flag.value, flag.help)->capture_default_str()->type_name("X");
  verb.add_option("--lr-scheduler-type", command.schedule,
                  "How the learning rate goes on: " + CLI::detail::join(train::schedule_names(), ", "))
      ->capture_default_str()
      ->type_name("NAME");
  verb.add_option("--min-lr", o.min_lr, "The lowest learning rate of cosine_with_min_lr")->type_name("X");
  verb.add_option("--min-lr-rate", o.min_lr_rate, "The same, as a share of --learning-rate")->type_name("X");
  verb.add_option("--router-aux-loss-coef", o.router_aux_loss_coef,
                  "Weight of the routers' load balancing loss; 0: off; not given: as config.json says")
      ->type_name("X");
  verb.add_option("--loss-average", command.loss_average,
                  "Over all tokens of an accumulated batch, or over each micro batch: tokens, micro-batch")
      ->capture_default_str()
      ->type_name("NAME");
  verb.add_option("--seed", o.seed, "Of the order of rows, of dropout, and of a new adapter")
      ->capture_default_str()
      ->type_name("S");
}

void add_switches(CLI::App& verb, TrainCommand& command) {
  train::Options& o = command.options;
  verb.add_flag("--gradient-checkpointing,!--no-gradient-checkpointing", o.gradient_checkpointing,
                "Compute layers again in the backward pass (the default), or keep what they need");
  verb.add_flag("--packing", o.packing, "Several rows in one of --max-length; they do not see each other");
  verb.add_flag("!--no-shuffle", o.shuffle, "Take rows in the file's order");
  verb.add_flag("--load-best-model-at-end", o.load_best_model_at_end, "Save the adapter with the lowest eval_loss");
  verb.add_flag("--completion-only-loss,!--no-completion-only-loss", command.completion_only_loss,
                "Learn the completion of prompt and completion alone (the default), or both");
  verb.add_flag("--assistant-only-loss", command.assistant_only_loss,
                "Learn the assistant's turns alone, where the chat template marks them");
  verb.add_flag("--tensorboard", command.tensorboard, "TensorBoard event files in OUT/runs");
  verb.add_flag("--bf16", o.bf16,
                "Autocast: matrix products of an F32 base in bfloat16; --dtype alone sets the base's dtype");
  verb.add_flag("--without-experts", command.without_experts,
                "Go on although the experts that the config seems to mean are not trained");
  verb.add_flag("--resume", command.resume, "Go on with the newest checkpoint of OUT");
  verb.add_flag("--overwrite", command.overwrite, "Remove the checkpoints and the adapter of an earlier run in OUT");
  verb.add_flag("--dry-run", command.dry_run, "Check everything and show what would be trained");
  verb.add_flag("--quiet", command.quiet, "No progress");
  add_json(verb, command.model.json);
}

}  // namespace

void add_train(CLI::App& app, TrainCommand& command) {
  auto& verb = *app.add_subcommand("train", "Fine-tune an adapter, its experts too");
  add_model(verb, command);
  verb.add_option("--data", command.data, "JSON lines: token ids, or text")->required()->type_name("FILE");
  verb.add_option("--eval-data", command.eval_data, "JSON lines to evaluate on")->type_name("FILE");
  verb.add_option("--out", command.out, "The folder of the adapter and its checkpoints")->type_name("DIR");
  verb.add_option("--metrics", command.metrics, "JSON lines: loss, learning rate, ... of each logged step")
      ->type_name("FILE");
  verb.add_option("--report", command.report,
                  "An HTML page of the run: losses, experts reached, answers before and after")
      ->type_name("FILE");
  add_numbers(verb, command);
  add_switches(verb, command);
  verb.callback([&command] {
    if (command.model.adapters.empty() && command.config.empty() && command.lora.r == 0)
      throw CLI::RequiredError("--adapter, --config or --r");
    require_out(command.out, command.dry_run);
    const auto schedule = train::schedule_named(command.schedule);
    if (!schedule) {
      at({}, "--lr-scheduler-type")
          .fail(ErrorCode::USAGE, {.problem = "not a schedule",
                                   .expected = CLI::detail::join(train::schedule_names(), ", "),
                                   .got = command.schedule});
    }
    command.options.lr_scheduler_type = *schedule;
    if (command.loss_average != "tokens" && command.loss_average != "micro-batch") {
      at({}, "--loss-average")
          .fail(ErrorCode::USAGE,
                {.problem = "not a way to average", .expected = "tokens, micro-batch", .got = command.loss_average});
    }
    using train::LossAverage;
    command.options.loss_average = command.loss_average == "tokens" ? LossAverage::tokens : LossAverage::micro_batch;
    train::check(command.options);
  });
  verb.footer(kTrainExamples);
}

}  // namespace peft::cli
