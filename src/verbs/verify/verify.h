// Whether two adapters, read and decoded, are the same function.
#pragma once

#include "peft/verbs.h"

namespace peft::verbs {

// Factors are matched by site and streamed module by module; no more than a block of one matrix is ever computed.
// Throws NUM_NONFINITE for NaN or infinity in either adapter. The report does not depend on options.threads.
VerifyReport compare(const Input& a, const Input& b, const VerifyOptions& options);

}  // namespace peft::verbs
