#include "peft/execute.h"

#include <algorithm>
#include <chrono>
#include <exception>

#include "base/thread_pool.h"
#include "execute/merge_norms.h"
#include "execute/stream.h"
#include "plan/check.h"

namespace peft {
namespace {

std::vector<std::string> input_paths(const Plan& plan) {
  std::vector<std::string> paths;
  for (const auto& source : plan.sources) paths.push_back(source->path());
  for (const auto& [name, path] : plan.copies) paths.push_back(path);
  return paths;
}

void check_sources(const Plan& plan) {
  for (const auto& source : plan.sources) source->check_unchanged();
}

std::uint64_t bytes_read(const Plan& plan) {
  std::uint64_t bytes = 0;
  for (const auto& source : plan.sources) bytes += source->file_size();
  return bytes;
}

// Everything up to the commit; returns the bytes written.
std::uint64_t write_all(const Plan& plan, StagedOutput& output, const ExecuteOptions& options, ExecuteReport& report) {
  execution::Stages stages(std::min(thread_count(options.threads), execution::kMaxWorkers));
  std::vector<execution::FileWork> files;
  std::uint64_t total = 0;
  for (const PlannedFile& file : plan.files) {
    files.push_back(execution::make_work(plan, file, stages.sizes()));
    total += files.back().layout.file_bytes();
  }
  execution::Monitor monitor(options, total);
  for (const execution::FileWork& work : files) {
    NewFile& file = output.add_file(work.file->name, work.layout.file_bytes());
    const execution::Digests digests = write_units(work, file, stages, monitor, options.readback);
    if (options.readback) read_back(work, file, digests, stages, monitor);
  }
  for (const auto& [name, content] : plan.texts) {
    output.add_text(name, content);
    total += content.size();
  }
  for (const auto& [name, path] : plan.copies) output.copy_file(name, path);
  monitor.check();
  report.error = stages.merge_error();
  if (options.want_norms) report.merged = execution::merged_norms(plan, stages.threads());
  return total;
}

}  // namespace

ExecuteReport execute(const Plan& plan, const std::string& out_folder, const ExecuteOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  plan::check(plan);
  StagedOutput output(out_folder, {.overwrite = options.overwrite, .sync = options.sync}, input_paths(plan));
  ExecuteReport report;
  try {
    report.bytes_out = write_all(plan, output, options, report);
  } catch (...) {
    // An input that was cut short shows up as any kind of failure; say what really happened.
    check_sources(plan);
    throw;
  }
  check_sources(plan);
  output.commit();
  report.bytes_in = bytes_read(plan);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace peft
