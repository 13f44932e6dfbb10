// Arrays of other libraries, by way of DLPack; and the names of dtypes.
#include <fmt/format.h>
#include <nanobind/ndarray.h>

#include <cstring>

#include "buffer.h"
#include "peft/error.h"
#include "peft/tensor.h"
#include "values.h"

namespace peft::python {
namespace {

using Code = nb::dlpack::dtype_code;

struct Row {
  Dtype dtype;
  Code code;
  std::uint8_t bits;
};
constexpr Row kRows[] = {
    {Dtype::boolean, Code::Bool, 8}, {Dtype::u8, Code::UInt, 8},      {Dtype::i8, Code::Int, 8},
    {Dtype::i16, Code::Int, 16},     {Dtype::u16, Code::UInt, 16},    {Dtype::f16, Code::Float, 16},
    {Dtype::bf16, Code::Bfloat, 16}, {Dtype::i32, Code::Int, 32},     {Dtype::u32, Code::UInt, 32},
    {Dtype::f32, Code::Float, 32},   {Dtype::c64, Code::Complex, 64}, {Dtype::f64, Code::Float, 64},
    {Dtype::i64, Code::Int, 64},     {Dtype::u64, Code::UInt, 64},
};

// As torch, numpy and ml_dtypes say it.
constexpr const char* kLongNames[] = {"bool",
                                      "float4_e2m1fn_x2",
                                      "uint8",
                                      "int8",
                                      "float8_e5m2",
                                      "float8_e4m3fn",
                                      "float8_e8m0fnu",
                                      "float8_e4m3fnuz",
                                      "float8_e5m2fnuz",
                                      "int16",
                                      "uint16",
                                      "float16",
                                      "bfloat16",
                                      "int32",
                                      "uint32",
                                      "float32",
                                      "complex64",
                                      "float64",
                                      "int64",
                                      "uint64"};

std::string long_name(const std::string& name) {
  const auto dtype = parse_dtype(name);
  for (const char* known : kLongNames) {
    if (dtype && parse_dtype(known) == dtype) return known;
  }
  return name;
}

// An array that was handed over. It is kept until the work is done.
struct Imported {
  nb::ndarray<nb::ro> array;
  std::shared_ptr<Memory> copy;  // of an array with gaps
  Dtype dtype = Dtype::f32;
};

bool is_contiguous(const nb::ndarray<nb::ro>& array) {
  std::int64_t step = 1;
  for (std::size_t d = array.ndim(); d-- > 0;) {
    if (array.shape(d) != 1 && array.stride(d) != step) return false;
    step *= static_cast<std::int64_t>(array.shape(d));
  }
  return true;
}

// Row after row, element by element.
void copy_elements(const nb::ndarray<nb::ro>& array, std::size_t dimension, const std::byte* from, std::byte*& to) {
  const std::size_t width = array.itemsize();
  if (dimension == array.ndim()) {
    std::memcpy(to, from, width);
    to += width;
    return;
  }
  for (std::size_t i = 0; i < array.shape(dimension); ++i) {
    copy_elements(array, dimension + 1,
                  from + static_cast<std::int64_t>(i) * array.stride(dimension) * static_cast<std::int64_t>(width), to);
  }
}

Imported import_dlpack(const nb::object& value, const std::string& name) {
  Imported imported;
  if (!nb::try_cast(value, imported.array))
    at({}, name).fail(ErrorCode::USAGE, {.problem = "the array cannot be handed over by DLPack"});
  if (imported.array.device_type() != nb::device::cpu::value)
    at({}, name).fail(ErrorCode::USAGE, {.problem = "the array is not in the memory of the CPU"});
  const nb::dlpack::dtype dtype = imported.array.dtype();
  const Row* found = nullptr;
  for (const Row& row : kRows) {
    if (static_cast<std::uint8_t>(row.code) == dtype.code && row.bits == dtype.bits && dtype.lanes == 1) found = &row;
  }
  if (found == nullptr) {
    at({}, name).fail(ErrorCode::ST_DTYPE,
                      {.problem = "safetensors has no such dtype",
                       .got = fmt::format("DLPack code {}, {} bits, {} lanes", dtype.code, dtype.bits, dtype.lanes)});
  }
  imported.dtype = found->dtype;
  if (imported.array.size() != 0 && !is_contiguous(imported.array)) {
    imported.copy = std::make_shared<Memory>(imported.array.nbytes());
    std::byte* to = imported.copy->bytes().data();
    copy_elements(imported.array, 0, static_cast<const std::byte*>(imported.array.data()), to);
  }
  return imported;
}

nb::object export_dlpack(const nb::object& buffer, const std::string& dtype, const nb::tuple& shape,
                         std::uint64_t offset) {
  const auto known = parse_dtype(dtype);
  std::vector<std::size_t> sizes;
  for (const nb::handle dimension : shape) sizes.push_back(nb::cast<std::size_t>(dimension));
  for (const Row& row : kRows) {
    if (row.dtype != known) continue;
    const nb::dlpack::dtype type{static_cast<std::uint8_t>(row.code), row.bits, 1};
    return nb::cast(nb::ndarray<nb::array_api>(bytes_of(buffer).data() + offset, sizes.size(), sizes.data(), buffer,
                                               nullptr, type));
  }
  at({}, dtype).fail(ErrorCode::USAGE, {.problem = "DLPack has no such dtype"});
}

}  // namespace

void add_dlpack(nb::module_& module) {
  nb::class_<Imported>(module, "Imported")
      .def_prop_ro("dtype", [](const Imported& self) { return to_python(info(self.dtype).name); })
      .def_prop_ro("shape",
                   [](const Imported& self) {
                     nb::list shape;
                     for (std::size_t d = 0; d < self.array.ndim(); ++d) shape.append(self.array.shape(d));
                     return nb::tuple(shape);
                   })
      .def_prop_ro("address", [](const Imported& self) {
        return reinterpret_cast<std::uintptr_t>(self.copy ? self.copy->bytes().data() : self.array.data());
      });
  module.def("import_dlpack",
             [](const nb::object& value, const nb::str& name) { return import_dlpack(value, to_text(name, "name")); });
  module.def("export_dlpack",
             [](const nb::object& buffer, const nb::str& dtype, const nb::tuple& shape, std::uint64_t offset) {
               return export_dlpack(buffer, to_text(dtype, "dtype"), shape, offset);
             });
  // A dtype's long name ("bfloat16"), and (short name, bits) of either form.
  module.def("long_name", [](const nb::str& text) { return to_python(long_name(to_text(text, "dtype"))); });
  module.def("dtype_name", [](const nb::str& text) {
    const std::string name = to_text(text, "dtype");
    const auto dtype = parse_dtype(name);
    if (!dtype) at({}, name).fail(ErrorCode::ST_DTYPE, {.problem = "safetensors has no such dtype"});
    return nb::make_tuple(to_python(info(*dtype).name), info(*dtype).bits);
  });
}

}  // namespace peft::python
