// How far `fast` is from the exact sums: some rows of some panels, chosen by their place in the matrix, whatever the
// units are.
#pragma once

#include <cstddef>
#include <cstdint>

#include "execute/merge_kernel.h"
#include "peft/execute.h"

namespace peft::execution {

// How many rows after `row` the next one is that is compared in this panel.
std::size_t first_sampled(std::int64_t row, std::int64_t panel);

// Steps are elements from one result to the next. Exact sums are rounded to the base's dtype, then to the result's.
struct SampleDtypes {
  Dtype base = Dtype::bf16, out = Dtype::bf16;
};
void compare_sample(const SampleDtypes& dtypes, const double* exact, std::size_t count, const std::byte* results,
                    std::int64_t step, MergeError& error);

}  // namespace peft::execution
