#include "nn/train/step_message.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstring>

#include "peft/error.h"

namespace peft::nn {
namespace {

void append(ProcessGroup::Bytes& bytes, const void* data, std::size_t size) {
  const auto* begin = static_cast<const std::uint8_t*>(data);
  bytes.insert(bytes.end(), begin, begin + size);
}

void append(ProcessGroup::Bytes& bytes, double number) { append(bytes, &number, sizeof number); }

class Reader {
 public:
  explicit Reader(const ProcessGroup::Bytes& bytes) : bytes_(bytes) {}

  void read(void* into, std::size_t size) {
    if (size > bytes_.size() - at_) refuse();
    if (size > 0) std::memcpy(into, bytes_.data() + at_, size);
    at_ += size;
  }
  double number() {
    double value = 0;
    read(&value, sizeof value);
    return value;
  }
  std::int64_t count() { return static_cast<std::int64_t>(number()); }
  void require_end() const {
    if (at_ != bytes_.size()) refuse();
  }

 private:
  [[noreturn]] static void refuse() {
    throw Error(ErrorCode::NET_PEER, {.problem = "another process of the run trains other tensors",
                                      .hint = "give all processes the same model, adapter and flags"});
  }
  const ProcessGroup::Bytes& bytes_;
  std::size_t at_ = 0;
};

void append(ProcessGroup::Bytes& bytes, const StepResult& result) {
  append(bytes, result.loss), append(bytes, result.correct), append(bytes, result.entropy);
  append(bytes, static_cast<double>(result.predicted)), append(bytes, static_cast<double>(result.tokens));
  append(bytes, result.aux_loss ? 1.0 : 0.0), append(bytes, result.aux_loss.value_or(0));
  append(bytes, static_cast<double>(result.micro_losses.size()));
  for (const double loss : result.micro_losses) append(bytes, loss);
  append(bytes, static_cast<double>(result.expert_tokens.size()));
  for (const auto& [layer, counts] : result.expert_tokens) {
    append(bytes, static_cast<double>(layer)), append(bytes, static_cast<double>(counts.size()));
    for (const std::int64_t count : counts) append(bytes, static_cast<double>(count));
  }
}

StepResult read_result(Reader& reader) {
  StepResult result;
  result.loss = reader.number(), result.correct = reader.number(), result.entropy = reader.number();
  result.predicted = reader.count(), result.tokens = reader.count();
  const bool has_aux_loss = reader.number() != 0;
  const double aux_loss = reader.number();
  if (has_aux_loss) result.aux_loss = aux_loss;
  for (std::int64_t left = reader.count(); left > 0; --left) result.micro_losses.push_back(reader.number());
  for (std::int64_t layers = reader.count(); layers > 0; --layers) {
    std::vector<std::int64_t>& counts = result.expert_tokens[reader.count()];
    for (std::int64_t left = reader.count(); left > 0; --left) counts.push_back(reader.count());
  }
  return result;
}

}  // namespace

void add(train::ExpertTokens& sum, const train::ExpertTokens& part) {
  for (const auto& [layer, counts] : part) {
    std::vector<std::int64_t>& total = sum[layer];
    total.resize(std::max(total.size(), counts.size()));
    for (std::size_t e = 0; e < counts.size(); ++e) total[e] += counts[e];
  }
}

void add(StepResult& sum, const StepResult& part) {
  sum.loss += part.loss;
  sum.predicted += part.predicted, sum.tokens += part.tokens;
  sum.correct += part.correct, sum.entropy += part.entropy;
  if (part.aux_loss) sum.aux_loss = sum.aux_loss.value_or(0) + *part.aux_loss;
  add(sum.expert_tokens, part.expert_tokens);
  sum.micro_losses.insert(sum.micro_losses.end(), part.micro_losses.begin(), part.micro_losses.end());
}

void add(StepMessage& sum, StepMessage part) {
  const at::NoGradGuard no_gradients;
  add(sum.result, part.result);
  sum.should_stop = sum.should_stop || part.should_stop;
  if (sum.gradients.empty()) sum.gradients.resize(part.gradients.size());
  for (std::size_t i = 0; i < part.gradients.size(); ++i) {
    at::Tensor& total = sum.gradients[i];
    if (!part.gradients[i].defined()) continue;
    total = total.defined() ? total + part.gradients[i] : part.gradients[i];
  }
}

ProcessGroup::Bytes to_bytes(const StepMessage& message) {
  ProcessGroup::Bytes bytes;
  append(bytes, message.result);
  append(bytes, message.should_stop ? 1.0 : 0.0);
  for (const at::Tensor& gradient : message.gradients) {
    append(bytes, gradient.defined() ? 1.0 : 0.0);
    if (!gradient.defined()) continue;
    const at::Tensor flat = gradient.detach().to(at::kCPU).contiguous();
    append(bytes, flat.const_data_ptr(), flat.nbytes());
  }
  return bytes;
}

StepMessage message_of(const ProcessGroup::Bytes& bytes, const std::vector<at::Tensor>& like) {
  Reader reader(bytes);
  StepMessage message{read_result(reader), reader.number() != 0, {}};
  for (const at::Tensor& tensor : like) {
    at::Tensor& gradient = message.gradients.emplace_back();
    if (reader.number() == 0) continue;
    gradient = at::empty(tensor.sizes(), tensor.options().device(at::kCPU).requires_grad(false));
    reader.read(gradient.mutable_data_ptr(), gradient.nbytes());
    gradient = gradient.to(tensor.device());
  }
  reader.require_end();
  return message;
}

}  // namespace peft::nn
