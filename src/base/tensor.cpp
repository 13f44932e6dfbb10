#include "peft/tensor.h"

#include <array>

namespace peft {
namespace {

constexpr std::array<DtypeInfo, 23> kDtypes = {{
    {Dtype::boolean, "BOOL", 8},
    {Dtype::f4, "F4", 4},
    {Dtype::f6_e2m3, "F6_E2M3", 6},
    {Dtype::f6_e3m2, "F6_E3M2", 6},
    {Dtype::u8, "U8", 8},
    {Dtype::i8, "I8", 8},
    {Dtype::f8_e5m2, "F8_E5M2", 8},
    {Dtype::f8_e4m3, "F8_E4M3", 8},
    {Dtype::f8_e8m0, "F8_E8M0", 8},
    {Dtype::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
    {Dtype::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
    {Dtype::i16, "I16", 16},
    {Dtype::u16, "U16", 16},
    {Dtype::f16, "F16", 16},
    {Dtype::bf16, "BF16", 16},
    {Dtype::i32, "I32", 32},
    {Dtype::u32, "U32", 32},
    {Dtype::f32, "F32", 32},
    {Dtype::c64, "C64", 64},
    {Dtype::f64, "F64", 64},
    {Dtype::i64, "I64", 64},
    {Dtype::u64, "U64", 64},
    {Dtype::unknown, "unknown", 0},
}};

struct TorchName {
  std::string_view name;
  Dtype dtype;
};

constexpr TorchName kTorchNames[] = {
    {"bool", Dtype::boolean},
    {"float4_e2m1fn_x2", Dtype::f4},
    {"uint8", Dtype::u8},
    {"int8", Dtype::i8},
    {"float8_e5m2", Dtype::f8_e5m2},
    {"float8_e4m3fn", Dtype::f8_e4m3},
    {"float8_e8m0fnu", Dtype::f8_e8m0},
    {"float8_e4m3fnuz", Dtype::f8_e4m3fnuz},
    {"float8_e5m2fnuz", Dtype::f8_e5m2fnuz},
    {"int16", Dtype::i16},
    {"short", Dtype::i16},
    {"uint16", Dtype::u16},
    {"float16", Dtype::f16},
    {"half", Dtype::f16},
    {"bfloat16", Dtype::bf16},
    {"int32", Dtype::i32},
    {"int", Dtype::i32},
    {"uint32", Dtype::u32},
    {"float32", Dtype::f32},
    {"float", Dtype::f32},
    {"complex64", Dtype::c64},
    {"cfloat", Dtype::c64},
    {"float64", Dtype::f64},
    {"double", Dtype::f64},
    {"int64", Dtype::i64},
    {"long", Dtype::i64},
    {"uint64", Dtype::u64},
};

}  // namespace

// The last row, `unknown`, is not a dtype of the format.
std::span<const DtypeInfo> dtypes() { return std::span(kDtypes).first(kDtypes.size() - 1); }

const DtypeInfo& info(Dtype dtype) { return kDtypes[static_cast<std::size_t>(dtype)]; }

std::optional<Dtype> parse_dtype(std::string_view name) {
  for (const DtypeInfo& row : dtypes()) {
    if (row.name == name) return row.dtype;
  }
  constexpr std::string_view kPrefix = "torch.";
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  for (const TorchName& row : kTorchNames) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace peft
