// What of a LoraConfig is not implemented. Never silent: a value that would change the result is refused by name.
#include <algorithm>
#include <array>

#include "nn/lora/impl.h"
#include "nn/lora/init.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

struct Unsupported {
  std::string_view key, why, hint;
  bool start = false;  // of the first values alone
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
    Unsupported{"eva_config", "EVA initialisation needs data and is not implemented", "use init_lora_weights = true",
                true},
    Unsupported{"corda_config", "CorDA initialisation needs data and is not implemented", "use pissa", true},
    Unsupported{"lora_ga_config", "LoRA-GA initialisation needs gradients and is not implemented", "use pissa", true},
    Unsupported{"loftq_config", "LoftQ quantises the base and is not implemented", "use pissa", true},
};

struct Task {
  std::string_view type, what, heads;
};

// What PEFT puts on other classes than language models, and the modules it saves with the adapter.
constexpr std::array kTasks = {
    Task{"SEQ_CLS", "sequence classification", "classifier, score"},
    Task{"TOKEN_CLS", "token classification", "classifier, score"},
    Task{"QUESTION_ANS", "question answering", "qa_outputs"},
};

}  // namespace

void require_language_model(const AdapterConfig& config) {
  const auto task =
      std::find_if(kTasks.begin(), kTasks.end(), [&](const Task& t) { return config.task_type == t.type; });
  if (task == kTasks.end()) return;
  throw Error(ErrorCode::CF_UNSUP,
              {.file = config.file,
               .tensor = "task_type",
               .problem = "the adapter is for " + std::string(task->what) + " and has a head of its own (" +
                          std::string(task->heads) + "), which a language model has no place for",
               .expected = "CAUSAL_LM",
               .got = std::string(task->type),
               .hint = "run it on its own class with PEFT; peft inspect, convert and merge read it"});
}

void require_supported(const AdapterConfig& config, bool loaded) {
  for (const Unsupported& row : kUnsupported) {
    if (loaded && row.start) continue;
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
