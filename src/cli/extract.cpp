#include "cli/extract.h"

#include <fmt/core.h>

namespace peft::cli {

int run(const ExtractCommand& command) {
  command.result.require_out();
  ExtractOptions options;
  options.base = command.base;
  options.finetuned = command.finetuned;
  options.family = command.family;
  options.families_file = command.families_file;
  options.rank = command.rank;
  options.to = command.result.layout();
  options.dtype = command.result.element();
  options.modules_to_save = command.modules_to_save;
  options.ignore_unused = command.ignore_unused;
  options.open = command.open;
  options.threads = command.result.execute.threads;
  return finish(command.result, plan_extract(options), fmt::format("extracted, rank {} at most", command.rank),
                {{"base", command.base}, {"finetuned", command.finetuned}, {"rank", command.rank}});
}

}  // namespace peft::cli
