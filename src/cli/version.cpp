#include "cli/version.h"

#include "peft/version.h"

namespace peft::cli {

const char* const kVersion = PEFT_VERSION;

}  // namespace peft::cli
