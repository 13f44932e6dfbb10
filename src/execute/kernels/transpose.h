// The one kernel behind fusing and unfusing experts: a transpose between rows that lie anywhere in memory.
#pragma once

#include <cstddef>
#include <span>

namespace peft::execution {

// out_rows[j][i] = in_rows[i][j] for elements of 1, 2, 4 or 8 bytes.
//
//   fuse    in_rows = one pointer per expert, out_rows = one pointer per (row, rank)
//   unfuse  in_rows = one pointer per (row, rank), out_rows = one pointer per expert
//
// * Reads out_rows.size() elements of each input row, and writes in_rows.size() elements of each output row. Some are
//   written twice, with the same value.
// * Rows may start at any address. Input rows may overlap each other; an output row must not overlap another row.
// * Elements are moved as bits: NaN payloads and signs of zero stay.
void transpose(std::span<const std::byte* const> in_rows, std::span<std::byte* const> out_rows,
               std::size_t element_size);

// The same as two plain loops, for tests.
void transpose_scalar(std::span<const std::byte* const> in_rows, std::span<std::byte* const> out_rows,
                      std::size_t element_size);

}  // namespace peft::execution
