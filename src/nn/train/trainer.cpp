#include "peft/nn/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "model/config_json/config_section.h"
#include "nn/kernels/autocast.h"
#include "nn/train/checkpoint.h"
#include "nn/train/step_message.h"
#include "peft/error.h"
#include "peft/nn/optimizer.h"

namespace peft::nn {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

at::Tensor matrix(const std::vector<std::int64_t>& values, const train::MicroBatch& batch, const at::Device& device) {
  if (values.empty()) return {};
  return at::tensor(values, at::kLong).view({batch.sequences, batch.tokens}).to(device);
}

ForwardInput input_of(const train::MicroBatch& batch, const at::Device& device) {
  ForwardInput input;
  input.ids = matrix(batch.ids, batch, device), input.mask = matrix(batch.mask, batch, device);
  input.labels = matrix(batch.labels, batch, at::kCPU);
  input.documents = batch.documents;
  return input;
}

// The one that is trained: PeftModel allows several at once, but a run's tensors are told apart by their names on disk.
std::string only_adapter(const PeftModel& model) {
  const auto active = model.active_adapters();
  if (active.size() == 1) return active.front();
  throw Error(ErrorCode::USAGE, {.problem = "a trainer trains one adapter",
                                 .expected = "one active adapter",
                                 .got = std::to_string(active.size()),
                                 .hint = "set_adapter() with one name"});
}

std::vector<AdapterTensor> trainable_tensors(const PeftModel& model) {
  std::vector<AdapterTensor> tensors = model.adapter_tensors(only_adapter(model));
  std::erase_if(tensors, [](const AdapterTensor& t) { return !t.tensor.requires_grad(); });
  if (!tensors.empty()) return tensors;
  throw Error(ErrorCode::USAGE, {.problem = "the adapter has nothing to train: no tensor requires a gradient",
                                 .hint = "is_trainable, or set_adapter()"});
}

// transformers adds the loss where config.json has output_router_logits.
double loss_coefficient(const CausalLM& base, const train::Options& options) {
  if (options.router_aux_loss_coef) return *options.router_aux_loss_coef;
  const fs::path folder(base.folder());
  const std::string file = (fs::is_directory(folder) ? folder / "config.json" : folder).string();
  model::ConfigSection config = model::ConfigSection::read(file);
  if (config.has("text_config")) config = config.section("text_config");
  return config.flag("output_router_logits", false) ? base.router_aux_loss_coef() : 0;
}

AdamW make_optimizer(const std::vector<AdapterTensor>& tensors, const train::Options& o) {
  std::vector<double> factors;
  if (o.loraplus_lr_ratio > 0)
    factors = loraplus_factors(tensors, o.loraplus_lr_ratio, o.loraplus_lr_embedding, o.learning_rate);
  return AdamW(tensors, {o.adam_beta1, o.adam_beta2, o.adam_epsilon, o.weight_decay}, factors);
}

// Counts the experts that the tokens of a forward pass choose; nothing leaves the device before counts().
class ExpertCounter {
 public:
  ExpertCounter(std::int64_t experts, const at::Tensor& mask) : experts_(experts), mask_(mask) {}

  void see(std::int64_t layer, const at::Tensor& chosen) {
    at::Tensor real = at::ones({chosen.size(0)}, chosen.options());
    if (mask_.defined()) real = mask_.reshape({-1}).to(chosen.options());
    const at::Tensor weights = real.unsqueeze(1).expand_as(chosen).reshape({-1});
    at::Tensor counts = at::zeros({experts_}, chosen.options());
    counts_.push_back(counts.scatter_add_(0, chosen.reshape({-1}), weights));
    layers_.push_back(layer);
  }
  train::ExpertTokens counts() const {
    train::ExpertTokens result;
    if (counts_.empty()) return result;
    const at::Tensor all = at::stack(counts_).to(at::kCPU).contiguous();
    const std::int64_t* values = all.const_data_ptr<std::int64_t>();
    for (const std::int64_t layer : layers_) {
      result[layer].assign(values, values + experts_);
      values += experts_;
    }
    return result;
  }

 private:
  std::int64_t experts_;
  at::Tensor mask_;
  std::vector<at::Tensor> counts_;
  std::vector<std::int64_t> layers_;
};

std::string hash_of(const std::string& text) { return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size())); }

}  // namespace

struct Trainer::Impl {
  Impl(PeftModel& given, const train::Options& given_options, std::shared_ptr<ProcessGroup> processes)
      : model(given),
        options(given_options),
        group(std::move(processes)),
        adapter(only_adapter(given)),
        tensors(trainable_tensors(given)),
        optimizer(make_optimizer(tensors, options)),
        aux_coefficient(loss_coefficient(*given.base(), options)) {
    options.world_size = group ? group->size() : 1;
    train::check(options);
    for (const AdapterTensor& t : tensors) parameters.push_back(t.tensor);
  }

  PeftModel& model;
  train::Options options;
  std::shared_ptr<ProcessGroup> group;  // nullptr: this process alone
  std::string adapter;
  std::vector<AdapterTensor> tensors;
  std::vector<at::Tensor> parameters;
  AdamW optimizer;
  double aux_coefficient;
  train::RunState state;
  Clock::time_point start = Clock::now();
  std::string last_checkpoint;
  std::function<bool()> should_stop;  // of this process
  bool stop_asked = false;            // by any

  bool writes() const { return !group || group->rank() == 0; }

  std::string step_text() const { return fmt::format("step {}", state.step + 1); }
  std::string good_checkpoint() const {
    return last_checkpoint.empty() ? "no checkpoint was written yet" : "the last good checkpoint is " + last_checkpoint;
  }
  [[noreturn]] void fail(const std::string& tensor, const std::string& problem, double got) const {
    at({}, tensor)
        .fail(ErrorCode::NUM_NONFINITE, {.problem = fmt::format("{}: {}", step_text(), problem),
                                         .expected = "finite numbers",
                                         .got = fmt::format("{}", got),
                                         .hint = "a lower --learning-rate; " + good_checkpoint()});
  }

  // Dropout of a micro batch is a function of the seed and its place, so a run can go on anywhere.
  void seed(std::size_t micro) const {
    const std::uint64_t place = static_cast<std::uint64_t>(state.step) * 4096 + micro;
    at::manual_seed(options.seed * 0x9E3779B97F4A7C15U + place);
  }

  // What the losses of a step's micro batches are divided by.
  struct Divisors {
    double predicted, micro_batches;
  };
  Divisors divisors_of(const std::vector<train::MicroBatch>& batches) const {
    std::int64_t predicted = 0;
    for (const train::MicroBatch& batch : batches) predicted += batch.predicted;
    if (predicted == 0) at({}, step_text()).fail(ErrorCode::USAGE, {.problem = "nothing is learnt in these batches"});
    return {static_cast<double>(predicted), static_cast<double>(batches.size())};
  }

  ForwardOutput forward(const ForwardInput& input, bool training) {
    const Autocast autocast(model.base()->device(), options.bf16);
    return model.forward(input, {.training = training});
  }

  StepResult backward(const train::MicroBatch& batch, std::size_t micro, const Divisors& divisors) {
    seed(micro);
    const double own = static_cast<double>(std::max<std::int64_t>(1, batch.predicted)) * divisors.micro_batches;
    ForwardInput input = input_of(batch, model.base()->device());
    input.loss_divisor = options.loss_average == train::LossAverage::tokens ? divisors.predicted : own;
    input.want_aux_loss = aux_coefficient > 0;
    input.gradient_checkpointing = options.gradient_checkpointing;
    ExpertCounter counter(model.base()->expert_count(), input.mask);
    input.on_routing = [&](std::int64_t layer, const at::Tensor& chosen) { counter.see(layer, chosen); };
    const ForwardOutput output = forward(input, true);
    StepResult result{.predicted = output.predicted_tokens, .tokens = batch.real};
    result.expert_tokens = counter.counts();
    at::Tensor loss = output.loss;
    if (output.aux_loss.defined()) {
      loss = loss + output.aux_loss * (aux_coefficient / divisors.micro_batches);
      result.aux_loss = output.aux_loss.item<double>() / divisors.micro_batches;
    }
    result.loss = loss.item<double>();
    if (!std::isfinite(result.loss)) fail("loss", "the loss is not finite", result.loss);
    loss.backward();
    result.micro_losses.push_back(result.loss);
    result.correct = output.correct.item<double>(), result.entropy = output.entropy.item<double>();
    return result;
  }

  StepResult backward(const std::vector<train::MicroBatch>& batches) {
    if (group) return backward_together(batches);
    stop_asked = should_stop && should_stop();
    const Divisors divisors = divisors_of(batches);
    StepResult result;
    for (std::size_t i = 0; i < batches.size(); ++i) add(result, backward(batches[i], i, divisors));
    return result;
  }

  // Sums over rows [first, last).
  StepResult evaluate(const train::Dataset& data, std::size_t first, std::size_t last) {
    std::vector<const train::Row*> rows;
    for (std::size_t i = first; i < last; ++i) rows.push_back(&data.rows[i]);
    ForwardInput input = input_of(train::collate(rows), model.base()->device());
    input.loss_divisor = 1;
    const ForwardOutput output = forward(input, false);
    StepResult result{.loss = output.loss.item<double>(), .predicted = output.predicted_tokens};
    result.correct = output.correct.item<double>(), result.entropy = output.entropy.item<double>();
    return result;
  }

  void reset_gradients() {
    for (at::Tensor& parameter : parameters) parameter.mutable_grad().reset();
  }

  // Micro batch i is that of rank i % size. Rank 0 adds them in this order, which is that of one process, and sends all
  // what the step is.
  StepResult backward_together(const std::vector<train::MicroBatch>& batches) {
    const Divisors divisors = divisors_of(batches);
    const auto size = static_cast<std::size_t>(group->size()), rank = static_cast<std::size_t>(group->rank());
    StepMessage sum;
    sum.gradients.resize(parameters.size());
    for (std::size_t first = 0; first < batches.size(); first += size) {
      StepMessage own{.result = {}, .should_stop = should_stop && should_stop(), .gradients = {}};
      reset_gradients();
      if (first + rank < batches.size()) own.result = backward(batches[first + rank], first + rank, divisors);
      for (const at::Tensor& parameter : parameters) own.gradients.push_back(parameter.grad());
      for (const ProcessGroup::Bytes& part : group->gather(to_bytes(own))) add(sum, message_of(part, parameters));
    }
    sum = message_of(group->broadcast(to_bytes(sum)), parameters);
    for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].mutable_grad() = sum.gradients[i];
    stop_asked = sum.should_stop;
    return sum.result;
  }

  void require_finite_gradients(double norm) const {
    if (std::isfinite(norm)) return;
    for (const AdapterTensor& t : tensors) {
      if (t.tensor.grad().defined() && !at::isfinite(t.tensor.grad()).all().item<bool>())
        fail(t.key, "the gradient is not finite", norm);
    }
    fail("gradients", "their norm is not finite", norm);
  }

  StepResult step(const std::vector<train::MicroBatch>& batches, double learning_rate) {
    StepResult result = backward(batches);
    result.grad_norm = clip_gradients(parameters, options.max_grad_norm);
    require_finite_gradients(result.grad_norm);
    optimizer.step(learning_rate);
    optimizer.zero_grad();
    return result;
  }

  // What must be the same for a run that goes on.
  RunFacts facts(const train::Dataset& data) const {
    RunFacts facts = train::fingerprint(options);
    facts.emplace_back("data", data.hash);
    facts.emplace_back("rows", std::to_string(data.rows.size()));
    facts.emplace_back("model_type", model.base()->model_type());
    facts.emplace_back("dtype", c10::toString(model.base()->dtype()));
    facts.emplace_back("adapter_config", hash_of(model.peft_config(adapter).dump()));
    return facts;
  }

  // All processes of a group must go on from the same place with the same data.
  void require_same_run(const train::Dataset& data) {
    if (!group) return;
    const std::string text = state.to_json(facts(data));
    const ProcessGroup::Bytes first = group->broadcast({text.begin(), text.end()});
    if (std::ranges::equal(first, text)) return;
    throw Error(ErrorCode::NET_PEER,
                {.problem = fmt::format("rank {} was given another run than rank 0", group->rank()),
                 .expected = std::string(first.begin(), first.end()),
                 .got = text,
                 .hint = "give all processes the same flags, data and, for --resume, the same checkpoint"});
  }

  void add_to_window(const StepResult& result) {
    ++state.step, ++state.window_steps;
    state.num_tokens += result.tokens, state.window_tokens += result.predicted;
    state.window_loss += result.loss, state.window_correct += result.correct;
    nn::add(state.expert_tokens, result.expert_tokens);
    state.window_entropy += result.entropy, state.window_aux_loss += result.aux_loss.value_or(0);
  }

  train::Metrics take_window(const StepResult& result, double epoch, double learning_rate) {
    const auto steps = static_cast<double>(state.window_steps), tokens = static_cast<double>(state.window_tokens);
    train::Metrics m{.step = state.step, .epoch = epoch, .loss = state.window_loss / steps};
    m.grad_norm = result.grad_norm, m.learning_rate = learning_rate, m.num_tokens = state.num_tokens;
    m.mean_token_accuracy = state.window_correct / tokens, m.entropy = state.window_entropy / tokens;
    if (result.aux_loss) m.aux_loss = state.window_aux_loss / steps;
    m.seconds = seconds_since(start);
    state.window_steps = state.window_tokens = 0;
    state.window_loss = state.window_correct = state.window_entropy = state.window_aux_loss = 0;
    return m;
  }
};

Trainer::Trainer(PeftModel& model, const train::Options& options, std::shared_ptr<ProcessGroup> group)
    : impl_(std::make_unique<Impl>(model, options, std::move(group))) {}
Trainer::~Trainer() = default;

StepResult Trainer::backward(const std::vector<train::MicroBatch>& batches) { return impl_->backward(batches); }

StepResult Trainer::step(const std::vector<train::MicroBatch>& batches, double learning_rate) {
  StepResult result = impl_->step(batches, learning_rate);
  impl_->add_to_window(result);
  return result;
}

train::Evaluation Trainer::evaluate(const train::Dataset& data) {
  const at::NoGradGuard no_gradients;
  const auto start = Clock::now();
  const auto size = static_cast<std::size_t>(impl_->options.per_device_eval_batch_size);
  const auto processes = static_cast<std::size_t>(impl_->options.world_size);
  StepMessage sum;
  for (std::size_t first = 0; first < data.rows.size(); first += size * processes) {
    const std::size_t own = first + size * static_cast<std::size_t>(impl_->group ? impl_->group->rank() : 0);
    StepMessage part;
    if (own < data.rows.size()) part.result = impl_->evaluate(data, own, std::min(own + size, data.rows.size()));
    if (!impl_->group) {
      add(sum, std::move(part));
      continue;
    }
    for (const ProcessGroup::Bytes& message : impl_->group->gather(to_bytes(part))) add(sum, message_of(message, {}));
  }
  if (impl_->group) sum = message_of(impl_->group->broadcast(to_bytes(sum)), {});
  const double count = static_cast<double>(std::max<std::int64_t>(1, sum.result.predicted));
  train::Evaluation result{.step = impl_->state.step, .epoch = 0, .loss = sum.result.loss / count};
  result.mean_token_accuracy = sum.result.correct / count, result.entropy = sum.result.entropy / count;
  result.seconds = seconds_since(start);
  return result;
}

void Trainer::save_checkpoint(const std::string& folder, const train::Dataset& data) {
  impl_->last_checkpoint = folder;
  if (!impl_->writes()) return;
  write_checkpoint(impl_->model, impl_->adapter, impl_->optimizer, impl_->state, impl_->facts(data), folder);
}

void Trainer::load_checkpoint(const std::string& folder, const train::Dataset& data) {
  impl_->state = read_checkpoint(impl_->model, impl_->adapter, impl_->optimizer, impl_->facts(data), folder);
  impl_->last_checkpoint = folder;
}

const train::RunState& Trainer::state() const { return impl_->state; }
double Trainer::router_aux_loss_coef() const { return impl_->aux_coefficient; }

namespace {

// One run from where its state is to its end.
class Loop {
 public:
  Loop(Trainer& trainer, PeftModel& model, train::RunState& state, const train::Options& options,
       const train::Dataset& data, const TrainRun& run, bool writes)
      : trainer_(trainer),
        model_(model),
        state_(state),
        options_(options),
        data_(data),
        run_(run),
        writes_(writes && !run.out.empty()) {}

  bool due(std::int64_t every) const { return every > 0 && state_.step % every == 0; }

  void evaluate(double epoch) {
    if (run_.eval == nullptr || evaluated_ == state_.step) return;
    evaluated_ = state_.step;
    train::Evaluation result = trainer_.evaluate(*run_.eval);
    result.epoch = epoch;
    if (!state_.best_eval_loss || result.loss < *state_.best_eval_loss) {
      state_.best_eval_loss = result.loss, state_.best_step = state_.step;
      best_is_new_ = true;
    }
    if (run_.callbacks.on_evaluate) run_.callbacks.on_evaluate(result);
  }

  void save() {
    if (run_.out.empty() || saved_ == state_.step) return;
    saved_ = state_.step;
    const std::string folder = (fs::path(run_.out) / fmt::format("checkpoint-{}", state_.step)).string();
    trainer_.save_checkpoint(folder, data_);
    best_is_new_ = false;
    if (!writes_) return;
    if (options_.save_total_limit > 0) remove_old_checkpoints(run_.out, options_.save_total_limit, state_.best_step);
    if (run_.callbacks.on_save) run_.callbacks.on_save(folder);
  }

  // After a step: what is due. The end, where the run ends here.
  std::optional<TrainEnd> after_step(std::int64_t total, double epoch, bool asked) {
    if (due(options_.eval_steps)) evaluate(epoch);
    const bool stop = options_.stop_after_steps > 0 && state_.step >= options_.stop_after_steps;
    const bool last = state_.step == total;
    // The best model so far is kept as a checkpoint, because it is loaded at the end.
    const bool best = options_.load_best_model_at_end && best_is_new_;
    if (due(options_.save_steps) || stop || asked || best || (last && options_.save_steps > 0)) save();
    if (last) return std::nullopt;
    if (asked) return TrainEnd::stopped;
    if (stop) return TrainEnd::stopped_after_steps;
    return std::nullopt;
  }

  void finish(double epoch, const std::string& adapter) {
    evaluate(epoch);
    if (!writes_) return;
    if (options_.load_best_model_at_end && state_.best_step > 0 && state_.best_step != state_.step) {
      const fs::path best = fs::path(run_.out) / fmt::format("checkpoint-{}", state_.best_step);
      read_adapter_values(model_, adapter, best.string());
    }
    write_trained_adapter(model_, adapter, run_.out);
  }

 private:
  Trainer& trainer_;
  PeftModel& model_;
  train::RunState& state_;
  const train::Options& options_;
  const train::Dataset& data_;
  const TrainRun& run_;
  const bool writes_;
  std::int64_t evaluated_ = -1, saved_ = -1;
  bool best_is_new_ = false;
};

void require_possible(const train::Options& options, const TrainRun& run) {
  if (!options.load_best_model_at_end) return;
  if (run.eval != nullptr && options.eval_steps > 0 && !run.out.empty()) return;
  throw Error(ErrorCode::USAGE, {.tensor = "load_best_model_at_end",
                                 .problem = "the best model is known from evaluations and loaded from a checkpoint",
                                 .expected = "evaluation data, eval_steps and an output folder",
                                 .got = "not all of them"});
}

}  // namespace

TrainEnd Trainer::run(const train::Dataset& data, const TrainRun& run) {
  try {
    impl_->require_same_run(data);
    return run_to_the_end(data, run);
  } catch (const std::exception& error) {
    if (impl_->group) impl_->group->fail(error.what());
    throw;
  }
}

TrainEnd Trainer::run_to_the_end(const train::Dataset& data, const TrainRun& run) {
  require_possible(impl_->options, run);
  train::Batches batches(data, impl_->options);
  train::RunState& state = impl_->state;
  const std::int64_t total = batches.total_steps();
  impl_->should_stop = run.callbacks.should_stop;
  Loop loop(*this, impl_->model, state, impl_->options, data, run, impl_->writes());
  if (!run.out.empty() && impl_->writes()) fs::create_directories(run.out);
  while (state.step < total) {
    const double rate = train::learning_rate(impl_->options, state.step, total);
    const StepResult result = step(batches.of_step(state.step), rate);
    const double epoch = batches.epoch_of(state.step);
    if (run.callbacks.on_step) run.callbacks.on_step(state.step, total, result);
    if (loop.due(impl_->options.logging_steps)) {
      const train::Metrics metrics = impl_->take_window(result, epoch, rate);
      if (run.callbacks.on_log) run.callbacks.on_log(metrics);
    }
    if (const auto end = loop.after_step(total, epoch, impl_->stop_asked)) return *end;
  }
  loop.finish(batches.epoch_of(state.step), impl_->adapter);
  return TrainEnd::finished;
}

}  // namespace peft::nn
