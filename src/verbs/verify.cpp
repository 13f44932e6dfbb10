#include "peft/verbs.h"
#include "verbs/compare.h"

namespace peft {

VerifyReport verify(const std::string& a, const std::string& b, const VerifyOptions& options) {
  // Both are of one model: without --base, the names of one may tell what the other's mean.
  InputOptions of_a = options.a, of_b = options.b;
  if (of_a.base.empty() && of_b.base.empty()) {
    of_a.further_names = module_names(b, options.b);
    of_b.further_names = module_names(a, options.a);
  }
  of_a.read.verb = of_b.read.verb = Verb::verify;
  const Input first = load(a, of_a), second = load(b, of_b);
  return compare(first, second, options);
}

}  // namespace peft
