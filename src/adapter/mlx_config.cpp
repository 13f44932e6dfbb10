#include "adapter/mlx_config.h"

#include <cmath>

#include "peft/error.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"

namespace peft::adapter {
namespace {

using pythonic::Json;

constexpr std::int64_t kMaxRank = 1 << 20;

double number_at(const Json& object, const char* key, const std::string& path) {
  const auto found = object.find(key);
  if (found != object.end() && found->is_number() && std::isfinite(found->get<double>())) return found->get<double>();
  at(path, key).fail(ErrorCode::CF_VALUE, {.problem = "lora_parameters of MLX-LM need this",
                                           .expected = "a finite number",
                                           .got = found == object.end() ? "nothing" : found->dump().substr(0, 80)});
}

const Json& parameters_of(const Json& config, const std::string& path) {
  const auto found = config.find("lora_parameters");
  if (found != config.end() && found->is_object()) return *found;
  at(path, "lora_parameters")
      .fail(ErrorCode::CF_FORM, {.problem = "no config of MLX-LM, although adapters.safetensors is one of its files",
                                 .expected = "an object with rank and scale"});
}

void require_lora(const Json& config, const std::string& path) {
  const auto type = config.find("fine_tune_type");
  if (type == config.end() || *type == "lora") return;
  at(path, "fine_tune_type")
      .fail(ErrorCode::CF_UNSUP, {.problem = "only LoRA adapters of MLX-LM are read",
                                  .expected = "lora",
                                  .got = type->is_string() ? type->get<std::string>() : type->dump().substr(0, 80),
                                  .hint = "fuse the adapter with mlx_lm.fuse"});
}

}  // namespace

void read_mlx_config(Adapter& adapter, const std::string& path) {
  const std::string text = safetensors::read_text_file(path);
  const Json config = pythonic::parse_json(text, path);
  if (!config.is_object()) at(path).fail(ErrorCode::CF_FORM, {.problem = "not a JSON object"});
  require_lora(config, path);
  const Json& parameters = parameters_of(config, path);
  const double rank = number_at(parameters, "rank", path);
  if (rank < 1 || rank > kMaxRank || rank != std::floor(rank)) {
    at(path, "rank")
        .fail(ErrorCode::CF_RANK,
              {.problem = "not a rank", .expected = "a positive integer", .got = parameters.at("rank").dump()});
  }
  double scale = number_at(parameters, "scale", path);
  if (parameters.contains("alpha") && !config.contains("fine_tune_type"))
    scale *= number_at(parameters, "alpha", path) / rank;

  Json peft = {{"peft_type", "LORA"}, {"r", static_cast<std::int64_t>(rank)}, {"lora_alpha", scale * rank}};
  if (const auto model = config.find("model"); model != config.end() && model->is_string())
    peft["base_model_name_or_path"] = *model;
  adapter.form = AdapterForm::mlx;
  adapter.config = AdapterConfig::parse(pythonic::dump_python(peft), path);
  adapter.scale = scale;
}

std::string write_mlx_config(const AdapterConfig& source, std::int64_t rank, double scale, std::int64_t num_layers,
                             const std::vector<std::string>& keys) {
  Json config = {{"fine_tune_type", "lora"},
                 {"num_layers", num_layers},
                 {"lora_parameters", {{"rank", rank}, {"scale", scale}, {"dropout", 0.0}, {"keys", keys}}}};
  if (source.base_model_name_or_path) config["model"] = *source.base_model_name_or_path;
  return pythonic::dump_python(config, 4);
}

}  // namespace peft::adapter
