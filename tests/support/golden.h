// Golden data on disk: where it is, its cases, and folders for what a test writes.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "peft/plan.h"
#include "support/golden_root.h"

namespace peft::testing {

using test::golden_root;
using Json = nlohmann::ordered_json;  // the order of alpha_pattern has a meaning

Json read_json(const std::filesystem::path& file);

// A folder with a case.json. `id` is its path below the root: "convert/mixtral-plain".
struct Case {
  std::string id;
  std::filesystem::path folder;
  Json json;
};
// Cases below `group`, in any depth, sorted; empty where the root has no such group.
std::vector<Case> cases(const std::filesystem::path& root, const std::string& group);
// Cases that are rows of one file: a JSON array (.json), or a JSON value on each line (.jsonl).
std::vector<Case> rows(const std::filesystem::path& root, const std::string& file);
// Cases that are files, in any depth.
std::vector<Case> files(const std::filesystem::path& root, const std::string& folder);

// A new folder below the system's, removed with everything in it at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  const std::filesystem::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

void write_file(const std::filesystem::path& file, std::string_view content);
std::string read_file(const std::filesystem::path& file);
// Writes what a plan says, without execute(): the simple element-by-element form of every file, texts and copies.
void materialize(const Plan& plan, const std::filesystem::path& folder);

}  // namespace peft::testing
