// The fast path for target matrices with a single plain update: strips of rows instead of tiles.
#pragma once

#include "execute/kernels/strip.h"
#include "execute/merge/inputs/line_buffer.h"
#include "execute/merge/tile_merger.h"

namespace peft::execution {

template <class T>
bool is_strip(const MergedTensor& tensor, const UpdateProducts<T>& products);

// Rows [row, row + rows) of the rows that UpdateProducts::take_rows() took from row `first` of the matrix on; columns
// [begin, end), of one panel or of all packed panels.
struct StripArea {
  std::int64_t first = 0, row = 0;
  std::size_t rows = 0;
  std::int64_t begin = 0, end = 0;
};
class StripMerger {
 public:
  // Returns whether all results are finite, or nullopt where the fast path would be inexact; then nothing was written.
  template <class T>
  std::optional<bool> run(const MergedTensor& tensor, UpdateProducts<T>& products, const AreaRows& target,
                          const StripArea& area, MergeError& error);

 private:
  bool run_in_fp32(const MergedTensor& tensor, const UpdateProducts<float>& products,
                   const UpdateProducts<float>::Factors& factors, Strip& strip, const StripArea& area,
                   MergeError& error);
  void recompute_exact(const Strip& strip, Dtype dtype, const StripArea& area,
                       const UpdateProducts<float>& products) const;
  void sample(const Strip& strip, Dtype dtype, const StripArea& area, const UpdateProducts<float>& products,
              MergeError& error) const;

  LineBuffer<std::byte> kept_, made_;
  std::vector<float> limits_;
  std::vector<std::uint64_t> cancelled_;
};

}  // namespace peft::execution
