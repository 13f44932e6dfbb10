// The steps of parse_header().
#pragma once

#include <simdjson.h>

#include <array>
#include <string>
#include <string_view>

#include "peft/error.h"
#include "safetensors/header.h"

namespace peft::safetensors {

// Odd but accepted things that may happen once for each tensor: counted, and told in one line.
struct Oddity {
  std::uint64_t count = 0;
  std::string first;  // the tensor, and the odd thing
  void add(std::string_view tensor, std::string_view thing);
};

struct EntryContext {
  const FileFacts& file;
  std::pmr::memory_resource& memory;
  Oddity unknown_fields{}, unknown_dtypes{};
  // Tensors of one file have few shapes: the last ones are shared, not stored again.
  std::array<std::span<const std::int64_t>, 8> recent_shapes{};
  std::size_t next_shape = 0;
  const DtypeInfo* last_dtype = nullptr;  // most tensors have the dtype of the one before
};

// header_entry.cpp: one tensor's {dtype, shape, data_offsets}. `name` lives in the context's memory already.
TensorInfo parse_entry(std::string_view name, simdjson::dom::element value, EntryContext& context);
std::string_view copy_text(std::string_view text, std::pmr::memory_resource& memory);
std::string_view type_name(simdjson::dom::element value);  // "a string", "null", ...
// Throws ST_DUP when an object anywhere inside `value` has a key twice.
void require_distinct_keys(simdjson::dom::element value, std::string_view tensor, const FileFacts& file);

// header_coverage.cpp: sorts by (begin, end, name); every byte of the data section must belong to one tensor.
void sort_by_offset(std::span<TensorInfo> tensors);
void require_exact_coverage(std::span<const TensorInfo> tensors, std::uint64_t data_offset, const FileFacts& file,
                            const OpenOptions& options, std::vector<std::string>& notes);

// header_fault.cpp: says where and why `json`, which the parser refused, is wrong.
[[noreturn]] void explain_json_fault(std::string_view json, std::string_view parser_message, const FileFacts& file);
// Throws for a -0 outside of strings: simdjson makes it 0, the Rust library refuses it.
void refuse_negative_zero(std::string_view json, const FileFacts& file);

}  // namespace peft::safetensors
