// Where the golden data is, and its JSON, for the tests of this stage.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/json_file.h"

namespace peft::test {

namespace fs = std::filesystem;

inline fs::path golden() {
  if (const char* root = std::getenv("PEFT_GOLDEN")) return root;
  const fs::path shared = fs::path(PEFT_SOURCE_DIR) / ".." / "shared" / "golden";
  if (fs::exists(shared)) return shared;
  return fs::path(PEFT_SOURCE_DIR) / "tests" / "golden";
}

// The entries of a folder of the golden data, sorted; none when the folder is not there.
inline std::vector<fs::path> golden_entries(const std::string& folder) {
  std::vector<fs::path> entries;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(golden() / folder, status)) entries.push_back(entry.path());
  std::sort(entries.begin(), entries.end());
  return entries;
}

inline model::OrderedJson read_json(const fs::path& path) {
  return model::OrderedJson::parse(model::read_text(path.string()));
}

inline std::vector<std::int64_t> shape_of(const model::OrderedJson& json) {
  return json.get<std::vector<std::int64_t>>();
}

}  // namespace peft::test
