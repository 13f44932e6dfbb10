#include "peft/train/options.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "peft/error.h"
#include "pythonic/python_json.h"

namespace peft::train {
namespace {

constexpr std::array<std::string_view, 5> kSchedules = {"constant", "constant_with_warmup", "linear", "cosine",
                                                        "cosine_with_min_lr"};

[[noreturn]] void refuse(const char* name, const char* expected, const std::string& got) {
  at({}, name).fail(ErrorCode::USAGE, {.problem = "a value that cannot be", .expected = expected, .got = got});
}

void require_whole(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least) refuse(name, least == 0 ? "0 or more" : "1 or more", std::to_string(value));
}

void require(bool allowed, const char* name, const char* expected, double value) {
  if (!allowed || !std::isfinite(value)) refuse(name, expected, pythonic::python_float(value));
}

void check_rates(const Options& o) {
  require(o.learning_rate >= 0, "learning_rate", "0 or more", o.learning_rate);
  require(o.weight_decay >= 0, "weight_decay", "0 or more", o.weight_decay);
  require(o.adam_beta1 >= 0 && o.adam_beta1 < 1, "adam_beta1", "0 or more, below 1", o.adam_beta1);
  require(o.adam_beta2 >= 0 && o.adam_beta2 < 1, "adam_beta2", "0 or more, below 1", o.adam_beta2);
  require(o.adam_epsilon > 0, "adam_epsilon", "above 0", o.adam_epsilon);
  require(o.max_grad_norm >= 0, "max_grad_norm", "0 or more", o.max_grad_norm);
  require(o.warmup_steps >= 0, "warmup_steps", "0 or more", o.warmup_steps);
  require(o.loraplus_lr_ratio >= 0, "loraplus_lr_ratio", "0 or more", o.loraplus_lr_ratio);
  if (o.router_aux_loss_coef)
    require(*o.router_aux_loss_coef >= 0, "router_aux_loss_coef", "0 or more", *o.router_aux_loss_coef);
  const bool has_least = o.min_lr.has_value() || o.min_lr_rate.has_value();
  if (o.lr_scheduler_type != Schedule::cosine_with_min_lr && has_least) {
    refuse("min_lr", "lr_scheduler_type cosine_with_min_lr", std::string(name_of(o.lr_scheduler_type)));
  }
  if (o.lr_scheduler_type != Schedule::cosine_with_min_lr) return;
  if (o.min_lr.has_value() == o.min_lr_rate.has_value())
    refuse("min_lr", "one of min_lr and min_lr_rate", has_least ? "both" : "neither");
  if (o.min_lr) require(*o.min_lr >= 0 && *o.min_lr <= o.learning_rate, "min_lr", "0 to learning_rate", *o.min_lr);
  if (o.min_lr_rate) require(*o.min_lr_rate >= 0 && *o.min_lr_rate <= 1, "min_lr_rate", "0 to 1", *o.min_lr_rate);
}

double least_share(const Options& options) {
  if (options.min_lr_rate) return *options.min_lr_rate;
  return options.min_lr && options.learning_rate > 0 ? *options.min_lr / options.learning_rate : 0;
}

}  // namespace

std::string_view name_of(Schedule schedule) { return kSchedules[static_cast<std::size_t>(schedule)]; }

std::vector<std::string> schedule_names() { return {kSchedules.begin(), kSchedules.end()}; }

std::optional<Schedule> schedule_named(std::string_view name) {
  const auto found = std::ranges::find(kSchedules, name);
  if (found == kSchedules.end()) return std::nullopt;
  return static_cast<Schedule>(found - kSchedules.begin());
}

void check(const Options& o) {
  require_whole("per_device_train_batch_size", o.per_device_train_batch_size, 1);
  require_whole("per_device_eval_batch_size", o.per_device_eval_batch_size, 1);
  require_whole("gradient_accumulation_steps", o.gradient_accumulation_steps, 1);
  require_whole("world_size", o.world_size, 1);
  require_whole("max_steps", o.max_steps, 0);
  require_whole("stop_after_steps", o.stop_after_steps, 0);
  require_whole("max_length", o.max_length, 0);
  require_whole("logging_steps", o.logging_steps, 0);
  require_whole("save_steps", o.save_steps, 0);
  require_whole("save_total_limit", o.save_total_limit, 0);
  require_whole("eval_steps", o.eval_steps, 0);
  if (o.max_steps == 0) require(o.num_train_epochs > 0, "num_train_epochs", "above 0", o.num_train_epochs);
  if (o.packing && o.max_length < 2) refuse("packing", "a max_length of 2 or more", std::to_string(o.max_length));
  check_rates(o);
}

std::int64_t warmup_steps(const Options& options, std::int64_t total) {
  const double steps = options.warmup_steps;
  return static_cast<std::int64_t>(steps < 1 ? std::ceil(static_cast<double>(total) * steps) : steps);
}

double learning_rate(const Options& options, std::int64_t step, std::int64_t total) {
  const std::int64_t warmup = options.lr_scheduler_type == Schedule::constant ? 0 : warmup_steps(options, total);
  const double rate = options.learning_rate;
  if (step < warmup) return rate * (static_cast<double>(step) / static_cast<double>(std::max<std::int64_t>(1, warmup)));
  const double decaying = static_cast<double>(std::max<std::int64_t>(1, total - warmup));
  const double progress = static_cast<double>(step - warmup) / decaying;
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * progress));
  switch (options.lr_scheduler_type) {
    case Schedule::constant:
    case Schedule::constant_with_warmup:
      return rate;
    case Schedule::linear:
      return rate * std::max(0.0, static_cast<double>(total - step) / decaying);
    case Schedule::cosine:
      return rate * std::max(0.0, cosine);
    case Schedule::cosine_with_min_lr: {
      const double least = least_share(options);
      return rate * std::max(0.0, cosine * (1 - least) + least);
    }
  }
  return rate;
}

std::vector<std::pair<std::string, std::string>> fingerprint(const Options& o) {
  const auto number = [](double value) { return pythonic::python_float(value); };
  const auto optional = [&](const std::optional<double>& value) { return value ? number(*value) : "None"; };
  return {
      {"per_device_train_batch_size", std::to_string(o.per_device_train_batch_size)},
      {"gradient_accumulation_steps", std::to_string(o.gradient_accumulation_steps * o.world_size)},
      {"num_train_epochs", o.max_steps > 0 ? "unused" : number(o.num_train_epochs)},
      {"max_steps", std::to_string(o.max_steps)},
      {"learning_rate", number(o.learning_rate)},
      {"lr_scheduler_type", std::string(name_of(o.lr_scheduler_type))},
      {"warmup_steps", number(o.warmup_steps)},
      {"min_lr", optional(o.min_lr)},
      {"min_lr_rate", optional(o.min_lr_rate)},
      {"weight_decay", number(o.weight_decay)},
      {"adam_beta1", number(o.adam_beta1)},
      {"adam_beta2", number(o.adam_beta2)},
      {"adam_epsilon", number(o.adam_epsilon)},
      {"max_grad_norm", number(o.max_grad_norm)},
      {"loraplus_lr_ratio", number(o.loraplus_lr_ratio)},
      {"loraplus_lr_embedding", number(o.loraplus_lr_embedding)},
      {"loss_average", o.loss_average == LossAverage::tokens ? "tokens" : "micro-batch"},
      {"router_aux_loss_coef", optional(o.router_aux_loss_coef)},
      {"bf16", o.bf16 ? "true" : "false"},
      {"max_length", std::to_string(o.max_length)},
      {"packing", o.packing ? "true" : "false"},
      {"shuffle", o.shuffle ? "true" : "false"},
      {"seed", std::to_string(o.seed)},
  };
}

}  // namespace peft::train
