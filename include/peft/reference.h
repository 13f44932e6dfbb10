// A plan carried out in the simplest way, in memory: the form that tests compare execute() with, and the form to use
// where a result is small and no file is wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "peft/plan.h"

namespace peft {

// One byte image per planned file, made element by element, with none of the machinery of execute(). Merged tensors are
// an exception: they are made as execute() makes them, and Evaluator is what they compare with.
std::vector<std::vector<std::byte>> execute_in_memory(const Plan& plan);

// What a planned tensor's values are, computed in fp64 and not rounded: the reference for merges. Slow and simple.
// Several adapters as in MergeMode::best, whatever the plan's mode: all are added, DoRA norms are those of the unmerged
// W. One thread at a time.
class Evaluator {
 public:
  // The plan must outlive it. With DoRA this reads the whole tensor, to know its norms.
  Evaluator(const Plan& plan, std::size_t file, std::size_t tensor);
  ~Evaluator();
  Evaluator(Evaluator&&) noexcept;
  Evaluator& operator=(Evaluator&&) noexcept;

  // Rows [first, first + count) of the tensor's matrix, row after row: what the blocks hold, converted to base_dtype;
  // and with all updates.
  std::vector<double> base(std::int64_t first, std::int64_t count) const;
  std::vector<double> merged(std::int64_t first, std::int64_t count) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace peft
