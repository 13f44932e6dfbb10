#include "cli/resize.h"

#include <fmt/core.h>

namespace peft::cli {

int run(const ResizeCommand& command) {
  command.result.require_out();
  ResizeOptions options;
  options.input = command.input.options();
  options.rank = command.rank;
  options.to = command.result.layout();
  options.dtype = command.result.element();
  options.threads = command.result.execute.threads;
  return finish(command.result, plan_resize(command.adapter, options), fmt::format("resized to rank {}", command.rank),
                {{"adapter", command.adapter}, {"rank", command.rank}});
}

}  // namespace peft::cli
