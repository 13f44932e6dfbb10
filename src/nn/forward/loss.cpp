#include "nn/forward/loss.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <memory>

#include "base/text.h"
#include "nn/forward/recompute.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

// Logits of this many elements are in memory at once: 16 MiB in fp32.
constexpr std::int64_t kLogits = std::int64_t{1} << 22;

std::int64_t rows_at_once(std::int64_t vocabulary) { return std::max<std::int64_t>(1, kLogits / vocabulary); }

// Sums over the rows of some logits.
struct Sums {
  Tensor loss, correct, entropy;
};

// log p of every token, in fp32 at least.
Tensor log_probabilities(const Tensor& logits) {
  return at::log_softmax(logits, -1, logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

Sums sums_of(const Tensor& log_p, const Tensor& next) {
  Sums sums;
  sums.loss = -log_p.gather(1, next.unsqueeze(1)).sum(at::kDouble);
  sums.correct = log_p.argmax(1).eq(next).sum();
  sums.entropy = -(log_p.exp() * log_p).sum(at::kDouble);
  return sums;
}

void add(Tensor& sum, const Tensor& part) { sum = sum.defined() ? sum + part : part; }

// For an output embedding that is neither trained nor has an adapter: the gradient of the hidden values is formed with
// the loss, so the logits are computed once.
class FrozenHeadLoss : public torch::autograd::Function<FrozenHeadLoss> {
 public:
  static std::vector<Tensor> forward(torch::autograd::AutogradContext* context, const Tensor& hidden,
                                     const Linear* head, const Tensor& next, double divisor, bool needs_gradient) {
    const Tensor& weight = head->weight;
    Sums sums;
    Tensor gradient = needs_gradient ? at::empty_like(hidden) : Tensor();
    const std::int64_t step = rows_at_once(weight.size(0));
    for (std::int64_t first = 0; first < hidden.size(0); first += step) {
      const std::int64_t rows = std::min(step, hidden.size(0) - first);
      const Tensor x = hidden.narrow(0, first, rows), wanted = next.narrow(0, first, rows);
      Tensor log_p = log_probabilities(at::linear(x, weight, head->bias));
      const Sums part = sums_of(log_p, wanted);
      add(sums.loss, part.loss), add(sums.correct, part.correct), add(sums.entropy, part.entropy);
      if (!needs_gradient) continue;
      Tensor to_logits = log_p.exp_();
      to_logits.scatter_add_(1, wanted.unsqueeze(1), at::full({rows, 1}, -1.0, to_logits.options()));
      to_logits.div_(divisor);
      Tensor place = gradient.narrow(0, first, rows);
      at::mm_out(place, to_logits.to(weight.scalar_type()), weight);
    }
    if (needs_gradient) context->save_for_backward({gradient});
    context->mark_non_differentiable({sums.correct, sums.entropy});
    const auto type = hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return {(sums.loss / divisor).to(type), sums.correct, sums.entropy};
  }

  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context, std::vector<Tensor> gradients) {
    const Tensor saved = context->get_saved_variables()[0];
    return {saved * gradients[0].to(saved.scalar_type()), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Adapters, modules_to_save and trained tokens: each part's logits are computed again in the backward pass.
void add_trained_head(const Pass& pass, const Tensor& hidden, const Tensor& next, double divisor,
                      ForwardOutput& output) {
  const Linear* head = pass.model.lm_head;
  const std::int64_t step = rows_at_once(head->out());
  const auto context = std::make_shared<const ForwardContext>(pass.context);
  for (std::int64_t first = 0; first < hidden.size(0); first += step) {
    const std::int64_t rows = std::min(step, hidden.size(0) - first);
    const Tensor wanted = next.narrow(0, first, rows);
    const Part part = [head, context, wanted, divisor](const Tensor& x) -> std::vector<Tensor> {
      const Tensor log_p = log_probabilities(head->forward(x, *context));
      const Sums sums = sums_of(log_p.detach(), wanted);
      return {-log_p.gather(1, wanted.unsqueeze(1)).sum() / divisor, sums.correct, sums.entropy};
    };
    const std::vector<Tensor> parts = recomputed(hidden.narrow(0, first, rows), pass.context.training, part);
    add(output.loss, parts[0]), add(output.correct, parts[1]), add(output.entropy, parts[2]);
  }
}

}  // namespace

void check_labels(const CausalLM::Impl& model, const ForwardInput& input) {
  const Tensor& labels = input.labels;
  const Tensor& like = input.ids.defined() ? input.ids : input.embeds.select(2, 0);
  if (labels.dim() != 2 || labels.sizes() != like.sizes() || labels.scalar_type() != at::kLong) {
    at({}, "labels")
        .fail(ErrorCode::USAGE, {.problem = "do not fit the ids",
                                 .expected = "int64 " + shape_text({like.sizes().data(), like.sizes().size()}),
                                 .got = shape_text({labels.sizes().data(), labels.sizes().size()})});
  }
  const Tensor wrong = labels.ne(-100).logical_and(labels.lt(0).logical_or(labels.ge(model.config.vocab)));
  if (!wrong.any().item<bool>()) return;
  const auto place = wrong.nonzero()[0].to(at::kCPU);
  const auto row = place[0].item<std::int64_t>(), column = place[1].item<std::int64_t>();
  std::string name = "labels[";
  name.append(std::to_string(row)).append("][").append(std::to_string(column)).append("]");
  at({}, name).fail(ErrorCode::USAGE, {.problem = "a token id outside the vocabulary",
                                       .expected = "-100, or 0 to " + std::to_string(model.config.vocab - 1),
                                       .got = std::to_string(labels[row][column].item<std::int64_t>())});
}

LearntRows learnt_rows(const Tensor& labels, const std::vector<std::int64_t>& documents) {
  const Tensor host = labels.to(at::kCPU).contiguous();
  const std::int64_t* label = host.const_data_ptr<std::int64_t>();
  std::vector<bool> starts(static_cast<std::size_t>(host.size(1)), false);  // of a document: no token predicts it
  std::int64_t start = 0;
  for (const std::int64_t length : documents) {
    starts[static_cast<std::size_t>(start)] = true;
    start += length;
  }
  std::vector<std::int64_t> rows, next;
  for (std::int64_t s = 0; s < host.size(0); ++s) {
    for (std::int64_t t = 0; t + 1 < host.size(1); ++t) {
      const std::int64_t row = s * host.size(1) + t;
      if (label[row + 1] == -100 || starts[static_cast<std::size_t>(t + 1)]) continue;
      rows.push_back(row), next.push_back(label[row + 1]);
    }
  }
  return {at::tensor(rows, at::kLong).to(labels.device()), at::tensor(next, at::kLong).to(labels.device())};
}

void add_loss(const Pass& pass, const Tensor& hidden, const Tensor& next, double divisor, ForwardOutput& output) {
  output.predicted_tokens = hidden.size(0);
  if (hidden.size(0) == 0) {  // nothing to learn here; the gradients are zeros
    output.loss = hidden.sum().to(at::kFloat);
    output.correct = at::zeros({}, next.options()), output.entropy = at::zeros({}, next.options().dtype(at::kDouble));
    return;
  }
  const double by = divisor != 0 ? divisor : static_cast<double>(hidden.size(0));
  const Linear& head = *pass.model.lm_head;
  const bool gradients = at::GradMode::is_enabled();
  if (head.adapter != nullptr || (gradients && head.weight.requires_grad())) {
    return add_trained_head(pass, hidden, next, by, output);
  }
  const bool needs_gradient = gradients && hidden.requires_grad();
  const std::vector<Tensor> parts = FrozenHeadLoss::apply(hidden, &head, next, by, needs_gradient);
  output.loss = parts[0], output.correct = parts[1], output.entropy = parts[2];
}

}  // namespace peft::nn
