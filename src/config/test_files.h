// For the tests of this stage: where the golden data is, files as text.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace peft::testing {

// $PEFT_GOLDEN, else ../shared/golden beside the checkout, else the selection in tests/golden.
inline std::filesystem::path golden_folder() {
  if (const char* given = std::getenv("PEFT_GOLDEN"); given != nullptr && *given != '\0') return given;
  const std::filesystem::path source = PEFT_SOURCE_DIR, shared = source / ".." / "shared" / "golden";
  return std::filesystem::exists(shared) ? std::filesystem::weakly_canonical(shared) : source / "tests" / "golden";
}

inline std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace peft::testing
