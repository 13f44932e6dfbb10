// Single elements and rows of them, from one floating-point type to another.
#pragma once

#include <cstddef>

#include "peft/tensor.h"

namespace peft::execution {

// Exact. NaN loses its payload. Floating-point types only (is_float).
double load_element(Dtype dtype, const std::byte* from);

// Rounds once, to nearest even. False when a finite value became infinite or NaN.
bool store_element(Dtype dtype, double value, std::byte* to);

// `count` elements side by side, times `scale`. False when one of them overflowed; the row is then half done.
bool convert_row(Dtype from_dtype, const std::byte* from, std::size_t count, double scale, Dtype to_dtype,
                 std::byte* to);

}  // namespace peft::execution
