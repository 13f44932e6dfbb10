#include "cli/combine.h"

#include <fmt/core.h>

namespace peft::cli {

int run(const CombineCommand& command) {
  command.result.require_out();
  std::vector<WeightedAdapter> adapters;
  Json list = Json::array();
  for (const auto& text : command.adapters) {
    adapters.push_back(parse_weighted_adapter(text));
    list.push_back({{"path", adapters.back().path}, {"weight", number(adapters.back().weight)}});
  }
  CombineOptions options;
  options.input = command.input.options();
  options.type = parse_combine_type(command.type).value();
  options.to = command.result.layout();
  options.dtype = command.result.element();
  options.svd_rank = command.svd_rank;
  options.density = command.density;
  options.majority_by_count = command.majority_sign_method == "frequency";
  options.seed = command.seed;
  options.threads = command.result.execute.threads;
  return finish(command.result, plan_combine(adapters, options),
                fmt::format("{} of {} adapters", command.type, adapters.size()),
                {{"type", command.type}, {"adapters", list}});
}

}  // namespace peft::cli
