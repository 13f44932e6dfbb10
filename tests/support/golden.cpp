#include "support/golden.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "peft/execute.h"

namespace peft::testing {
namespace fs = std::filesystem;

Json read_json(const fs::path& file) {
  try {
    return Json::parse(read_file(file));
  } catch (const Json::exception& error) {
    throw std::runtime_error(file.string() + ": " + error.what());
  }
}

std::vector<Case> cases(const fs::path& root, const std::string& group) {
  std::vector<Case> found;
  if (!fs::is_directory(root / group)) return found;
  for (const auto& entry : fs::recursive_directory_iterator(root / group)) {
    if (entry.path().filename() != "case.json") continue;
    const fs::path folder = entry.path().parent_path();
    found.push_back({folder.lexically_relative(root).generic_string(), folder, read_json(entry.path())});
  }
  std::sort(found.begin(), found.end(), [](const Case& x, const Case& y) { return x.id < y.id; });
  return found;
}

std::vector<Case> rows(const fs::path& root, const std::string& file) {
  std::vector<Case> found;
  if (!fs::exists(root / file)) return found;
  const auto add = [&](Json row) {
    found.push_back({fmt::format("{}/{}", file, found.size() + 1), (root / file).parent_path(), std::move(row)});
  };
  if (file.ends_with(".jsonl")) {
    std::ifstream lines(root / file);
    for (std::string line; std::getline(lines, line);) add(Json::parse(line));
  } else {
    for (const Json& row : read_json(root / file)) add(row);
  }
  return found;
}

std::vector<Case> files(const fs::path& root, const std::string& folder) {
  std::vector<Case> found;
  if (!fs::is_directory(root / folder)) return found;
  for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
    if (!entry.is_regular_file()) continue;
    found.push_back({entry.path().lexically_relative(root).generic_string(), entry.path().parent_path(), {}});
  }
  std::sort(found.begin(), found.end(), [](const Case& x, const Case& y) { return x.id < y.id; });
  return found;
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (fs::temp_directory_path() / "peft-test-XXXXXX").string();
  if (!mkdtemp(name.data())) throw std::runtime_error("cannot make a folder: " + name);
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  if (path_.empty()) return;
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void write_file(const fs::path& file, std::string_view content) {
  fs::create_directories(file.parent_path());
  std::ofstream out(file, std::ios::binary);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!out.flush()) throw std::runtime_error("cannot write " + file.string());
}

std::string read_file(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + file.string());
  std::ostringstream content;
  content << in.rdbuf();
  return std::move(content).str();
}

void materialize(const Plan& plan, const fs::path& folder) {
  const auto images = execute_in_memory(plan);
  for (std::size_t i = 0; i < images.size(); ++i) {
    write_file(folder / plan.files[i].name, {reinterpret_cast<const char*>(images[i].data()), images[i].size()});
  }
  for (const auto& [name, content] : plan.texts) write_file(folder / name, content);
  for (const auto& [name, path] : plan.copies) write_file(folder / name, read_file(path));
}

}  // namespace peft::testing
