#include "values.h"

#include <fmt/format.h>

#include "cli/flags.h"
#include "peft/error.h"

namespace peft::python {
namespace {

[[noreturn]] void wrong_type(const char* what, const char* expected, nb::handle got) {
  const nb::object name = nb::getattr(nb::handle(reinterpret_cast<PyObject*>(Py_TYPE(got.ptr()))), "__name__");
  throw nb::type_error(fmt::format("{}: expected {}, got {}", what, expected, nb::str(name).c_str()).c_str());
}

[[noreturn]] void out_of_range(const char* name, const std::string& range, nb::handle got) {
  at({}, name).fail(ErrorCode::USAGE,
                    {.problem = "the value is out of range", .expected = range, .got = nb::str(nb::repr(got)).c_str()});
}

nb::object checked(PyObject* object) {
  if (object == nullptr) throw nb::python_error();
  return nb::steal(object);
}

// A Python int; True and False are none.
bool is_integer(nb::handle value) { return PyLong_Check(value.ptr()) != 0 && PyBool_Check(value.ptr()) == 0; }

nb::object to_index(const char* name, nb::handle value) {
  if (PyBool_Check(value.ptr()) != 0 || PyIndex_Check(value.ptr()) == 0) wrong_type(name, "int", value);
  return checked(PyNumber_Index(value.ptr()));
}

}  // namespace

std::string to_text(nb::handle value, const char* what) {
  if (nb::isinstance<nb::str>(value) || nb::isinstance<nb::bytes>(value) || nb::hasattr(value, "__fspath__")) {
    const nb::object path = checked(PyOS_FSPath(value.ptr()));
    const nb::object bytes = nb::isinstance<nb::bytes>(path) ? path : checked(PyUnicode_EncodeFSDefault(path.ptr()));
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw nb::python_error();
    const std::string text(data, static_cast<std::size_t>(size));
    if (text.find('\0') != std::string::npos)
      throw nb::value_error(fmt::format("{}: embedded null byte", what).c_str());
    return text;
  }
  wrong_type(what, "str or os.PathLike", value);
}

nb::str to_python(std::string_view text) {
  return nb::steal<nb::str>(
      checked(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape")).release());
}

nb::object json_to_python(const pythonic::Json& value) {
  using Type = pythonic::Json::value_t;
  switch (value.type()) {
    case Type::object: {
      nb::dict dict;
      for (const auto& [key, member] : value.items()) dict[to_python(key)] = json_to_python(member);
      return dict;
    }
    case Type::array: {
      nb::list list;
      for (const auto& member : value) list.append(json_to_python(member));
      return list;
    }
    case Type::string:
      return to_python(std::string_view(value.get_ref<const std::string&>()));
    case Type::boolean:
      return nb::bool_(value.get<bool>());
    case Type::number_integer:
      return nb::int_(value.get<std::int64_t>());
    case Type::number_unsigned:
      return nb::int_(value.get<std::uint64_t>());
    case Type::number_float:
      return nb::float_(value.get<double>());
    case Type::null:
    case Type::binary:
    case Type::discarded:
      break;
  }
  if (const std::string raw = pythonic::raw_number(value); !raw.empty())
    return checked(PyLong_FromString(raw.c_str(), nullptr, 10));
  return nb::none();
}

nb::object Arguments::pop(const char* name) {
  if (!values_.contains(name)) return nb::none();
  nb::object value = values_[name];
  nb::del(values_[name]);
  return value;
}

void Arguments::take(const char* name, std::string& value) {
  if (const nb::object given = pop(name); !given.is_none()) value = to_text(given, name);
}

void Arguments::take(const char* name, std::vector<std::string>& value) {
  const nb::object given = pop(name);
  if (given.is_none()) return;
  value.clear();
  if (!nb::isinstance<nb::list>(given) && !nb::isinstance<nb::tuple>(given)) {
    value.push_back(to_text(given, name));
    return;
  }
  for (const nb::handle element : given) value.push_back(element.is_none() ? "auto" : to_text(element, name));
}

void Arguments::take(const char* name, bool& value) {
  const nb::object given = pop(name);
  if (given.is_none()) return;
  if (PyBool_Check(given.ptr()) == 0) wrong_type(name, "bool", given);
  value = given.ptr() == Py_True;
}

void Arguments::take(const char* name, std::int64_t& value, std::int64_t least, std::int64_t most) {
  const nb::object given = pop(name);
  if (given.is_none()) return;
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(to_index(name, given).ptr(), &overflow);
  if (overflow != 0 || number < least || number > most) out_of_range(name, fmt::format("{} to {}", least, most), given);
  value = number;
}

void Arguments::take(const char* name, std::uint64_t& value) {
  const nb::object given = pop(name);
  if (given.is_none()) return;
  const unsigned long long number = PyLong_AsUnsignedLongLong(to_index(name, given).ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    out_of_range(name, fmt::format("0 to {}", UINT64_MAX), given);
  }
  value = number;
}

void Arguments::take(const char* name, int& value, int least, int most) {
  std::int64_t number = value;
  take(name, number, least, most);
  value = static_cast<int>(number);
}

void Arguments::take(const char* name, std::optional<double>& value) {
  const nb::object given = pop(name);
  if (given.is_none()) return;
  if (!is_integer(given) && PyFloat_Check(given.ptr()) == 0 && !nb::hasattr(given, "__float__"))
    wrong_type(name, "float", given);
  const double number = PyFloat_AsDouble(given.ptr());
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  value = number;
}

void Arguments::take(cli::InputFlags& input) {
  take("base", input.base);
  take("family", input.family);
  take("families", input.families_file);
  take("num_experts", input.num_experts, 1, 1'000'000);
  take("adapter_name", input.adapter_name);
  take("from_", input.from);
  take("orientation", input.orientation);
  take("b_packing", input.b_packing);
  take("ignore_unused", input.ignore_unused);
  take("allow_trailing_bytes", input.open.allow_trailing_bytes);
  take("follow_symlinks", input.open.follow_symlinks);
  take("max_tensors", input.open.max_tensors);
}

void Arguments::finish() const {
  for (const auto& [name, value] : values_)
    throw nb::type_error(fmt::format("unexpected keyword argument {}", nb::str(nb::repr(name)).c_str()).c_str());
}

}  // namespace peft::python
