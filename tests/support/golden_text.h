// For the tests of this stage: where the golden data is, files as text.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "support/golden_root.h"

namespace peft::testing {

inline std::filesystem::path golden_folder() { return test::golden_root(); }

inline std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace peft::testing
