// One path of a `peft convert` command.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/convert.h"
#include "peft/error.h"
#include "peft/plan.h"

namespace peft::cli {

// What a file without experts is: there is no layout to tell.
inline constexpr std::string_view kDense = "dense";

struct Conversion {
  std::string path = {}, out = {};
  std::string from = {};                   // layouts read, joined with ", "
  std::vector<std::string> adapters = {};  // names inside the folder
  std::size_t tensors_in = 0, tensors_out = 0;
  std::vector<std::string> notes = {};   // what is unusual about the input
  std::vector<std::string> unused = {};  // tensors that --ignore-unused left out, and why
  Plan plan = {};
  std::optional<ExecuteReport> done = {};  // absent: only planned
  std::optional<Error> error = {};
};

// Reads and plans all adapters of `path` that the command asks for. Nothing is written.
Conversion plan_conversion(const ConvertCommand& command, const std::string& path, const std::string& out);
// Carries the plan out, with a progress bar on a terminal and Ctrl-C caught.
void execute_conversion(const ConvertCommand& command, Conversion& conversion);

}  // namespace peft::cli
