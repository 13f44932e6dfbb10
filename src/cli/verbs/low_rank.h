// peft combine, resize and extract: adapters whose factors are computed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/flags.h"
#include "cli/output/json.h"

namespace peft::cli {

// The flags of the result, which the three have in common.
struct ResultFlags {
  std::string out, to, dtype;
  bool dry_run = false, quiet = false, json = false;
  ExecuteOptions execute;
};

struct CombineCommand {
  std::vector<std::string> adapters;  // DIR@WEIGHT
  std::string type = "svd", majority_sign_method = "total";
  std::int64_t svd_rank = 0;
  std::optional<double> density;
  std::uint64_t seed = 0;
  InputFlags input;
  ResultFlags result;
};
struct ResizeCommand {
  std::string adapter;
  std::int64_t rank = 0;
  InputFlags input;
  ResultFlags result;
};
struct ExtractCommand {
  std::string base, finetuned, family, families_file;
  std::int64_t rank = 0;
  std::vector<std::string> modules_to_save;
  bool ignore_unused = false;
  OpenOptions open;
  ResultFlags result;
};
void add_combine(CLI::App& app, CombineCommand& command);
void add_resize(CLI::App& app, ResizeCommand& command);
void add_extract(CLI::App& app, ExtractCommand& command);
int run(const CombineCommand& command);
int run(const ResizeCommand& command);
int run(const ExtractCommand& command);
// What --json prints.
Json result(const CombineCommand& command, const Executor& execute);
Json result(const ResizeCommand& command, const Executor& execute);
Json result(const ExtractCommand& command, const Executor& execute);

}  // namespace peft::cli
