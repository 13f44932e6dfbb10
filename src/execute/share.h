// Which files of an output one of several machines writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace peft::execution {

// The indexes of part `part` (1 to `parts`), ascending. Every file is in exactly one part; the parts' bytes are
// balanced: the largest file not yet given goes to the part that has least.
std::vector<std::size_t> share_of(std::span<const std::uint64_t> sizes, int part, int parts);

}  // namespace peft::execution
