#include "peft/verbs.h"
#include "verbs/compare.h"

namespace peft {

VerifyReport verify(const std::string& a, const std::string& b, const VerifyOptions& options) {
  const Input first = load(a, options.a), second = load(b, options.b);
  return compare(first, second, options);
}

}  // namespace peft
