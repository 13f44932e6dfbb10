// What of a new adapter's LoraConfig is not implemented. Never silent: a value that would change the result is refused
// by name. What an adapter's file says is looked at when it is read.
#include "nn/lora/impl.h"

namespace peft::nn {

void require_supported(const AdapterConfig& config) { require_usable(config, Verb::create); }

}  // namespace peft::nn
