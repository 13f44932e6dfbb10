#include "torch_cli/running_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "cli/flags.h"
#include "cli/output/output.h"
#include "peft/adapter.h"
#include "peft/error.h"

namespace peft::torch_cli {
namespace {

std::optional<at::ScalarType> scalar_type(const std::string& name) {
  if (name.empty()) return std::nullopt;
  switch (cli::parse_dtype_flag("--dtype", name)) {
    case Dtype::f16:
      return at::kHalf;
    case Dtype::bf16:
      return at::kBFloat16;
    case Dtype::f64:
      return at::kDouble;
    default:
      return at::kFloat;
  }
}

}  // namespace

nn::ChangedBase changed_base(const cli::RuntimeFlags& flags) {
  if (flags.base_is_residual) return nn::ChangedBase::is_residual;
  return flags.change_base ? nn::ChangedBase::subtract : nn::ChangedBase::refuse;
}

at::Tensor RunningModel::logits(const at::Tensor& ids, const at::Tensor& mask) const {
  return lora ? lora->logits(ids, mask) : base->logits(ids, mask);
}

std::vector<std::vector<std::int64_t>> RunningModel::generate(const at::Tensor& ids, const at::Tensor& mask,
                                                              const nn::GenerateOptions& options) const {
  return lora ? lora->generate(ids, mask, options) : nn::generate(*base, ids, mask, options);
}

std::unique_ptr<nn::PeftModel> load_adapters(const std::shared_ptr<nn::CausalLM>& base, const cli::RuntimeFlags& flags,
                                             nn::AdapterModelOptions options) {
  std::unique_ptr<nn::PeftModel> lora;
  std::vector<std::string> names;
  for (const auto& adapter : flags.adapters) {
    options.adapter_name = std::to_string(names.size());
    names.push_back(options.adapter_name);
    const std::string folder = resolve_path(adapter);
    if (lora) {
      lora->load_adapter(folder, options.adapter_name, options);
    } else {
      lora = nn::PeftModel::from_pretrained(base, folder, options);
    }
  }
  if (names.size() > 1) lora->set_adapter(names);
  return lora;
}

std::shared_ptr<nn::CausalLM> load_base(const cli::RuntimeFlags& flags) {
  if (flags.threads > 0) at::set_num_threads(flags.threads);
  nn::LoadOptions options;
  options.dtype = scalar_type(flags.dtype);
  options.device = flags.device;
  options.threads = flags.threads;
  return nn::load_model(resolve_path(flags.base), options);
}

RunningModel load(const cli::RuntimeFlags& flags) {
  RunningModel model;
  model.base = load_base(flags);
  nn::AdapterModelOptions adapter_options;
  adapter_options.changed_base = changed_base(flags);
  model.lora = load_adapters(model.base, flags, adapter_options);
  model.warnings = model.base->warnings();
  if (model.lora) {
    const auto& more = model.lora->warnings();
    model.warnings.insert(model.warnings.end(), more.begin(), more.end());
  }
  cli::write_warnings(model.warnings);
  return model;
}

at::Tensor tensor_of(const cli::Rows& rows, const at::Device& device) {
  if (rows.empty()) return {};
  const auto width = static_cast<std::int64_t>(rows.front().size());
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(rows.size()), width}, at::kLong);
  auto* out = tensor.mutable_data_ptr<std::int64_t>();
  for (const auto& row : rows) out = std::copy(row.begin(), row.end(), out);
  return tensor.to(device);
}

int guarded(int (*verb)(const void*), const void* command) {
  try {
    return verb(command);
  } catch (const c10::OutOfMemoryError&) {
    throw Error(ErrorCode::OUT_MEMORY,
                {.problem = "the device is out of memory", .hint = "a narrower --dtype, or fewer tokens"});
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    if (text.find("DefaultCPUAllocator") != std::string::npos) {
      throw Error(ErrorCode::OUT_MEMORY, {.problem = "out of memory", .hint = "a narrower --dtype, or fewer tokens"});
    }
    throw Error(ErrorCode::INTERNAL,
                {.problem = "libtorch: " + text, .hint = "please report this, with the command line"});
  }
}

}  // namespace peft::torch_cli
