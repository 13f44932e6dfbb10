// LoRA factors as the kernels read them: widened, and laid out so that every load is of whole lines.
#pragma once

#include <cstddef>
#include <cstdint>

#include "execute/merge_gather.h"
#include "execute/merge_kernel.h"
#include "peft/plan.h"

namespace peft::execution {

// The factors of an update as its matrix lies in the tensor: left(i, k) for its rows, right(k, j) for its columns.
struct Sides {
  View left, right;  // [rows, rank], [rank, columns]; a left or right without rows stands for ones
  std::int64_t rank = 0;
};
Sides sides_of(const Update& update, bool swapped);

// A source without data stands for ones. Rows [first, first + rows) of `left`: out[i * rank + k]. norms[i], if wanted:
// an upper bound of the row's norm.
template <class T>
void pack_left(const FactorSource& source, std::int64_t rank, std::int64_t first, std::size_t rows, T* out,
               float* norms);
// Columns [panel * kPanel, ...) of `right`: out[k * kPanel + j], zeros past the last. Returns a bound of the columns'
// norms.
template <class T>
float pack_right(const FactorSource& source, std::int64_t rank, std::int64_t cols, std::int64_t panel, T* out);

// The same for two bf16 factors in words of two elements (see merge_pairs.h), where has_pair_products(). `safe` becomes
// false where an element is too small for them.
bool can_pair(const Plan& plan, const Sides& sides);
void pair_left(const FactorSource& source, std::int64_t rank, std::int64_t first, std::size_t rows, std::uint32_t* out,
               float* norms, bool& safe);
float pair_right(const FactorSource& source, std::int64_t rank, std::int64_t cols, std::int64_t panel,
                 std::uint32_t* out, bool& safe);

}  // namespace peft::execution
