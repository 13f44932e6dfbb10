// Where the golden data is: $PEFT_GOLDEN, else ../shared/golden beside the checkout, else the selection in
// tests/golden.
#pragma once

#include <cstdlib>
#include <filesystem>

#include "test_paths.h"

namespace peft::test {

inline std::filesystem::path golden_root() {
  if (const char* given = std::getenv("PEFT_GOLDEN"); given != nullptr && *given != '\0') return given;
  const std::filesystem::path source = PEFT_SOURCE_DIR, shared = source / ".." / "shared" / "golden";
  return std::filesystem::exists(shared) ? std::filesystem::weakly_canonical(shared) : source / "tests" / "golden";
}

}  // namespace peft::test
