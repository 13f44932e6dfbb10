// Factors whose elements lie far apart, as one expert's lora_B of a fused layout does: neighbours are read together,
// since they are in the same cache lines, and kept for those who come next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "execute/kernels/line_buffer.h"
#include "execute/kernels/pack_factors.h"
#include "execute/merge/inputs/shared_store.h"
#include "peft/plan.h"

namespace peft::execution {

// What is read together.
struct GatherGroup {
  const std::byte* first = nullptr;  // element of the first neighbour, in the file
  std::int64_t count = 0, step = 0;  // elements of each, bytes from one to the next
  std::int64_t neighbours = 0;
  auto operator<=>(const GatherGroup&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 mistakes it
};
// None, where elements lie close together. `in_turn`: how many views are asked for in turn; all their groups have to
// fit.
std::optional<GatherGroup> group_of(const Plan& plan, const View& view, std::size_t in_turn);
// Both factors of each update.
constexpr std::size_t views_in_turn(std::size_t updates) { return 2 * updates; }

class GatherStore {
 public:
  // As source_of(), or the view's elements without gaps. The groups of `in_turn` views are kept.
  FactorSource open(const Plan& plan, const View& view, std::size_t in_turn);

  // Groups gathered so far, and what they took at once.
  struct Use {
    std::size_t groups = 0, buffers = 0;
  };
  Use use() const;

 private:
  using Elements = LineBuffer<std::byte>;  // one neighbour after the other
  // Memory that is used again: freed blocks this large leave malloc's heaps in pieces, or go back to the system, which
  // hands their pages out anew.
  struct Spare {
    std::mutex mutex;
    std::vector<Elements> buffers;
    Use use;
  };
  // Gives its memory back.
  class Lent {
   public:
    explicit Lent(std::shared_ptr<Spare> spare);
    ~Lent();
    Lent(Lent&&) noexcept = default;
    Elements elements;

   private:
    std::shared_ptr<Spare> spare_;
  };
  Lent gather(const GatherGroup& group, std::int64_t element_size) const;

  std::shared_ptr<Spare> spare_ = std::make_shared<Spare>();
  SharedStore<GatherGroup, Lent> groups_{2};
};

}  // namespace peft::execution
