// The model a command line asks for: loaded, with its adapters active.
#pragma once

#include <memory>
#include <string>

#include "cli/runtime/runtime.h"
#include "peft/nn/model.h"
#include "peft/nn/peft_model.h"

namespace peft::torch_cli {

struct RunningModel {
  std::shared_ptr<nn::CausalLM> base;
  std::unique_ptr<nn::PeftModel> lora;  // null: the base alone
  std::vector<std::string> warnings;    // of loading
  at::Tensor logits(const at::Tensor& ids, const at::Tensor& mask) const;
  std::vector<std::vector<std::int64_t>> generate(const at::Tensor& ids, const at::Tensor& mask,
                                                  const nn::GenerateOptions& options) const;
};

// The base alone. Also sets the number of threads.
std::shared_ptr<nn::CausalLM> load_base(const cli::RuntimeFlags& flags);
// With its adapters. Warnings of loading go to stderr.
RunningModel load(const cli::RuntimeFlags& flags);

// Adapters by the names "0", "1", ... in the order given, all active: their updates add up.
std::unique_ptr<nn::PeftModel> load_adapters(const std::shared_ptr<nn::CausalLM>& base, const cli::RuntimeFlags& flags,
                                             nn::AdapterModelOptions options);

// What --base-is-residual and --change-base say.
nn::ChangedBase changed_base(const cli::RuntimeFlags& flags);

// [rows, tokens] on the model's device; undefined for no rows.
at::Tensor tensor_of(const cli::Rows& rows, const at::Device& device);

// Runs a verb and turns an exception of libtorch into a peft::Error: out of memory, or a bug.
int guarded(int (*verb)(const void*), const void* command);

template <class Command, int (*verb)(const Command&)>
int run_guarded(const Command& command) {
  return guarded([](const void* pointer) { return verb(*static_cast<const Command*>(pointer)); }, &command);
}

}  // namespace peft::torch_cli
