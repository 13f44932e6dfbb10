#include "safetensors/writing/staged_output.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/system.h"
#include "peft/error.h"
#include "safetensors/reading/input_file.h"

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
  at(out).fail(ErrorCode::OUT_EXISTS, {.problem = "the output has appeared while it was written",
                                       .hint = "choose another name; is another program writing it?"});
}

void require_content(const NewFile& file, std::uint64_t offset, std::span<const std::byte> expected) {
  std::vector<std::byte> found(expected.size());
  file.read_at(offset, found);
  if (std::equal(found.begin(), found.end(), expected.begin())) return;
  at(file.path())
      .fail(ErrorCode::OUT_READBACK, {.problem = "the file does not read back as it was written",
                                      .hint = "check the disk and the memory of this machine, then try again"});
}

bool stays_inside(const std::string& name) {
  const fs::path path(name);
  if (name.empty() || path.is_absolute() || !path.has_filename()) return false;
  return std::none_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".." || part == "."; });
}

}  // namespace

StagedOutput::StagedOutput(const std::string& out_folder, Options options, const std::vector<std::string>& input_paths)
    : out_(output_path(out_folder)), options_(std::move(options)) {
  require_no_alias(out_, input_paths);
  require_free(out_, options_.overwrite, options_.single_file);
  require_space(parent_of(out_), options_.expected_bytes);
  staging_.emplace(out_, options_.claim, options_.overwrite, options_.part);
  if (!options_.keep || !options_.sync) return;
  sync_folder(staging_->path());  // what is kept must still be found after a crash
  sync_folder(parent_of(out_));
}

StagedOutput::~StagedOutput() {
  if (committed_) return;
  for (Staged& staged : files_) {
    if (!staged.finished) SystemCalls::get().unlink(staged.file->path().c_str());
  }
  files_.clear();
  if (options_.claim == Claim::share) return;  // others may be writing into it
  try {
    if (!keeps_something()) staging_->remove();
  } catch (...) {  // no memory for a path: the next run tidies up
  }
}

// An empty folder is not kept.
bool StagedOutput::keeps_something() const { return options_.keep && !is_empty_folder(staging_->files()); }

void StagedOutput::make_subfolders(const std::string& name) {
  if (!stays_inside(name)) {
    at(name).fail(ErrorCode::INTERNAL, {.problem = "the name of an output file leaves the output folder"});
  }
  for (auto slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    const std::string folder = finished_path(name.substr(0, slash));
    const bool made = SystemCalls::get().mkdir(folder.c_str(), 0777) == 0;
    if (!made && errno != EEXIST) fail_writing(folder, "mkdir", errno);
    if (std::find(folders_.begin(), folders_.end(), folder) == folders_.end()) folders_.push_back(folder);
  }
}

NewFile& StagedOutput::add_file(const std::string& name, std::uint64_t size) {
  make_subfolders(name);
  require_space(staging_->path(), size);
  files_.push_back({name, std::make_unique<NewFile>(staging_->temporary_path(name), size)});
  return *files_.back().file;
}

void StagedOutput::finish(NewFile& file) {
  const auto is_it = [&](const Staged& staged) { return staged.file.get() == &file; };
  finish(*std::find_if(files_.rbegin(), files_.rend(), is_it));
}

void StagedOutput::finish(Staged& staged) {
  if (staged.finished) return;
  staged.file->close(options_.sync);
  const std::string path = finished_path(staged.name);
  if (!rename_path(staged.file->path(), path, 0)) fail_writing(path, "rename", errno);
  staged.finished = true;
  if (options_.keep && options_.sync) sync_folder(parent_of(path));
}

void StagedOutput::add_text(const std::string& name, std::string_view content) {
  NewFile& file = add_file(name, content.size());
  file.write_at(0, std::as_bytes(std::span(content)));
  if (options_.readback) require_content(file, 0, std::as_bytes(std::span(content)));
  finish(file);
}

void StagedOutput::copy_file(const std::string& name, const std::string& path) {
  const InputFile input(path, InputFile::Links::refuse);
  NewFile& copy = add_file(name, input.size());
  std::vector<char> block(std::min(kCopyBlock, input.size()));
  for (std::uint64_t at = 0; at < input.size(); at += block.size()) {
    const auto part = std::span(block).first(std::min<std::uint64_t>(block.size(), input.size() - at));
    input.read(at, part);
    copy.write_at(at, std::as_bytes(part));
    if (options_.readback) require_content(copy, at, std::as_bytes(part));
  }
  require_unchanged(path, input.identity());
  finish(copy);
}

void StagedOutput::commit() {
  for (Staged& staged : files_) finish(staged);
  if (options_.sync) {
    for (auto folder = folders_.rbegin(); folder != folders_.rend(); ++folder) sync_folder(*folder);
    sync_folder(staging_->files());
  }
  const Published how = publish();
  try {
    if (options_.sync) sync_folder(parent_of(out_));
  } catch (...) {
    unpublish(how);  // the new name might not survive a crash
    throw;
  }
  committed_ = true;
  tidy_up(how);
}

std::string StagedOutput::made() const {
  return options_.single_file ? finished_path(files_.front().name) : staging_->files();
}

StagedOutput::Published StagedOutput::publish() {
  if (is_present(out_) && !is_empty_folder(out_)) return replace_old();
  // An empty folder is replaced by rename itself; anything else that has appeared meanwhile makes it fail.
  const bool empty = is_present(out_);
  if (rename_path(made(), out_, empty ? 0 : RENAME_NOREPLACE)) {
    return empty ? Published::in_place_of_empty : Published::fresh;
  }
  if (!empty && flags_unsupported(errno) && rename_path(made(), out_, 0)) return Published::fresh;
  fail_renaming(out_, errno);
}

StagedOutput::Published StagedOutput::replace_old() {
  require_free(out_, options_.overwrite, options_.single_file);  // as it is now
  struct stat old {};
  if (::stat(out_.c_str(), &old) == 0) ::chmod(made().c_str(), old.st_mode & 07777);  // its permissions stay
  if (rename_path(made(), out_, RENAME_EXCHANGE)) return Published::exchanged;
  if (!flags_unsupported(errno)) fail_renaming(out_, errno);
  if (is_present(aside())) fail_renaming(aside(), EEXIST);
  if (!rename_path(out_, aside(), 0)) fail_renaming(out_, errno);
  if (rename_path(made(), out_, 0)) return Published::moved_aside;
  const int error = errno;
  if (rename_path(aside(), out_, 0)) fail_renaming(out_, error);
  at(out_).fail(ErrorCode::IO_WRITE, {.problem = "the old output was moved aside and could not be moved back",
                                      .got = std::strerror(error),
                                      .hint = "it is now " + aside()});
}

void StagedOutput::unpublish(Published how) noexcept {
  if (how == Published::exchanged) {
    rename_path(out_, made(), RENAME_EXCHANGE);
    return;
  }
  rename_path(out_, made(), 0);
  if (how == Published::moved_aside) rename_path(aside(), out_, 0);
  if (how == Published::in_place_of_empty) SystemCalls::get().mkdir(out_.c_str(), 0777);
}

void StagedOutput::tidy_up(Published how) {
  const bool removed = staging_->remove();  // an exchanged folder is in it now
  if (!removed && how == Published::exchanged) {
    warnings_.push_back("what was replaced could not be removed: " + staging_->files());
  } else if (!removed) {
    warnings_.push_back("this could not be removed: " + staging_->path());
  }
  if (how == Published::moved_aside && !remove_tree(aside()))
    warnings_.push_back("what was replaced could not be removed: " + aside());
}

}  // namespace peft
