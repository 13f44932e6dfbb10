// What of a new adapter's LoraConfig is not implemented. Never silent: a value that would change the result is refused
// by name. What an adapter's file says is looked at when it is read.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "config/peft_rules.h"
#include "nn/lora/impl.h"
#include "peft/error.h"

namespace peft::nn {

void require_supported(const AdapterConfig& config) { require_usable(config, Verb::create); }

void require_language_model(const AdapterConfig& config) {
  const auto heads = config::task_heads(config);
  if (heads.empty()) return;
  throw Error(ErrorCode::CF_UNSUP,
              {.file = config.file,
               .tensor = "task_type",
               .problem = fmt::format("the adapter has a head of its own ({}), which a language model has no place for",
                                      fmt::join(heads, ", ")),
               .expected = "CAUSAL_LM",
               .got = *config.task_type,
               .hint = "run it on its own class with PEFT; peft inspect, convert and merge read it"});
}

}  // namespace peft::nn
