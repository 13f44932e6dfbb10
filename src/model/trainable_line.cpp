#include <fmt/format.h>

#include "peft/targets.h"

namespace peft {
namespace {

std::string with_commas(std::int64_t number) {
  std::string text = std::to_string(number);
  const std::size_t first = number < 0 ? 1 : 0;
  for (std::size_t at = text.size(); at > first + 3;) text.insert(at -= 3, ",");
  return text;
}

}  // namespace

std::string trainable_line(std::int64_t trainable, std::int64_t all) {
  const long double percent =
      all == 0 ? 0.0L : 100.0L * static_cast<long double>(trainable) / static_cast<long double>(all);
  return fmt::format("trainable params: {} || all params: {} || trainable%: {:.4f}", with_commas(trainable),
                     with_commas(all), static_cast<double>(percent));
}

}  // namespace peft
