#include "safetensors/named_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "peft/error.h"

namespace peft::safetensors {
namespace {

namespace fs = std::filesystem;

bool within(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

// `folder`, or a folder above it, is a snapshot of a repository in a Hugging Face cache, and `path` is in its blobs.
bool is_blob_of(const fs::path& path, const fs::path& folder) {
  for (fs::path up = folder; up.has_relative_path(); up = up.parent_path()) {
    const fs::path snapshots = up.parent_path();
    if (snapshots.filename() == "snapshots" && within(path, snapshots.parent_path() / "blobs")) return true;
  }
  return false;
}

// Both without links.
void require_inside(const fs::path& real, const fs::path& folder, const std::string& shown) {
  if (within(real, folder) || is_blob_of(real, folder)) return;
  throw Error(ErrorCode::IX_LINK, {.file = shown,
                                   .problem = "a link that leaves its folder",
                                   .expected = "a file in " + folder.string(),
                                   .got = real.string(),
                                   .hint = "--follow-symlinks accepts it"});
}

fs::path real_path(const std::string& path) {
  std::error_code error;
  fs::path real = fs::canonical(path, error);
  if (!error) return real;
  const std::string reason = error.message();
  const bool link = fs::is_symlink(fs::symlink_status(path, error));
  throw Error(ErrorCode::IO_OPEN, {.file = path,
                                   .problem = link ? "the link leads nowhere" : "the file cannot be opened",
                                   .got = reason,
                                   .hint = link ? "fetch what it leads to, or remove it" : ""});
}

}  // namespace

void require_inside(const InputFile& file, const std::string& folder) {
  std::error_code error;
  fs::path real = fs::read_symlink(fmt::format("/proc/self/fd/{}", file.fd()), error);
  if (error) real = real_path(file.path());  // no /proc here
  require_inside(real, real_path(folder), file.path());
}

std::string path_inside(const std::string& folder, const std::string& name, bool follow_symlinks) {
  const fs::path root = real_path(folder);
  const std::string shown = (fs::path(folder) / name).string();
  const fs::path real = real_path(shown);
  if (!follow_symlinks) require_inside(real, root, shown);
  if (real == root / name) {  // no link: the name stays as it was given
    const InputFile readable(shown);
    return shown;
  }
  try {
    const InputFile readable(real.string());
  } catch (const Error& error) {
    ErrorDetail detail = error.detail();
    detail.file = shown;
    throw Error(error.code(), std::move(detail));
  }
  return real.string();
}

}  // namespace peft::safetensors
