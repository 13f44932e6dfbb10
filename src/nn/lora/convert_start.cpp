#include "nn/lora/convert_start.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <filesystem>

#include "config/peft_rules.h"
#include "nn/lora/file_tensor.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

constexpr const char* kOption = "path_initial_model_for_weight_conversion";

void require_convertible(const AdapterConfig& config) {
  const std::string& init = config.init_lora_weights;
  // LoftQ took more than its start out of the base: it rounded the rest.
  if (!config::changes_base(init) || config::lora_init(init) == config::LoraInit::loftq) {
    throw Error(ErrorCode::CF_UNSUP,
                {.tensor = kOption,
                 .problem = "only an adapter whose start was taken out of the base can be converted",
                 .expected = "init_lora_weights = pissa, pissa_niter_N, olora, corda or lora_ga",
                 .got = init,
                 .hint = "save it without"});
  }
  if (config.use_rslora && !(config.rank_pattern.empty() && config.alpha_pattern.empty())) {
    throw Error(ErrorCode::CF_UNSUP, {.tensor = kOption,
                                      .problem = "rank_pattern and alpha_pattern cannot be doubled under use_rslora",
                                      .expected = "patterns or use_rslora",
                                      .got = "both",
                                      .hint = "PEFT refuses this as well"});
  }
}

// Of the factors alone: all scales stay what they were.
void double_rank(AdapterConfig& config) {
  const auto twice = [](Number& number) { number.value *= 2; };
  config.init_lora_weights = "true";
  config.r *= 2;
  if (config.use_rslora)
    config.lora_alpha = {config.lora_alpha.value * std::sqrt(2.0), false};
  else
    twice(config.lora_alpha);
  for (auto& [pattern, rank] : config.rank_pattern) twice(rank);
  for (auto& [pattern, alpha] : config.alpha_pattern) twice(alpha);
}

at::Tensor start_of(const TensorFile& file, const std::string& name, const at::Tensor& now) {
  const TensorInfo* info = file.find(name);
  if (info == nullptr) {
    throw Error(ErrorCode::LO_MISSING, {.file = file.path(),
                                        .tensor = name,
                                        .problem = "the adapter before training has no such tensor",
                                        .expected = "the tensors of the adapter that is saved",
                                        .hint = "is this the adapter's own start?"});
  }
  const at::Tensor start =
      read_tensor(file, static_cast<std::uint32_t>(info - file.tensors().data())).to(now.scalar_type());
  if (start.sizes() == now.sizes()) return start;
  throw Error(ErrorCode::LO_SHAPE, {.file = file.path(),
                                    .tensor = name,
                                    .problem = "the adapter before training has another shape",
                                    .expected = fmt::format("[{}]", fmt::join(now.sizes(), ", ")),
                                    .got = fmt::format("[{}]", fmt::join(start.sizes(), ", ")),
                                    .hint = "is this the adapter's own start?"});
}

}  // namespace

void take_out_start(const std::string& folder, AdapterConfig& config, NamedTensors& tensors) {
  require_convertible(config);
  const auto file = TensorFile::open((std::filesystem::path(folder) / "adapter_model.safetensors").string());
  for (auto& [name, tensor] : tensors) {
    const bool a = name.ends_with(".lora_A.weight"), b = name.ends_with(".lora_B.weight");
    if (!a && !b) {
      throw Error(ErrorCode::CF_UNSUP,
                  {.tensor = name,
                   .problem = std::string(kOption) + " converts lora_A and lora_B of Linear layers only",
                   .expected = "an adapter without DoRA, biases, embeddings and modules_to_save",
                   .hint = "save it without, and load it with the base that it changed"});
    }
    const at::Tensor now = tensor.detach().cpu(), start = start_of(*file, name, now);
    tensor = a ? at::cat({now, start}, 0) : at::cat({now, -start}, 1);
  }
  double_rank(config);
}

}  // namespace peft::nn
