// What of a LoraConfig is not implemented. Never silent: a value that would change the result is refused by name.
#include <array>

#include "nn/lora/impl.h"
#include "nn/lora/init.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

struct Unsupported {
  std::string_view key, why, hint;
};

constexpr std::array kUnsupported = {
    Unsupported{"alora_invocation_tokens", "activated LoRA is not implemented", "use plain LoRA"},
    Unsupported{"arrow_config", "Arrow routing between adapters is not implemented",
                "name adapters with adapter_names"},
    Unsupported{"use_bdlora", "block-diagonal LoRA is not implemented", "use plain LoRA"},
    Unsupported{"kasa_config", "KaSA is not implemented; it changes the base weights", "use plain LoRA"},
    Unsupported{"monteclora_config", "MonteCLoRA is not implemented", "use plain LoRA"},
    Unsupported{"velora_config", "VeLoRA is not implemented", "use plain LoRA"},
    Unsupported{"use_qalora", "QALoRA needs GPTQ weights, which this runtime does not load", "use plain LoRA"},
    Unsupported{"layer_replication", "layer replication is not implemented: it builds another base model",
                "write the larger model to disk first"},
    Unsupported{"megatron_config", "Megatron's parallel layers are not implemented", "leave it out"},
    Unsupported{"ensure_weight_tying", "tying of adapters on tied embeddings is not implemented",
                "trainable_token_indices follows tied embeddings by itself"},
    Unsupported{"eva_config", "EVA initialisation needs data and is not implemented", "use init_lora_weights = true"},
    Unsupported{"corda_config", "CorDA initialisation needs data and is not implemented", "use pissa"},
    Unsupported{"lora_ga_config", "LoRA-GA initialisation needs gradients and is not implemented", "use pissa"},
    Unsupported{"loftq_config", "LoftQ quantises the base and is not implemented", "use pissa"},
};

}  // namespace

void require_supported(const AdapterConfig& config) {
  for (const Unsupported& row : kUnsupported) {
    const std::string value = config.value(row.key);
    if (value.empty() || value == "null" || value == "false" || value == "{}" || value == "[]") continue;
    throw Error(ErrorCode::CF_UNSUP, {.file = config.file,
                                      .tensor = std::string(row.key),
                                      .problem = std::string(row.why),
                                      .expected = "no value",
                                      .got = value,
                                      .hint = std::string(row.hint)});
  }
}

}  // namespace peft::nn
