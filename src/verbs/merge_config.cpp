#include "verbs/merge_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

#include "peft/error.h"
#include "peft/weights.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"

namespace peft::merging {
namespace {

using pythonic::Json;

constexpr std::array<std::pair<Dtype, const char*>, 4> kTorchNames = {
    {{Dtype::bf16, "bfloat16"}, {Dtype::f16, "float16"}, {Dtype::f32, "float32"}, {Dtype::f64, "float64"}}};

std::string torch_name(Dtype dtype) {
  for (const auto& [known, name] : kTorchNames) {
    if (known == dtype) return name;
  }
  return std::string(info(dtype).name);
}

// Sets a key in the config and in every sub-config that has it.
bool set_where_present(Json& config, const std::string& key, const Json& value, bool at_top) {
  bool changed = false;
  if (at_top || config.contains(key)) {
    changed = !config.contains(key) || config.at(key) != value;
    config[key] = value;
  }
  for (auto& [name, section] : config.items()) {
    if (section.is_object() && name != "quantization_config")
      changed = set_where_present(section, key, value, false) || changed;
  }
  return changed;
}

bool set_dtype(Json& config, Dtype dtype) {
  const Json value = torch_name(dtype);
  const bool any = config.contains("dtype") || config.contains("torch_dtype");
  bool changed = false;
  for (const char* key : {"dtype", "torch_dtype"})
    changed = set_where_present(config, key, value, !any && std::string(key) == "dtype") || changed;
  return changed;
}

// Methods whose config can name modules that are not quantised, and the key it does so by.
constexpr std::array<std::pair<const char*, const char*>, 2> kExceptions = {
    {{"fp8", "modules_to_not_convert"}, {"mxfp4", "modules_to_not_convert"}}};

void name_exceptions(Json& quantization, const ConfigChange& change, const std::string& path) {
  const std::string method = quantization.value("quant_method", std::string());
  for (const auto& [known, key] : kExceptions) {
    if (method != known) continue;
    Json list = quantization.contains(key) && quantization.at(key).is_array() ? quantization.at(key) : Json::array();
    for (const std::string& module : change.dequantized) {
      if (std::find(list.begin(), list.end(), Json(module)) == list.end()) list.push_back(module);
    }
    quantization[key] = std::move(list);
    return;
  }
  throw Error(ErrorCode::LO_QUANT,
              {.file = path,
               .tensor = "quantization_config",
               .problem = "no config of this method can say that some modules are quantised and others not",
               .expected = "quant_method fp8 or mxfp4",
               .got = method.empty() ? "none" : method,
               .hint = "leave --keep-quantized out"});
}

bool set_quantization(Json& config, const ConfigChange& change, const std::string& path) {
  if (!change.any_dequantized) return false;
  bool changed = false;
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (!config.contains(key)) continue;
    if (change.kept.empty())
      config.erase(key);
    else
      name_exceptions(config.at(key), change, path);
    changed = true;
  }
  return changed;
}

std::uint64_t elements(const PlannedTensor& tensor) {
  return static_cast<std::uint64_t>(tensor.rows) * static_cast<std::uint64_t>(tensor.cols);
}

}  // namespace

std::optional<std::string> changed_config(const std::string& path, const ConfigChange& change,
                                          std::vector<std::string>& warnings) {
  const std::string text = safetensors::read_text_file(path, ErrorCode::MD_FORM);
  Json json = pythonic::parse_json(text, path, ErrorCode::MD_FORM);
  bool changed = false;
  if (change.untied || change.own_output) changed = set_where_present(json, "tie_word_embeddings", false, true);
  if (change.own_output) {
    warnings.push_back(own_output_text(path) +
                       "; the merged config.json says tie_word_embeddings = false, so that every reader does");
  } else if (change.untied) {
    warnings.push_back(
        "input and output embedding were one tensor and only one of them changes: the output embedding is "
        "written out, and config.json says tie_word_embeddings = false");
  }
  if (change.dtype) changed = set_dtype(json, *change.dtype) || changed;
  changed = set_quantization(json, change, path) || changed;
  if (!changed) return std::nullopt;
  return pythonic::dump_python(json, 2, false) + "\n";
}

std::string index_text(const std::string& base_index, const std::vector<PlannedFile>& files) {
  Json index = base_index.empty() ? Json::object()
                                  : pythonic::parse_json(safetensors::read_text_file(base_index, ErrorCode::IX_FORM),
                                                         base_index, ErrorCode::IX_FORM);
  std::map<std::string, std::string> places;
  std::uint64_t bytes = 0, parameters = 0;
  for (const PlannedFile& file : files) {
    for (const PlannedTensor& tensor : file.tensors) {
      places[tensor.name] = file.name;
      bytes += elements(tensor) * static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8;
      parameters += elements(tensor);
    }
  }
  Json metadata =
      index.contains("metadata") && index.at("metadata").is_object() ? index.at("metadata") : Json::object();
  if (metadata.contains("total_parameters")) metadata["total_parameters"] = parameters;
  metadata["total_size"] = bytes;
  Json map = Json::object();
  for (const auto& [tensor, file] : places) map[tensor] = file;
  index["metadata"] = std::move(metadata);
  index["weight_map"] = std::move(map);
  return pythonic::dump_python(index, 2, true) + "\n";
}

}  // namespace peft::merging
