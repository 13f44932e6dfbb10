// use_bdlora of a config: which factor of a target is block-diagonal.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "peft/config.h"

namespace peft::model {

enum class BlockSide : std::uint8_t { none, a, b };

struct BlockDiagonal {
  std::vector<std::string> of_a, of_b;  // parts of names
  std::int64_t count = 1;
  bool strict = true;  // every target must have one of the two

  // CF_TARGET where PEFT raises.
  BlockSide side_of(const std::string& target) const;
};

// Nothing where the config has none, or the version knows none.
std::optional<BlockDiagonal> block_diagonal(const AdapterConfig& config, AdapterConfig::Version version);

}  // namespace peft::model
