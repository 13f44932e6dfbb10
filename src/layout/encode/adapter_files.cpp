#include "layout/encode/adapter_files.h"

#include <utility>

#include "adapter/mlx_config.h"
#include "layout/encode/write_config.h"
#include "pythonic/python_json.h"

namespace peft::layout {
namespace {

constexpr const char* kConfigFile = "adapter_config.json";

// What Tinker's own files say: one rank, one alpha, no targets.
std::string tinker_config(const AdapterConfig& source, const Uniform& uniform) {
  const Number alpha = alpha_for_scale(uniform.scale, uniform.rank, false);
  pythonic::Json config;
  config["r"] = uniform.rank;
  if (alpha.integer)
    config["lora_alpha"] = static_cast<std::int64_t>(alpha.value);
  else
    config["lora_alpha"] = alpha.value;
  config["peft_type"] = "LORA";
  config["base_model_name_or_path"] = nullptr;
  if (source.base_model_name_or_path) config["base_model_name_or_path"] = *source.base_model_name_or_path;
  return pythonic::dump_python(config, 1, false);
}

}  // namespace

void add_adapter_files(Plan& plan, Encoded encoded, const AdapterConfig& source, const Model& model, Layout to) {
  PlannedFile file;
  file.name = info(to).weights_file;
  switch (to) {
    case Layout::gguf:
      file.gguf = encoded.gguf;
      plan.single_file = true;
      break;
    case Layout::mlx:
      file.metadata.clear();  // MLX-LM writes none
      plan.texts.emplace_back(kConfigFile,
                              adapter::write_mlx_config(source, encoded.uniform->rank, encoded.uniform->scale,
                                                        encoded.uniform->num_layers, encoded.uniform->keys));
      break;
    case Layout::tinker:
      plan.texts.emplace_back(kConfigFile, tinker_config(source, *encoded.uniform));
      break;
    default:
      plan.texts.emplace_back(kConfigFile, write_config(source, encoded, model, to, plan.warnings).dump());
  }
  plan.exactness = encoded.exactness;
  plan.steps = std::move(encoded.steps);
  plan.warnings.insert(plan.warnings.end(), encoded.warnings.begin(), encoded.warnings.end());
  file.tensors = std::move(encoded.tensors);
  plan.files.push_back(std::move(file));
}

}  // namespace peft::layout
