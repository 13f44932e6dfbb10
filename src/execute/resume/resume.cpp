#include "execute/resume/resume.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <numeric>

#include "base/system.h"
#include "peft/error.h"
#include "safetensors/reading/input_file.h"
#include "safetensors/writing/staging_folder.h"

namespace peft::execution {
namespace {

using safetensors::InputFile;

// Whether a run with some number of workers cuts files with this staging size.
bool is_sensible(std::uint64_t staging) {
  return staging >= cut_sizes(kMaxWorkers).staging && staging <= cut_sizes(1).staging;
}

bool is_as_journaled(const FileWork& work, const std::string& path, const FinishedFile& entry, bool trust,
                     UnitRenderers& renderers, Monitor& monitor) {
  try {
    const InputFile file(path);
    if (file.size() != work.layout.file_bytes() || file.size() != entry.size) return false;
    const ReadAt read = [&](std::uint64_t offset, std::span<std::byte> bytes) {
      file.read(offset, {reinterpret_cast<char*>(bytes.data()), bytes.size()});
    };
    if (!has_head(work, read)) return false;
    if (!trust && digest_of(digests_in(work, read, renderers, monitor)) != *entry.digest) return false;
    return true;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::INTERRUPTED) throw;
    return false;  // a file that cannot be read is written again
  }
}

// One line for each file. A line with a digest replaces one without.
std::map<std::string, FinishedFile> by_name(const std::vector<FinishedFile>& journaled) {
  std::map<std::string, FinishedFile> files;
  for (const FinishedFile& file : journaled) {
    FinishedFile& known = files[file.name];
    if (!known.digest) known = file;
  }
  return files;
}

bool has_content(const std::string& path, const std::string& expected) {
  const InputFile file(path);
  std::string found(file.size(), '\0');
  file.read(0, found);
  return found == expected;
}

bool has_side_files(const Plan& plan, const std::string& folder) {
  const auto text = [&](const auto& named) { return has_content(folder + "/" + named.first, named.second); };
  const auto copy = [&](const auto& named) {
    return InputFile(folder + "/" + named.first).size() == InputFile(named.second).size();
  };
  try {
    return std::all_of(plan.texts.begin(), plan.texts.end(), text) &&
           std::all_of(plan.copies.begin(), plan.copies.end(), copy);
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

std::vector<std::optional<FinishedFile>> find_finished(const Plan& plan, const std::vector<std::size_t>& wanted,
                                                       const std::string& folder,
                                                       const std::vector<FinishedFile>& journaled,
                                                       const ExecuteOptions& options) {
  const auto files = by_name(journaled);
  const auto entry_of = [&](std::size_t index) -> const FinishedFile* {
    const auto it = files.find(plan.files[index].name);
    if (it == files.end() || !is_sensible(it->second.staging)) return nullptr;
    return options.trust_journal || it->second.digest ? &it->second : nullptr;
  };
  std::uint64_t total = 0;
  for (const std::size_t index : wanted) total += entry_of(index) ? entry_of(index)->size : 0;
  Monitor monitor(options, total);
  UnitRenderers renderers(std::min(thread_count(options.threads), kMaxWorkers));
  std::vector<std::optional<FinishedFile>> finished(plan.files.size());
  for (const std::size_t index : wanted) {
    const FinishedFile* entry = entry_of(index);
    if (entry == nullptr) continue;
    CutSizes sizes;
    sizes.staging = entry->staging;
    const FileWork work = make_work(plan, plan.files[index], sizes);
    const std::string path = folder + "/" + plan.files[index].name;
    if (is_as_journaled(work, path, *entry, options.trust_journal, renderers, monitor)) finished[index] = *entry;
  }
  return finished;
}

bool is_published(const Plan& plan, const std::string& out, const std::string& fingerprint,
                  const ExecuteOptions& options) {
  const std::string path = safetensors::output_path(out), staging = safetensors::staging_path(path);
  if (!safetensors::is_present(path) || safetensors::is_empty_folder(path)) return false;
  const auto journaled = read_journals(staging, fingerprint);
  if (journaled.empty()) return false;
  std::vector<std::size_t> all(plan.files.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  // The one file of an output that is no folder has the output's name.
  if (plan.single_file) return false;
  const auto finished = find_finished(plan, all, path, journaled, options);
  if (std::find(finished.begin(), finished.end(), std::nullopt) != finished.end()) return false;
  if (!has_side_files(plan, path)) return false;
  safetensors::StagingFolder(path, safetensors::Claim::resume, false, "").remove();
  return true;
}

std::vector<std::size_t> share_of(std::span<const std::uint64_t> sizes, int part, int parts) {
  std::vector<std::size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
  std::vector<std::uint64_t> bytes(static_cast<std::size_t>(parts));
  std::vector<std::size_t> share;
  for (const std::size_t file : order) {
    const auto least = std::min_element(bytes.begin(), bytes.end());
    *least += sizes[file];
    if (least - bytes.begin() == part - 1) share.push_back(file);
  }
  std::sort(share.begin(), share.end());
  return share;
}

}  // namespace peft::execution
