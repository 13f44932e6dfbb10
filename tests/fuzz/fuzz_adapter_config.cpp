// Any bytes as adapter_config.json: refused with an error of ours, or a config whose numbers can be used and whose
// dump reads back the same.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "peft/config.h"
#include "peft/error.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void use(const peft::AdapterConfig& config) {
  for (const char* name : {"", "q_proj", "model.layers.0.mlp.experts.7.w1", "lm_head"}) {
    const std::int64_t rank = config.rank_for(name);
    require(rank > 0);
    require(std::isfinite(config.alpha_for(name)));
    require(std::isfinite(config.scale_for(name, rank)));
  }
  config.likely_version();
  const std::string text = config.dump();
  require(peft::AdapterConfig::parse(text, "dump").dump() == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    use(peft::AdapterConfig::parse({reinterpret_cast<const char*>(data), size}, "fuzz"));
  } catch (const peft::Error& error) {
    require(error.code() != peft::ErrorCode::INTERNAL);
  }
  return 0;
}
