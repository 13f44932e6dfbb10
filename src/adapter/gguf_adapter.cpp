#include "adapter/gguf_adapter.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "base/text.h"
#include "gguf/gguf_file.h"
#include "gguf/header.h"
#include "peft/error.h"

namespace peft::adapter {
namespace {

namespace fs = std::filesystem;

std::string text_of(const gguf::GgufFile& file, std::string_view key) {
  const gguf::Value* value = gguf::find_value(file.values(), key);
  return std::string(value == nullptr ? std::string_view() : gguf::as_text(*value).value_or(""));
}

void require_adapter(const gguf::GgufFile& file) {
  const std::string type = text_of(file, "general.type"), kind = text_of(file, "adapter.type");
  if (type == "adapter" && kind == "lora") return;
  at(file.path())
      .fail(ErrorCode::IO_KIND,
            {.problem = type == "adapter" ? "a GGUF adapter that is no LoRA" : "a GGUF file that is no adapter",
             .expected = "general.type adapter, adapter.type lora",
             .got = type == "adapter" ? "adapter.type " + printable(kind)
                                      : "general.type " + (type.empty() ? "model" : printable(type)),
             .hint = type == "adapter" ? "" : "a model's GGUF file can be given with --gguf-base"});
}

// The rank of most adapters is one; where it is not, the tensors tell, as they do when the file is read.
std::int64_t rank_of(const gguf::GgufFile& file) {
  for (const TensorInfo& tensor : file.tensors())
    if (tensor.name.ends_with(".lora_b") && tensor.shape.size() >= 2)
      return std::max<std::int64_t>(1, tensor.shape.back());
  return 1;
}

// An adapter_config.json with what the metadata says.
AdapterConfig config_of(const gguf::GgufFile& file) {
  const std::int64_t rank = rank_of(file);
  const gguf::Value* alpha = gguf::find_value(file.values(), "adapter.lora.alpha");
  const double value = alpha == nullptr ? 0 : gguf::as_number(*alpha).value_or(0);
  std::string text = fmt::format(
      R"({{"base_model_name_or_path": null, "bias": "none", "fan_in_fan_out": false, "inference_mode": true, )"
      R"("init_lora_weights": true, "lora_alpha": {}, "lora_dropout": 0.0, "modules_to_save": null, )"
      R"("peft_type": "LORA", "r": {}, "target_modules": [], "task_type": "CAUSAL_LM", "use_rslora": false)",
      value == 0 ? fmt::format("{}", rank) : fmt::format("{}", value), rank);
  if (const gguf::Value* tokens = gguf::find_value(file.values(), "adapter.alora.invocation_tokens")) {
    text += ", \"alora_invocation_tokens\": [";
    bool first = true;
    for (const gguf::Value& token : gguf::elements(*tokens)) {
      text += (first ? "" : ", ") + std::to_string(gguf::as_unsigned(token).value_or(0));
      first = false;
    }
    text += "]";
  }
  return AdapterConfig::parse(text + "}", file.path());
}

}  // namespace

bool is_gguf(const std::string& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return false;
  std::string magic(gguf::kMagic.size(), '\0');
  std::ifstream file(path, std::ios::binary);
  return path.ends_with(".gguf") ||
         (file.read(magic.data(), static_cast<std::streamsize>(magic.size())) && magic == gguf::kMagic);
}

Adapter open_gguf(const std::string& path, const OpenOptions& options) {
  const auto file = gguf::GgufFile::open(path, options);
  require_adapter(*file);
  Adapter adapter;
  adapter.form = AdapterForm::gguf;
  adapter.folder = adapter.root = fs::path(path).parent_path().string();
  adapter.name = "default";
  adapter.follow_symlinks = options.follow_symlinks;
  adapter.config = config_of(*file);
  const auto unpacked = file->unpacked();  // factors of Q8_0 and the like, as numbers
  adapter.weights = unpacked ? unpacked : file;
  return adapter;
}

}  // namespace peft::adapter
