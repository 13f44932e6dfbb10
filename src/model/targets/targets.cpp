#include <fmt/format.h>

#include "model/targets/resolver.h"
#include "peft/model.h"

namespace peft {
namespace {

std::string with_commas(std::int64_t number) {
  std::string text = std::to_string(number);
  const std::size_t first = number < 0 ? 1 : 0;
  for (std::size_t at = text.size(); at > first + 3;) text.insert(at -= 3, ",");
  return text;
}

}  // namespace

ResolvedTargets resolve_targets(const AdapterConfig& config, const ModuleTree& tree, const Model& model,
                                Generation generation, std::optional<AdapterConfig::Version> as_of) {
  constexpr AdapterConfig::Version kNewest{0, 21, 2};
  return model::TargetResolver(config, tree, model, generation, as_of.value_or(kNewest)).run();
}

std::string trainable_line(std::int64_t trainable, std::int64_t all) {
  const long double percent =
      all == 0 ? 0.0L : 100.0L * static_cast<long double>(trainable) / static_cast<long double>(all);
  return fmt::format("trainable params: {} || all params: {} || trainable%: {:.4f}", with_commas(trainable),
                     with_commas(all), static_cast<double>(percent));
}

}  // namespace peft
