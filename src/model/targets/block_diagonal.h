// BD-LoRA: which factor of a target is block-diagonal, by the key use_bdlora of a config.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "peft/config.h"

namespace peft::model {

enum class BlockSide : std::uint8_t { none, a, b };

struct BlockDiagonal {
  std::vector<std::string> of_a, of_b;  // parts of the names of targets
  std::int64_t count = 1;               // of blocks
  bool strict = true;                   // every target must have a block-diagonal factor

  // The block-diagonal factor of a target. Throws CF_TARGET where PEFT raises: both factors, or none although `strict`.
  BlockSide side_of(const std::string& target) const;
};

// nullopt where the config has no such key, or the PEFT version does not know it. Throws CF_VALUE for wrong types.
std::optional<BlockDiagonal> block_diagonal(const AdapterConfig& config, AdapterConfig::Version version);

}  // namespace peft::model
