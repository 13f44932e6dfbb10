#include "verbs/carried.h"

#include <algorithm>
#include <map>

#include "config/peft_rules.h"
#include "peft/error.h"

namespace peft::verbs {
namespace {

// Why a kind of tensor cannot be combined; "" where it can.
struct Reason {
  ExtraKind kind;
  const char* why;
};
constexpr Reason kReasons[] = {
    {ExtraKind::magnitude,
     "DoRA adapters have no weighted sum: each scales the rows of W + delta to magnitudes of its own"},
    {ExtraKind::lora_bias, "lora_bias has no place beside several deltas that are scaled apart"},
    {ExtraKind::token_delta, "trained tokens replace rows of the embedding: they have no weighted sum"},
};

std::string tensor_name(const Input& input, const Extra& extra) {
  return std::string(input.adapter.weights->tensors()[extra.tensor].name);
}

[[noreturn]] void refuse(const Input& input, const Extra& extra, std::string problem) {
  throw Error(ErrorCode::CF_UNSUP, {.file = input.adapter.weights->path(),
                                    .tensor = tensor_name(input, extra),
                                    .problem = std::move(problem),
                                    .expected = "plain LoRA",
                                    .hint = "merge the adapters into the base model one after the other (peft merge)"});
}

void adopt(AdapterConfig& config, const AdapterConfig& from) {
  if (const auto saved = config::saved_entries(from); !saved.empty()) {
    auto& names = config.modules_to_save ? *config.modules_to_save : config.modules_to_save.emplace();
    for (const auto& name : saved) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  if (from.bias != "none") config.bias = from.bias;
}

}  // namespace

Carried carry(const TensorFile& file, const TensorInfo& tensor, const Extra& extra) {
  const auto bytes = file.bytes(tensor);
  return {extra, tensor.dtype, {tensor.shape.begin(), tensor.shape.end()}, {bytes.begin(), bytes.end()}};
}

std::vector<Carried> carry_all(const Input& input) {
  std::vector<Carried> carried;
  for (const Extra& extra : input.reading.factors.extras) {
    carried.push_back(carry(*input.adapter.weights, input.adapter.weights->tensors()[extra.tensor], extra));
  }
  return carried;
}

std::vector<Carried> carry_for_combination(std::span<const Input> inputs, AdapterConfig& config,
                                           std::vector<std::string>& notes) {
  std::vector<Carried> carried;
  std::map<std::pair<Site, std::string>, std::size_t> owner;
  config.modules_to_save.reset();
  config.bias = "none";
  for (const Input& input : inputs) {
    for (const Extra& extra : input.reading.factors.extras) {
      for (const Reason& reason : kReasons) {
        if (extra.kind == reason.kind) refuse(input, extra, reason.why);
      }
      Carried mine = carry(*input.adapter.weights, input.adapter.weights->tensors()[extra.tensor], extra);
      const auto [at, fresh] = owner.try_emplace({extra.site, extra.suffix}, carried.size());
      if (!fresh) {
        const Carried& first = carried[at->second];
        const bool same = first.dtype == mine.dtype && first.shape == mine.shape && first.bytes == mine.bytes;
        if (!same) refuse(input, extra, "two adapters carry this module whole, and not the same one");
        notes.push_back(tensor_name(input, extra) +
                        " is the same in several adapters: carried whole, without a weight");
        continue;
      }
      carried.push_back(std::move(mine));
      adopt(config, input.adapter.config);
      notes.push_back(tensor_name(input, extra) + " is carried whole, without a weight: it is from " +
                      input.adapter.folder);
    }
  }
  return carried;
}

}  // namespace peft::verbs
