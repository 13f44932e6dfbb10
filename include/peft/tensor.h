// Element types, tensor descriptions and strided views. Nothing here owns tensor bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace peft {

// The dtypes of the safetensors format, in the order of its Rust enum: files list tensors by
// descending dtype, then by name. `unknown` stands for names this version does not know.
enum class Dtype : std::uint8_t {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
  unknown,
};

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;  // as in a safetensors header: "BF16"
  int bits;               // of one element; 0 for unknown
};

std::span<const DtypeInfo> dtypes();
const DtypeInfo& info(Dtype dtype);
std::optional<Dtype> parse_dtype(std::string_view name);  // "BF16"; also "bfloat16", "float32", ... as torch says it

// One tensor of a file. Names and shapes live as long as the file object they come from.
struct TensorInfo {
  std::string_view name;
  Dtype dtype = Dtype::unknown;
  std::string_view dtype_name;  // as in the header; tells more than `dtype` when that is unknown
  std::span<const std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // byte range in the file's data section

  std::uint64_t bytes() const { return end - begin; }
};

// A matrix inside a tensor: element (i, j) is element offset + i * row_stride + j * col_stride of the tensor.
// Every layout of LoRA factors is such a view; a stride of 0 repeats.
struct View {
  std::uint32_t source = 0;  // which of a plan's sources
  std::uint32_t tensor = 0;  // index into that source's tensors()
  std::int64_t offset = 0;   // all in elements
  std::int64_t rows = 0, cols = 0;
  std::int64_t row_stride = 0, col_stride = 0;

  bool operator==(const View&) const = default;
  View transposed() const { return {source, tensor, offset, cols, rows, col_stride, row_stride}; }
  // rows first, first + step, ... (`count` of them)
  View row_range(std::int64_t first, std::int64_t count, std::int64_t step = 1) const {
    return {source, tensor, offset + first * row_stride, count, cols, row_stride * step, col_stride};
  }
  View col_range(std::int64_t first, std::int64_t count, std::int64_t step = 1) const {
    return transposed().row_range(first, count, step).transposed();
  }
};

}  // namespace peft
