// Rows of a place with one update and nothing else to do, from the weights as they were to those that are written.
#pragma once

#include "execute/kernels/line_buffer.h"
#include "execute/kernels/strip.h"
#include "execute/merge/tile_merger.h"

namespace peft::execution {

bool is_strip(const MergedTensor& tensor, const UpdateProducts<float>& products);

// Rows [row, row + rows) of those taken, the first of which is `first`; columns [begin, end), of one panel or all that
// are packed. One thread's.
struct StripArea {
  std::int64_t first = 0, row = 0;
  std::size_t rows = 0;
  std::int64_t begin = 0, end = 0;
};
class StripMerger {
 public:
  // False when a result is not finite. Nothing is done, and that told, where products need more care.
  std::optional<bool> run(const MergedTensor& tensor, UpdateProducts<float>& products, const AreaRows& target,
                          const StripArea& place, MergeError& error);

 private:
  void recompute_exact(const Strip& strip, Dtype dtype, const StripArea& place, const UpdateProducts<float>& products) const;
  void sample(const Strip& strip, Dtype dtype, const StripArea& place, const UpdateProducts<float>& products,
              MergeError& error) const;

  LineBuffer<std::byte> kept_, made_;
  std::vector<float> limits_;
  std::vector<std::uint64_t> cancelled_;
};

}  // namespace peft::execution
