#include "peft/execute.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <numeric>
#include <set>
#include <utility>

#include "base/system.h"
#include "execute/merge/merger.h"
#include "execute/resume/fingerprint.h"
#include "execute/resume/resume.h"
#include "execute/run/stream.h"
#include "peft/error.h"
#include "plan/check.h"

namespace peft {
namespace {

using namespace execution;
using safetensors::Claim;

constexpr std::size_t kNamed = 5;  // missing files in a message

std::vector<std::string> input_paths(const Plan& plan) {
  std::vector<std::string> paths;
  for (const auto& source : plan.sources) paths.push_back(source->path());
  for (const auto& [name, path] : plan.copies) paths.push_back(path);
  return paths;
}

void check_sources(const Plan& plan) {
  for (const auto& source : plan.sources) source->check_unchanged();
}

// A file may be kept for a later run only if its sources had not changed when it was finished.
void check_sources(const Plan& plan, const PlannedFile& file) {
  std::set<std::uint32_t> used;
  for (const PlannedTensor& tensor : file.tensors)
    for_each_source(tensor, [&](const View& view) { used.insert(view.source); });
  for (const std::uint32_t source : used) plan.sources[source]->check_unchanged();
}

class Execution {
 public:
  Execution(const Plan& plan, const ExecuteOptions& options) : plan_(plan), options_(options) {
    plan::check(plan);
    if (is_part() && (options.part < 1 || options.part > options.parts || options.finish)) {
      throw Error(ErrorCode::USAGE, {.problem = "there is no such part",
                                     .expected = "1/N to N/N, without --finish",
                                     .got = fmt::format("{}/{}", options.part, options.parts)});
    }
    for (const PlannedFile& file : plan.files) {
      layouts_.push_back(layout_file(file));
      sizes_.push_back(layouts_.back().file_bytes());
    }
    share_ = share_of(sizes_, is_part() ? options.part : 1, is_part() ? options.parts : 1);
    if (keeps()) fingerprint_ = new_fingerprint();
  }

  ExecuteReport run(const std::string& out) {
    if (resumes() && is_published(plan_, out, fingerprint_, options_)) {
      report_.files_resumed = plan_.files.size();
      return report_;
    }
    StagedOutput output(out, staged_options(), input_paths(plan_));
    std::optional<Journal> journal;
    try {
      write(output, journal);
      if (!is_part()) output.commit();
    } catch (const std::exception& error) {
      fail(output, journal, error);
    }
    report_.published = !is_part();
    report_.warnings = output.warnings();
    return report_;
  }

 private:
  bool is_part() const { return options_.parts > 0; }
  bool resumes() const { return is_part() || options_.finish || options_.unfinished == Unfinished::resume; }
  bool keeps() const { return resumes() || options_.unfinished == Unfinished::keep; }

  // The machines of a shared run may read copies of the sources, with other times.
  std::string new_fingerprint() const { return fingerprint(plan_, !is_part() && !options_.finish); }

  StagedOutput::Options staged_options() const {
    StagedOutput::Options staged{.overwrite = options_.overwrite,
                                 .sync = options_.sync,
                                 .readback = options_.readback,
                                 .single_file = plan_.single_file};
    if (!resumes()) staged.expected_bytes = std::accumulate(sizes_.begin(), sizes_.end(), std::uint64_t{0});
    staged.keep = keeps();
    staged.claim = is_part() ? Claim::share : resumes() ? Claim::resume : Claim::fresh;
    if (is_part()) staged.part = fmt::format("{}-of-{}", options_.part, options_.parts);
    return staged;
  }

  // Everything up to the commit.
  void write(StagedOutput& output, std::optional<Journal>& journal) {
    std::vector<std::size_t> missing = share_;
    std::vector<FinishedFile> resumed;
    if (resumes()) {
      const auto journaled = read_journals(output.staging().path(), fingerprint_);
      const auto finished = find_finished(plan_, share_, output.staging().files(), journaled, options_);
      std::erase_if(missing, [&](std::size_t index) { return finished[index].has_value(); });
      for (const auto& file : finished) {
        if (file) resumed.push_back(*file);
      }
    }
    report_.files_resumed = resumed.size();
    if (options_.finish && !missing.empty()) refuse_missing(output, missing);
    if (keeps()) {
      journal.emplace(output.staging(), fingerprint_, options_.sync);
      if (!resumed.empty()) journal->add(resumed);
    }
    write_files(output, missing, journal);
    if (options_.want_norms) report_.merged = merged_norms(plan_, share_, thread_count(options_.threads));
    if (!is_part()) write_side_files(output);
    check_sources(plan_);
    // Times alone do not tell: some file systems count them in seconds.
    if (!keeps() || new_fingerprint() == fingerprint_) return;
    throw Error(ErrorCode::IO_CHANGED, {.file = output.staging().path(),
                                        .problem = "an input changed while it was read",
                                        .hint = "is another program writing it?"});
  }

  void write_files(StagedOutput& output, const std::vector<std::size_t>& missing, std::optional<Journal>& journal) {
    std::uint64_t total = 0;
    for (const std::size_t index : missing) total += sizes_[index];
    Monitor monitor(options_, total);
    UnitRenderers renderers(std::min(thread_count(options_.threads), kMaxWorkers));
    for (const std::size_t index : missing) {
      const PlannedFile& planned = plan_.files[index];
      const FileWork work = make_work(plan_, planned, renderers.sizes(), std::exchange(layouts_[index], {}));
      NewFile& file = output.add_file(planned.name, sizes_[index]);
      const Digests digests = write_units(work, file, renderers, monitor, options_.readback);
      const auto packed = renderers.take_packing_loss().results(index);
      report_.packed.insert(report_.packed.end(), packed.begin(), packed.end());
      if (options_.readback) read_back(work, file, digests, renderers, monitor);
      if (journal) check_sources(plan_, planned);
      output.finish(file);
      if (journal) {
        FinishedFile finished{.name = planned.name, .size = sizes_[index], .staging = renderers.sizes().staging};
        if (options_.readback) finished.digest = digest_of(digests);
        journal->add({finished});
      }
      report_.bytes_out += sizes_[index];
      ++report_.files_written;
    }
    report_.error = renderers.merge_error();
    monitor.check();
  }

  void write_side_files(StagedOutput& output) {
    for (const auto& [name, content] : plan_.texts) {
      output.add_text(name, content);
      report_.bytes_out += content.size();
    }
    for (const auto& [name, path] : plan_.copies) output.copy_file(name, path);
  }

  [[noreturn]] void refuse_missing(const StagedOutput& output, const std::vector<std::size_t>& missing) const {
    std::string names;
    for (std::size_t i = 0; i < std::min(missing.size(), kNamed); ++i)
      names += (i == 0 ? "" : ", ") + plan_.files[missing[i]].name;
    throw Error(ErrorCode::RS_PARTS,
                {.file = output.staging().path(),
                 .problem = fmt::format("{} of {} files are not there, or not as they were written", missing.size(),
                                        plan_.files.size()),
                 .got = names + (missing.size() > kNamed ? ", ..." : ""),
                 .hint = "run the parts that write them again"});
  }

  // Decides what is kept after a failure, and rethrows.
  [[noreturn]] void fail(StagedOutput& output, std::optional<Journal>& journal, const std::exception& failure) {
    try {
      // An input that was truncated can cause any kind of failure. The check names the cause.
      check_sources(plan_);
      const auto* error = dynamic_cast<const Error*>(&failure);
      if (error == nullptr || error->code() == ErrorCode::IO_CHANGED) throw;
      // Bad input stays bad, so there is nothing to resume. Files that another run has left are not discarded.
      const int exit_code = info(error->code()).exit_code;
      const bool lasting =
          exit_code != info(ErrorCode::IO_WRITE).exit_code && exit_code != info(ErrorCode::INTERRUPTED).exit_code;
      if (journal && lasting && !options_.finish) output.discard();
      if (lasting || !output.keeps_something()) throw;
      ErrorDetail detail = error->detail();
      detail.hint += (detail.hint.empty() ? "" : "; ") + std::string("what is finished is kept: --resume continues it");
      throw Error(error->code(), std::move(detail));
    } catch (const Error& error) {
      if (error.code() == ErrorCode::IO_CHANGED) {
        if (journal) journal->withdraw();
        if (journal && !is_part() && !options_.finish) output.discard();
      }
      throw;
    }
  }

  const Plan& plan_;
  const ExecuteOptions& options_;
  std::vector<FileLayout> layouts_;   // layouts of the planned files, until they are written
  std::vector<std::uint64_t> sizes_;  // sizes of the planned files
  std::vector<std::size_t> share_;    // the files that this run writes
  std::string fingerprint_;
  ExecuteReport report_;
};

}  // namespace

ExecuteReport execute(const Plan& plan, const std::string& out_folder, const ExecuteOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  ExecuteReport report = Execution(plan, options).run(out_folder);
  report.bytes_in = bytes_read(plan);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

void execute_into(std::span<std::byte> data, const Plan& plan, std::size_t file, const ExecuteOptions& options) {
  plan::check(plan);
  const PlannedFile& planned = plan.files.at(file);
  FileLayout layout = layout_file(planned);
  if (data.size() != layout.data_bytes) {
    throw Error(ErrorCode::INTERNAL, {.tensor = planned.name,
                                      .problem = "the memory does not have the size of the file's data",
                                      .expected = std::to_string(layout.data_bytes),
                                      .got = std::to_string(data.size())});
  }
  Monitor monitor(options, layout.data_bytes);
  UnitRenderers renderers(std::min(thread_count(options.threads), kMaxWorkers));
  const FileWork work = make_work(plan, planned, renderers.sizes(), std::move(layout));
  render_units(work, data, renderers, monitor);
  check_sources(plan);
}

}  // namespace peft
