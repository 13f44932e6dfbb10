// The files of the golden data and their JSON, for the tests of the stage `model`.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/json_file.h"
#include "support/golden_root.h"

namespace peft::test {

namespace fs = std::filesystem;

inline fs::path golden() { return golden_root(); }

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
