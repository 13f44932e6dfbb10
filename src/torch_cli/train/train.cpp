#include "torch_cli/train/train.h"

#include <ATen/ATen.h>
#include <fmt/chrono.h>
#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "base/text.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/progress.h"
#include "cli/report/report.h"
#include "cli/report/train_page.h"
#include "nn/train/checkpoint.h"
#include "peft/adapter.h"
#include "peft/error.h"
#include "peft/nn/memory.h"
#include "peft/nn/process_group.h"
#include "peft/nn/trainer.h"
#include "safetensors/writing/staging_folder.h"
#include "torch_cli/running_model.h"
#include "torch_cli/train/train_plan.h"
#include "torch_cli/train/train_report.h"
#include "train/tensorboard.h"

namespace peft::torch_cli {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Whether a folder has what another run wrote, or anything else.
void require_free_output(const cli::TrainCommand& command) {
  if (command.out.empty()) return;
  std::vector<std::string> inputs = {resolve_path(command.model.base)};
  for (const std::string& adapter : command.model.adapters) inputs.push_back(resolve_path(adapter));
  safetensors::require_no_alias(safetensors::output_path(command.out), inputs);
  const fs::file_status status = fs::symlink_status(command.out);
  if (fs::exists(status) && !fs::is_directory(fs::status(command.out)))
    throw Error(ErrorCode::IO_KIND, {.file = command.out, .problem = "a file, where a folder is to be written"});
  if (command.resume || command.overwrite || !fs::exists(status) || safetensors::is_empty_folder(command.out)) return;
  at(command.out)
      .fail(ErrorCode::OUT_EXISTS, {.problem = "the output exists",
                                    .hint = "--resume goes on with its newest checkpoint; --overwrite starts anew"});
}

void require_free_metrics(const cli::TrainCommand& command) {
  if (command.metrics.empty() || command.resume || command.overwrite || !safetensors::is_present(command.metrics))
    return;
  at(command.metrics)
      .fail(ErrorCode::OUT_EXISTS, {.problem = "the output exists", .hint = "another --metrics file, or --overwrite"});
}

// What an earlier run wrote; other files of the folder stay.
void remove_old_run(const std::string& out) {
  for (const auto& [step, folder] : nn::checkpoints_in(out)) {
    fs::remove(fs::path(folder) / "trainer_state.json");
    safetensors::remove_tree(folder);
  }
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) fs::remove(fs::path(out) / name);
}

std::unique_ptr<nn::PeftModel> adapter_on(const std::shared_ptr<nn::CausalLM>& base, const cli::TrainCommand& command,
                                          const TrainPlan& plan) {
  nn::AdapterModelOptions options;
  options.is_trainable = true;
  options.seed = command.options.seed;
  options.changed_base = changed_base(command.model);
  if (!command.model.adapters.empty())
    return nn::PeftModel::from_pretrained(base, resolve_path(command.model.adapters.front()), options);
  return nn::get_peft_model(base, plan.config, options);
}

// One line that is drawn anew at each step, on a terminal; elsewhere a line for each logged step.
class Progress {
 public:
  explicit Progress(bool quiet) : terminal_(!quiet && cli::is_smart_terminal(STDERR_FILENO)), quiet_(quiet) {}
  ~Progress() { erase(); }
  Progress(const Progress&) = delete;

  void step(std::int64_t step, std::int64_t total, const nn::StepResult& result) {
    if (first_ == 0) first_ = step;
    tokens_ += result.tokens;
    const double seconds = seconds_since(start_);
    const auto done = static_cast<double>(step - first_ + 1);
    const double left = seconds / done * static_cast<double>(total - step);
    line_ = fmt::format("step {}/{}  loss {:.4f}", step, total, result.loss);
    tail_ = fmt::format("{:.0f} tokens/s  {} left", static_cast<double>(tokens_) / seconds, cli::human_seconds(left));
    if (terminal_) draw(line_ + "  " + tail_);
  }
  void log(const train::Metrics& metrics) {
    if (quiet_) return;
    const std::string text =
        fmt::format("{}  lr {:.3g}  grad norm {:.3g}  {}", line_, metrics.learning_rate, metrics.grad_norm, tail_);
    terminal_ ? draw(text) : cli::write_err(text + "\n");
  }
  void evaluation(const train::Evaluation& result) {
    if (quiet_) return;
    erase();
    cli::write_err(fmt::format("step {}  eval loss {:.4f}  accuracy {:.4f}\n", result.step, result.loss,
                               result.mean_token_accuracy));
  }

 private:
  void draw(const std::string& text) {
    drawn_ = true;
    cli::write_err("\r" + text + "\x1b[K");
  }
  void erase() {
    if (drawn_) cli::write_err("\r\x1b[K");
    drawn_ = false;
  }
  const bool terminal_, quiet_;
  bool drawn_ = false;
  const Clock::time_point start_ = Clock::now();
  std::int64_t first_ = 0, tokens_ = 0;
  std::string line_, tail_;
};

// With the names of transformers' TensorBoard callback.
std::vector<std::pair<std::string, double>> scalars_of(const train::Metrics& m) {
  std::vector<std::pair<std::string, double>> scalars = {{"train/loss", m.loss},
                                                         {"train/grad_norm", m.grad_norm},
                                                         {"train/learning_rate", m.learning_rate},
                                                         {"train/epoch", m.epoch},
                                                         {"train/num_tokens", static_cast<double>(m.num_tokens)},
                                                         {"train/mean_token_accuracy", m.mean_token_accuracy},
                                                         {"train/entropy", m.entropy}};
  if (m.aux_loss) scalars.emplace_back("train/aux_loss", *m.aux_loss);
  return scalars;
}

// What a run leaves for its report.
struct Outcome {
  nn::TrainEnd end = nn::TrainEnd::finished;
  std::int64_t steps = 0;
  std::optional<double> eval_loss;
  std::string checkpoint;
  double last_loss = 0, seconds = 0;
  std::vector<train::Metrics> metrics;  // of this process
  std::vector<train::Evaluation> evaluations;
};

using Group = std::shared_ptr<nn::ProcessGroup>;

bool is_first(const Group& group) { return !group || group->rank() == 0; }

class Run {
 public:
  Run(const cli::TrainCommand& command, const TrainPlan& plan, const Group& group)
      : command_(command),
        plan_(plan),
        group_(group),
        base_(load_base(command.model)),
        lora_(adapter_on(base_, command, plan)),
        trainer_(*lora_, command.options, group) {
    warnings = base_->warnings();
    warnings.insert(warnings.end(), lora_->warnings().begin(), lora_->warnings().end());
  }

  // Goes on with the newest checkpoint. Nothing is written before this has succeeded.
  void resume() {
    const std::string newest = newest_checkpoint();
    if (newest.empty()) {
      warnings.push_back(command_.out + " has no complete checkpoint: the run starts from its beginning");
      return;
    }
    trainer_.load_checkpoint(newest, plan_.data);
    first_step_ = trainer_.state().step;
  }

  Outcome train() {
    if (is_first(group_)) {
      if (command_.overwrite && !command_.resume) remove_old_run(command_.out);
      fs::create_directories(command_.out);
      for (const TokenCache& cache : plan_.caches) cache.save();
    }
    std::optional<train::MetricsFile> metrics;
    if (!command_.metrics.empty()) {
      metrics.emplace(command_.metrics, command_.resume ? std::optional(trainer_.state().step) : std::nullopt);
    }
    const auto write = [&](const std::string& line) {
      if (metrics) metrics->append(line);
    };
    std::optional<train::EventFile> events;
    if (command_.tensorboard) events.emplace((fs::path(command_.out) / "runs").string());
    Progress progress(command_.quiet || command_.model.json);
    const cli::InterruptGuard interrupt;
    Outcome outcome;
    nn::TrainRun run{.out = command_.out, .eval = plan_.eval.rows.empty() ? nullptr : &plan_.eval};
    run.callbacks.on_step = [&](std::int64_t step, std::int64_t total, const nn::StepResult& result) {
      outcome.last_loss = result.loss;
      progress.step(step, total, result);
    };
    run.callbacks.on_log = [&](const train::Metrics& m) {
      write(json_of(m));
      outcome.metrics.push_back(m);
      if (events) events->add(m.step, scalars_of(m));
      progress.log(m);
    };
    run.callbacks.on_evaluate = [&](const train::Evaluation& e) {
      outcome.eval_loss = e.loss;
      outcome.evaluations.push_back(e);
      write(json_of(e));
      if (events) events->add(e.step, {{"eval/loss", e.loss}, {"eval/mean_token_accuracy", e.mean_token_accuracy}});
      progress.evaluation(e);
    };
    run.callbacks.on_save = [&](const std::string& folder) { outcome.checkpoint = folder; };
    run.callbacks.should_stop = [&] { return interrupt.flag()->load(); };
    const auto start = Clock::now();
    outcome.end = trainer_.run(plan_.data, run);
    outcome.steps = trainer_.state().step, outcome.seconds = seconds_since(start);
    return outcome;
  }

  void write_report(const Outcome& outcome) {
    if (command_.report.empty() || !is_first(group_) || outcome.end != nn::TrainEnd::finished) return;
    const std::string base = resolve_path(command_.model.base);
    const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
    cli::TrainReport page{.base = base, .data = command_.data, .out = command_.out};
    page.finished = fmt::format("{:%Y-%m-%d %H:%M:%S} UTC", fmt::gmtime(now));
    page.metrics = outcome.metrics, page.evaluations = outcome.evaluations;
    page.expert_tokens = trainer_.state().expert_tokens, page.norms = learnt_norms(command_.out, base);
    page.samples = train_samples(*lora_, base, plan_.eval.rows.empty() ? plan_.data : plan_.eval);
    page.steps = outcome.steps, page.trainable = plan_.trainable, page.seconds = outcome.seconds;
    page.warnings = plan_.warnings;
    page.warnings.insert(page.warnings.end(), warnings.begin(), warnings.end());
    if (first_step_ > 0)
      page.warnings.push_back(fmt::format("the run went on after step {}: the charts begin there", first_step_));
    cli::write_train_page(command_.report, page);
  }

  std::vector<std::string> warnings;

 private:
  // That which rank 0 sees.
  std::string newest_checkpoint() const {
    std::string newest = is_first(group_) ? nn::newest_checkpoint(command_.out) : std::string();
    if (!group_) return newest;
    const nn::ProcessGroup::Bytes bytes = group_->broadcast({newest.begin(), newest.end()});
    return {bytes.begin(), bytes.end()};
  }

  const cli::TrainCommand& command_;
  const TrainPlan& plan_;
  Group group_;
  std::shared_ptr<nn::CausalLM> base_;
  std::unique_ptr<nn::PeftModel> lora_;
  nn::Trainer trainer_;
  std::int64_t first_step_ = 0;
};

const char* name_of(nn::TrainEnd end) { return end == nn::TrainEnd::finished ? "finished" : "stopped_after_steps"; }

void report(const cli::TrainCommand& command, const TrainPlan& plan, const Outcome& outcome,
            const std::vector<std::string>& warnings) {
  if (command.model.json) {
    cli::Json json = to_json(plan);
    json["end"] = name_of(outcome.end), json["steps"] = outcome.steps, json["loss"] = cli::number(outcome.last_loss);
    json["eval_loss"] = outcome.eval_loss ? cli::number(*outcome.eval_loss) : cli::Json(nullptr);
    json["checkpoint"] = outcome.checkpoint.empty() ? cli::Json(nullptr) : cli::Json(outcome.checkpoint);
    json["out"] = command.out, json["seconds"] = cli::number(outcome.seconds), json["warnings"] = warnings;
    return cli::print_json(json);
  }
  const std::string where = outcome.end == nn::TrainEnd::finished
                                ? "adapter in " + printable(command.out)
                                : printable(outcome.checkpoint) + ", --resume goes on";
  cli::write_out(
      fmt::format("{} of {} steps, {}: {}\n", outcome.steps, plan.steps, cli::human_seconds(outcome.seconds), where));
}

// What this process of several does. Rank 0 alone writes and tells.
cli::TrainCommand share_of(cli::TrainCommand command, const Group& group) {
  if (!group) return command;
  command.options.world_size = group->size();
  const char* local_rank = std::getenv("LOCAL_RANK");
  if (command.model.device == "cuda" && local_rank != nullptr) command.model.device += fmt::format(":{}", local_rank);
  if (is_first(group)) return command;
  command.quiet = true, command.tensorboard = false;
  command.metrics.clear();
  return command;
}

int train(const cli::TrainCommand& command, const Group& group) {
  const bool first = is_first(group);
  if (first) {
    require_free_output(command);
    require_free_metrics(command);
    if (!command.report.empty()) cli::check_report(command.report);
  }
  const TrainPlan plan = plan_training(command);
  if (first && !command.model.json && (command.dry_run || !command.quiet)) cli::write_out(text_of(plan));
  if (first) cli::write_warnings(plan.warnings);
  if (command.dry_run) {
    if (!first || !command.model.json) return 0;
    cli::Json json = to_json(plan);
    json["warnings"] = plan.warnings;
    cli::print_json(json);
    return 0;
  }
  Run run(command, plan, group);
  if (command.resume) run.resume();
  if (first) cli::write_warnings(run.warnings);
  const Outcome outcome = run.train();
  if (outcome.end == nn::TrainEnd::stopped) {
    throw Error(ErrorCode::INTERRUPTED,
                {.file = outcome.checkpoint,
                 .problem = fmt::format("stopped by a signal after step {}, which is saved", outcome.steps),
                 .hint = "--resume goes on"});
  }
  run.write_report(outcome);
  if (!first) return 0;
  std::vector<std::string> warnings = plan.warnings;
  warnings.insert(warnings.end(), run.warnings.begin(), run.warnings.end());
  report(command, plan, outcome, warnings);
  return 0;
}

}  // namespace

int run_train(const cli::TrainCommand& command) {
  nn::reuse_memory_blocks();
  const Group group = nn::ProcessGroup::from_environment();
  try {
    return train(share_of(command, group), group);
  } catch (const std::exception& error) {
    if (group) group->fail(error.what());
    throw;
  }
}

}  // namespace peft::torch_cli

namespace peft::cli {

int run(const TrainCommand& command) { return torch_cli::run_guarded<TrainCommand, torch_cli::run_train>(command); }

}  // namespace peft::cli
