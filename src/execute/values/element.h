// Single elements of tensors and rows of them: reading, rounding, converting.
#pragma once

#include <cstddef>
#include <cstdint>

#include "peft/plan.h"
#include "peft/tensor.h"

namespace peft::execution {

// The first byte of a view's element (0, 0), and the size of an element in bytes (0 for dtypes below a byte).
const std::byte* first_byte(const Plan& plan, const View& view);
std::int64_t element_size(Dtype dtype);

// Exact. NaN loses its payload. Floating-point types only (is_float).
double load_element(Dtype dtype, const std::byte* from);

// Rounds once, to nearest even. Returns false if a finite value became infinite or NaN.
bool store_element(Dtype dtype, double value, std::byte* to);

// Converts `count` elements and multiplies them by `scale`. Returns false at the first overflow; the rest is not
// written then.
bool convert_row(Dtype from_dtype, const std::byte* from, std::size_t count, double scale, Dtype to_dtype,
                 std::byte* to);

// Single values as fp64. Slow: for tests, the reference and error messages.
double value_at(const Plan& plan, const View& view, std::int64_t row, std::int64_t col);

double rounded_to(Dtype dtype, double value);

}  // namespace peft::execution
