// The command line as a value.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "cli/combine.h"
#include "cli/completion.h"
#include "cli/convert.h"
#include "cli/docs.h"
#include "cli/extract.h"
#include "cli/inspect.h"
#include "cli/merge.h"
#include "cli/resize.h"
#include "cli/runtime.h"
#include "cli/tables.h"
#include "cli/targets.h"
#include "cli/verify.h"

namespace peft::cli {

struct TextCommand {  // --help, --version
  std::string text;
};
using Command = std::variant<TextCommand, InspectCommand, TargetsCommand, ConvertCommand, VerifyCommand, MergeCommand,
                             CombineCommand, ResizeCommand, ExtractCommand, LogitsCommand, GenerateCommand,
                             ParamsCommand, LayoutsCommand, FamiliesCommand, CompletionCommand, DocsCommand>;

// Throws USAGE for a command line that makes no sense. `arguments` is without the program's name.
Command parse_arguments(std::vector<std::string> arguments);

}  // namespace peft::cli
