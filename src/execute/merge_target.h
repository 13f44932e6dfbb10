// One tile from the weights as they were to the weights as they are written.
#pragma once

#include "execute/merge_tiles.h"
#include "peft/execute.h"

namespace peft::execution {

// Where the rows of an area are, before and after.
struct MergeTarget {
  Rectangle area;
  BaseRows base;
  std::byte* out = nullptr;
  std::int64_t out_pitch = 0;
};

// One tile of an opened place: rows [row, row + rows) of those taken, the first of which is `first`; of the panel's
// columns [begin, end). False when a result is not finite.
struct TilePlace {
  std::int64_t first = 0, row = 0;
  std::size_t rows = 0;
  std::int64_t panel = 0;
  std::size_t begin = 0, end = 0;
};
template <class T>
bool merge_tile(const MergedTensor& tensor, Tiles<T>& tiles, const Gains& gains, const MergeTarget& target,
                const TilePlace& place, T* weights, MergeError& error);

}  // namespace peft::execution
