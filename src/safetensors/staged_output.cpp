#include "safetensors/staged_output.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/system_calls.h"
#include "peft/error.h"
#include "safetensors/input_file.h"
#include "safetensors/output_checks.h"

namespace peft {
namespace {

namespace fs = std::filesystem;
using namespace safetensors;

constexpr std::uint64_t kCopyBlock = 1 << 20;

std::string parent_of(const std::string& path) { return fs::path(path).parent_path().string(); }

bool rename_path(const std::string& from, const std::string& to, unsigned flags) {
  return SystemCalls::get().rename(from.c_str(), to.c_str(), flags) == 0;
}

// A file system that does not know renameat2's flags.
bool flags_unsupported(int error) { return error == EINVAL || error == ENOSYS || error == EOPNOTSUPP; }

[[noreturn]] void fail_renaming(const std::string& out, int error) {
  if (error != EEXIST && error != ENOTEMPTY && error != ENOTDIR) fail_writing(out, "rename", error);
  throw Error(ErrorCode::OUT_EXISTS, {.file = out,
                                      .problem = "the output has appeared while it was written",
                                      .hint = "choose another folder; is another program writing it?"});
}

bool stays_inside(const std::string& name) {
  const fs::path path(name);
  if (name.empty() || path.is_absolute() || !path.has_filename()) return false;
  return std::none_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".." || part == "."; });
}

}  // namespace

StagedOutput::StagedOutput(const std::string& out_folder, Options options, const std::vector<std::string>& input_paths)
    : out_(output_path(out_folder)), options_(options) {
  require_no_alias(out_, input_paths);
  require_free(out_, options_.overwrite);
  require_space(parent_of(out_), options_.expected_bytes);
  staging_.emplace(out_);
}

StagedOutput::~StagedOutput() {
  files_.clear();
  if (!committed_) remove_tree(staging_->path());
}

std::string StagedOutput::staged_path(const std::string& name) {
  if (!stays_inside(name)) {
    throw Error(ErrorCode::INTERNAL, {.file = name, .problem = "the name of an output file leaves the output folder"});
  }
  const std::string& root = staging_->path();
  for (auto slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    const std::string folder = root + "/" + name.substr(0, slash);
    if (is_present(folder)) continue;
    if (SystemCalls::get().mkdir(folder.c_str(), 0777) != 0) fail_writing(folder, "mkdir", errno);
    folders_.push_back(folder);
  }
  return root + "/" + name;
}

NewFile& StagedOutput::add_file(const std::string& name, std::uint64_t size) {
  const std::string path = staged_path(name);
  require_space(staging_->path(), size);
  files_.push_back(std::make_unique<NewFile>(path, size));
  return *files_.back();
}

void StagedOutput::add_text(const std::string& name, std::string_view content) {
  add_file(name, content.size()).write_at(0, std::as_bytes(std::span(content)));
}

void StagedOutput::copy_file(const std::string& name, const std::string& path) {
  const InputFile input(path);
  NewFile& copy = add_file(name, input.size());
  std::vector<char> block(std::min(kCopyBlock, input.size()));
  for (std::uint64_t at = 0; at < input.size(); at += block.size()) {
    const auto part = std::span(block).first(std::min<std::uint64_t>(block.size(), input.size() - at));
    input.read(at, part);
    copy.write_at(at, std::as_bytes(part));
  }
  require_unchanged(path, input.identity());
}

void StagedOutput::commit() {
  for (auto& file : files_) file->close(options_.sync);
  if (options_.sync) {
    for (auto folder = folders_.rbegin(); folder != folders_.rend(); ++folder) sync_folder(*folder);
    sync_folder(staging_->path());
  }
  const Published how = publish();
  try {
    if (options_.sync) sync_folder(parent_of(out_));
  } catch (...) {
    unpublish(how);  // the new name may not survive a crash: better none
    throw;
  }
  committed_ = true;
  remove_old(how);
}

StagedOutput::Published StagedOutput::publish() {
  if (is_present(out_) && !is_empty_folder(out_)) return replace_old();
  // An empty folder is replaced by rename itself; anything else that has appeared meanwhile makes it fail.
  const bool empty = is_present(out_);
  if (rename_path(staging_->path(), out_, empty ? 0 : RENAME_NOREPLACE)) {
    return empty ? Published::in_place_of_empty : Published::fresh;
  }
  if (!empty && flags_unsupported(errno) && rename_path(staging_->path(), out_, 0)) return Published::fresh;
  fail_renaming(out_, errno);
}

StagedOutput::Published StagedOutput::replace_old() {
  require_free(out_, options_.overwrite);  // as it is now
  struct stat old {};
  if (::stat(out_.c_str(), &old) == 0) ::chmod(staging_->path().c_str(), old.st_mode & 07777);  // its permissions stay
  if (rename_path(staging_->path(), out_, RENAME_EXCHANGE)) return Published::exchanged;
  if (!flags_unsupported(errno)) fail_renaming(out_, errno);
  if (is_present(aside())) fail_renaming(aside(), EEXIST);
  if (!rename_path(out_, aside(), 0)) fail_renaming(out_, errno);
  if (rename_path(staging_->path(), out_, 0)) return Published::moved_aside;
  const int error = errno;
  if (rename_path(aside(), out_, 0)) fail_renaming(out_, error);
  throw Error(ErrorCode::IO_WRITE, {.file = out_,
                                    .problem = "the old output was moved aside and could not be moved back",
                                    .got = std::strerror(error),
                                    .hint = "it is now " + aside()});
}

void StagedOutput::unpublish(Published how) noexcept {
  if (how == Published::exchanged) {
    rename_path(out_, staging_->path(), RENAME_EXCHANGE);
    return;
  }
  rename_path(out_, staging_->path(), 0);
  if (how == Published::moved_aside) rename_path(aside(), out_, 0);
  if (how == Published::in_place_of_empty) SystemCalls::get().mkdir(out_.c_str(), 0777);
}

void StagedOutput::remove_old(Published how) {
  const bool replaced = how == Published::exchanged || how == Published::moved_aside;
  const std::string old = how == Published::exchanged ? staging_->path() : aside();
  if (replaced && !remove_tree(old)) warnings_.push_back("the folder that was replaced could not be removed: " + old);
}

}  // namespace peft
