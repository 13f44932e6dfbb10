// C++ exceptions as Python's: peft::Error becomes the class that peft_cpp.errors has for its code.
#include "module.h"
#include "peft/error.h"
#include "values.h"

namespace peft::python {
namespace {

void raise(const Error& error) {
  try {
    const ErrorDetail& detail = error.detail();
    const nb::object make = nb::module_::import_("peft_cpp.errors").attr("error_of");
    const nb::object exception =
        make(to_python(info(error.code()).name), to_python(std::string_view(error.what())), to_python(detail.file),
             to_python(detail.tensor), to_python(detail.problem), to_python(detail.expected), to_python(detail.got),
             to_python(detail.hint), to_python(detail.python_error));
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  } catch (nb::python_error& failure) {
    failure.restore();
  }
}

}  // namespace

void add_errors(nb::module_& module) {
  nb::register_exception_translator([](const std::exception_ptr& exception, void*) {
    try {
      std::rethrow_exception(exception);
    } catch (const Error& error) {
      raise(error);
    }
  });
  module.def("error_codes", [] {
    nb::list rows;
    for (const ErrorCodeInfo& row : error_codes())
      rows.append(nb::make_tuple(to_python(row.name), row.exit_code, to_python(row.meaning)));
    return rows;
  });
}

}  // namespace peft::python
