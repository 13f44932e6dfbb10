// The extension module: its parts, the version and the command line.
#include "module.h"

#include "cli/arguments.h"
#include "peft/version.h"
#include "values.h"

NB_MODULE(_core, module) {
  namespace nb = nanobind;
  using namespace peft::python;
  nb::set_leak_warnings(false);  // tensors of torch outlive the interpreter, and with them the memory of results
  module.attr("__version__") = PEFT_VERSION;
  add_errors(module);
  add_files(module);
  add_state_dicts(module);
  add_factors(module);
  module.def("run_program", [](const nb::list& arguments) {
    std::vector<std::string> texts;
    for (const nb::handle argument : arguments) texts.push_back(to_text(argument, "argv"));
    const nb::gil_scoped_release unlocked;
    return peft::cli::run_program(std::move(texts));
  });
}
