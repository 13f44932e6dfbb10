#include "cli/report_file.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "cli/report_html.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

namespace fs = std::filesystem;

std::string command_line(const MergeCommand& command) {
  std::string text = "peft merge --base " + command.base;
  for (const auto& adapter : command.adapters) text += " --adapter " + adapter;
  text += " --out " + command.out + " --mode " + command.mode;
  const std::pair<const char*, const std::string&> options[] = {{"--base-dtype", command.base_dtype},
                                                                {"--out-dtype", command.out_dtype},
                                                                {"--max-shard-size", command.max_shard_size}};
  for (const auto& [flag, value] : options) {
    if (!value.empty()) text += fmt::format(" {} {}", flag, value);
  }
  if (command.resume) text += " --resume";
  if (command.execute.finish) text += " --finish";
  if (command.keep_quantized) text += " --keep-quantized";
  return text;
}

}  // namespace

void check_report(const MergeCommand& command) {
  if (command.dry_run)
    throw Error(ErrorCode::USAGE, {.problem = "--report describes a merge that was done, and --dry-run does none",
                                   .hint = "leave one out"});
  if (!command.part.empty())
    throw Error(ErrorCode::USAGE,
                {.problem = "--report is about a whole merge, not a part of it", .hint = "give it with --finish"});
  const fs::path file(command.report);
  std::error_code none;
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  if (fs::is_directory(folder, none) && !fs::is_directory(file, none)) return;
  throw Error(ErrorCode::IO_WRITE, {.file = command.report,
                                    .problem = "the report cannot be written there",
                                    .expected = "a file in a folder that exists"});
}

void write_report(const MergeCommand& command, const MergePlan& merge, const ExecuteReport& done) {
  const auto now = std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());
  ReportFacts facts;
  facts.out = command.out;
  facts.options = merge_options(command);
  facts.command = command_line(command);
  facts.synced = command.execute.sync;
  facts.read_back = command.execute.readback;
  facts.finished = fmt::format("{:%Y-%m-%d %H:%M:%S} UTC", fmt::gmtime(std::chrono::system_clock::to_time_t(now)));
  std::ofstream out(command.report, std::ios::binary | std::ios::trunc);
  out << merge_report(merge, done, facts);
  out.close();
  if (!out)
    throw Error(ErrorCode::IO_WRITE,
                {.file = command.report, .problem = "writing the report failed; the merged model itself is complete"});
}

}  // namespace peft::cli
