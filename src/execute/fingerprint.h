// What decides the bytes of an output, in one number: a run may only go on with files of a run that had the same.
#pragma once

#include <string>

#include "peft/plan.h"

namespace peft::execution {

// Covers the version of this program, everything in the plan, and of every source its size, its header, samples of its
// data and, if wanted, the time of its last change. Not the number of threads, nor where the sources lie.
std::string fingerprint(const Plan& plan, bool with_times);

}  // namespace peft::execution
