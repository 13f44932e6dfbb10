// The command line as a value, and carried out.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "cli/engines/doctor.h"
#include "cli/pages/completion.h"
#include "cli/pages/docs.h"
#include "cli/runtime/runtime.h"
#include "cli/runtime/train.h"
#include "cli/verbs/convert.h"
#include "cli/verbs/inspect.h"
#include "cli/verbs/low_rank.h"
#include "cli/verbs/merge.h"
#include "cli/verbs/targets.h"
#include "cli/verbs/verify.h"

namespace peft::cli {

struct TextCommand {  // --help, --version
  std::string text;
};
using Command =
    std::variant<TextCommand, InspectCommand, DoctorCommand, EnginesCommand, TargetsCommand, ConvertCommand,
                 VerifyCommand, MergeCommand, CombineCommand, ResizeCommand, ExtractCommand, LogitsCommand,
                 GenerateCommand, ParamsCommand, TrainCommand, LayoutsCommand, FamiliesCommand, CompletionCommand,
                 DocsCommand>;

// Throws USAGE for a command line that makes no sense. `arguments` is without the program's name.
Command parse_arguments(std::vector<std::string> arguments);

// The whole program: parses, runs one verb, turns what goes wrong into one line and an exit code. The console command
// of the Python package is this function, too. It changes signals and how memory is kept, and is to be called once.
int run_program(std::vector<std::string> arguments);

}  // namespace peft::cli
