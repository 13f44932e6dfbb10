// Conversion for an engine: the layout, the names and the scales that it reads right, and how it is started.
#pragma once

#include <string>
#include <vector>

#include "peft/verbs.h"

namespace peft {

struct EngineConversion {
  Plan plan;
  std::string engine, version, mode;  // "vllm", "0.33", "" or a way of running
  std::string layout, why;            // what is written, and why this form where that is not plain
  std::vector<std::string> run;       // lines to copy: how the engine is started with the adapter
};
// `engine` is "vllm" or "vllm@0.33"; `out` is where the plan will be written, for the lines. options.to is not used.
// Throws USAGE for an engine or version that is not known, and LO_NO_FORM with a way out for what the engine reads
// right in no form.
EngineConversion plan_convert_for(const Input& input, const ConvertOptions& options, const std::string& engine,
                                  const std::string& out);

}  // namespace peft
