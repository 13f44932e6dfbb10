#include "cli/convert_job.h"

#include <unistd.h>

#include <algorithm>

#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/progress_bar.h"

namespace peft::cli {
namespace {

// The adapters to convert, each with its subfolder in the output. --adapter-name takes one out, to the top.
std::vector<std::pair<std::string, std::string>> choose_adapters(const std::string& path, const std::string& wanted) {
  if (!wanted.empty()) return {{wanted, ""}};
  const auto names = adapter_names(resolve_path(path));
  if (names.size() < 2) return {{"", ""}};
  std::vector<std::pair<std::string, std::string>> chosen;
  for (const auto& name : names) {
    if (name == "default") {
      chosen.emplace_back("", "");
    } else {
      chosen.emplace_back(name, name);
    }
  }
  return chosen;
}

}  // namespace

Conversion plan_conversion(const ConvertCommand& command, const std::string& path, const std::string& out) {
  Conversion conversion{.path = path, .out = out};
  ConvertOptions options;
  options.input = command.input.options();
  options.input.read.verb = Verb::convert;
  options.input.read.threads = command.execute.threads;
  options.to = parse_layout_flag("--to", command.to);
  if (!command.dtype.empty()) options.dtype = parse_dtype_flag("--dtype", command.dtype);
  options.block_diagonal = command.block_diagonal;

  for (const auto& [name, folder] : choose_adapters(path, options.input.adapter_name)) {
    options.input.adapter_name = name;
    const Input input = load(path, options.input);
    const std::string layout(input.reading.has_experts ? info(input.reading.layout).name : kDense);
    if (conversion.from.find(layout) == std::string::npos)
      conversion.from += (conversion.from.empty() ? "" : ", ") + layout;
    conversion.adapters.push_back(name.empty() ? "default" : name);
    conversion.tensors_in += input.adapter.weights->tensors().size();
    for (const auto& anomaly : input.reading.anomalies) {
      conversion.notes.push_back(folder.empty() ? anomaly : folder + ": " + anomaly);
    }
    for (const auto& text : input.reading.unused)
      conversion.unused.push_back(folder.empty() ? text : folder + ": " + text);
    append(conversion.plan, plan_convert(input, options), folder);
  }
  for (const auto& file : conversion.plan.files) conversion.tensors_out += file.tensors.size();
  return conversion;
}

void execute_conversion(const ConvertCommand& command, Conversion& conversion) {
  const InterruptGuard interrupt;
  ProgressBar bar(!command.quiet && is_smart_terminal(STDERR_FILENO));
  ExecuteOptions options = command.execute;
  options.cancel = interrupt.flag();
  options.progress = [&bar](std::uint64_t done, std::uint64_t total) { bar.update(done, total); };
  conversion.done = execute(conversion.plan, conversion.out, options);
}

}  // namespace peft::cli
