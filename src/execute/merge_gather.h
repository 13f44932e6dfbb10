// Factors whose elements lie far apart, as one expert's lora_B of a fused layout does: neighbours are read together,
// since they are in the same cache lines, and kept for those who come next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "execute/line_buffer.h"
#include "execute/shared_store.h"
#include "peft/plan.h"

namespace peft::execution {

// A matrix of elements in memory; strides in bytes. Without data it stands for ones.
struct FactorSource {
  const std::byte* data = nullptr;
  Dtype dtype = Dtype::f32;
  std::int64_t row_stride = 0, col_stride = 0;
  std::shared_ptr<const void> owner{};  // of the data, if it is not a file's
};
FactorSource source_of(const Plan& plan, const View& view);

class GatherStore {
 public:
  // As source_of(), or the view's elements without gaps. `in_turn`: how many views are asked for in turn; all of them
  // are kept.
  FactorSource open(const Plan& plan, const View& view, std::size_t in_turn);

 private:
  struct Key {
    const std::byte* first = nullptr;  // of the first neighbour, in the file
    std::int64_t count = 0, step = 0;  // elements of each, bytes from one to the next
    std::int64_t neighbours = 0;
    bool operator==(const Key&) const = default;
  };
  using Elements = LineBuffer<std::byte>;  // one neighbour after the other
  static Elements gather(const Key& key, std::int64_t element_size);

  SharedStore<Key, Elements> groups_{4};
};

}  // namespace peft::execution
