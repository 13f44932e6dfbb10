// Files for the tests of the stage `model`: those of the golden data and their JSON, and scratch files.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
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

// A module tree of golden/config/models.
inline std::string golden_tree(const std::string& name) { return (golden() / "config" / "models" / name).string(); }

inline std::string scratch_file(const std::string& name, const std::string& text) {
  // Tests run side by side in processes of their own.
  const std::string file = testing::TempDir() + std::to_string(getpid()) + "_" + name;
  std::ofstream(file) << text;
  return file;
}

// The code of the error that `action` throws; INTERNAL when it throws none.
inline ErrorCode code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::INTERNAL;
}

}  // namespace peft::test
