// The parts of the extension module peft_cpp._core. The Python files of python/peft_cpp are its only caller: they check
// types, give names and defaults, and say what things are.
#pragma once

#include <nanobind/nanobind.h>

namespace peft::python {

namespace nb = nanobind;

void add_errors(nb::module_& module);
void add_files(nb::module_& module);
void add_state_dicts(nb::module_& module);
void add_factors(nb::module_& module);

}  // namespace peft::python
