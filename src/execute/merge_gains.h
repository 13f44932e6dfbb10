// DoRA: what each output of a matrix is multiplied with, magnitude / norm(W + delta). Needs a pass over the matrix.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <tuple>

#include "execute/merge_tiles.h"

namespace peft::execution {

// Weights of a place before the merge: rows [row, row + rows) of its matrix as stored, one panel of columns; zeros past
// the last column.
template <class T>
void load_tile(const MergedTensor& tensor, const plan::Lattice& lattice, std::int64_t row, std::size_t rows,
               std::int64_t panel, T* tile, LineBuffer<std::byte>& bytes, Scratch& scratch);

// For outputs [first, first + count) of a place; for a swapped one all outputs at once.
template <class T>
Gains measure_gains(const MergedTensor& tensor, std::size_t place, Tiles<T>& tiles, std::int64_t first, std::int64_t count);

// Gains of whole matrices that were used last, for all threads: several units need the same ones.
class GainStore {
 public:
  using Key = std::tuple<const PlannedTensor*, std::size_t>;  // tensor, place
  // Made by the first who asks; others wait for it.
  std::shared_ptr<const Gains> get(const Key& key, const std::function<Gains()>& make);

 private:
  struct Entry {
    std::once_flag made;
    std::shared_ptr<const Gains> gains;
  };
  static constexpr std::size_t kEntries = 64;
  std::mutex mutex_;
  std::list<std::pair<Key, std::shared_ptr<Entry>>> entries_;  // the one used last in front
};

}  // namespace peft::execution
