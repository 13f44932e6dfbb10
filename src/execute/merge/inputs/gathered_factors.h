// Factors whose elements lie far apart in the file, such as one expert's lora_B of a fused layout. Neighbouring experts
// share cache lines. They are gathered together and kept for the units that follow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "execute/kernels/pack_factors.h"
#include "execute/merge/inputs/line_buffer.h"
#include "execute/merge/inputs/shared_store.h"
#include "peft/plan.h"

namespace peft::execution {

// Factors that are gathered together.
struct GatherGroup {
  const std::byte* first = nullptr;  // element 0 of the first neighbour, in the file
  std::int64_t count = 0, step = 0;  // elements of each neighbour; bytes from one element to the next
  std::int64_t neighbours = 0;
  auto operator<=>(const GatherGroup&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 mistakes it
};
// nullopt where elements lie close together. `in_turn`: how many views are opened in turn; all their groups must fit.
std::optional<GatherGroup> group_of(const Plan& plan, const View& view, std::size_t in_turn);
// A merge opens both factors of each update in turn.
constexpr std::size_t views_in_turn(std::size_t updates) { return 2 * updates; }

class GatherStore {
 public:
  // Returns source_of(view), or a gathered copy whose elements have no gaps. Keeps the groups of the last `in_turn`
  // views.
  FactorSource open(const Plan& plan, const View& view, std::size_t in_turn);

  // Groups gathered so far, and buffers that were needed at the same time.
  struct Use {
    std::size_t groups = 0, buffers = 0;
  };
  Use use() const;

 private:
  using Elements = LineBuffer<std::byte>;  // neighbours one after the other
  // Buffers for reuse. Freed blocks of this size would fragment malloc's heaps, or go back to the system, which has to
  // clear their pages again.
  struct Spare {
    std::mutex mutex;
    std::vector<Elements> buffers;
    Use use;
  };
  // A buffer that returns to `Spare` when it is destroyed.
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
