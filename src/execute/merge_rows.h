// Rows of a place with one update and nothing else to do, from the weights as they were to those that are written.
#pragma once

#include "execute/line_buffer.h"
#include "execute/merge_strip.h"
#include "execute/merge_target.h"

namespace peft::execution {

bool is_strip(const MergedTensor& tensor, const Tiles<float>& tiles);

// Rows [row, row + rows) of those taken, the first of which is `first`; columns [begin, end), of one panel or all that
// are packed. One thread's.
struct StripPlace {
  std::int64_t first = 0, row = 0;
  std::size_t rows = 0;
  std::int64_t begin = 0, end = 0;
};
class StripMerger {
 public:
  // False when a result is not finite. Nothing is done, and that told, where products need more care.
  std::optional<bool> run(const MergedTensor& tensor, Tiles<float>& tiles, const MergeTarget& target,
                          const StripPlace& place, MergeError& error);

 private:
  void mend(const Strip& strip, Dtype dtype, const StripPlace& place, const Tiles<float>& tiles) const;
  void sample(const Strip& strip, Dtype dtype, const StripPlace& place, const Tiles<float>& tiles,
              MergeError& error) const;

  LineBuffer<std::byte> kept_, made_;
  std::vector<float> limits_;
  std::vector<std::uint64_t> suspects_;
};

}  // namespace peft::execution
