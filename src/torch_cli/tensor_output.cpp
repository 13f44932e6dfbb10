#include "torch_cli/tensor_output.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <linux/fs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/system.h"
#include "peft/error.h"
#include "peft/safetensors.h"
#include "safetensors/writing/staged_output.h"

namespace peft::torch_cli {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void exists(const std::string& path) {
  throw Error(ErrorCode::OUT_EXISTS,
              {.file = path, .problem = "the output exists", .hint = "choose another path, or --overwrite"});
}

// The rename itself must reach the disk, too.
void sync_folder_of(const std::string& path) {
  const std::string folder = fs::absolute(path).parent_path().string();
  SystemCalls& calls = SystemCalls::get();
  const int fd = calls.open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (fd < 0) return;  // a folder that can be written and not read
  calls.fsync(fd);
  calls.close(fd);
}

void move_into_place(const std::string& from, const std::string& to, bool overwrite) {
  SystemCalls& calls = SystemCalls::get();
  if (calls.rename(from.c_str(), to.c_str(), overwrite ? 0 : RENAME_NOREPLACE) == 0) return sync_folder_of(to);
  const int error = errno;
  calls.unlink(from.c_str());
  if (error == EEXIST) exists(to);
  throw Error(ErrorCode::IO_WRITE, {.file = to, .problem = fmt::format("cannot be written: {}", std::strerror(error))});
}

}  // namespace

void require_free(const std::string& path, bool overwrite) {
  const fs::file_status status = fs::symlink_status(path);
  if (fs::is_directory(status))
    throw Error(ErrorCode::IO_KIND, {.file = path, .problem = "a folder, where a file is to be written"});
  if (fs::exists(status) && !overwrite) exists(path);
  const fs::path folder = fs::absolute(path).parent_path();
  if (!fs::is_directory(folder))
    throw Error(ErrorCode::IO_WRITE, {.file = path, .problem = "the folder it is to stand in does not exist"});
}

void write_tensor(const std::string& path, const std::string& name, const at::Tensor& tensor, bool overwrite) {
  const at::Tensor values = tensor.to(at::kCPU, at::kFloat).contiguous();
  const NewTensor entry{name, Dtype::f32, values.sizes().vec()};
  const FileLayout layout = layout_file(std::span(&entry, 1));
  const std::string partial = fmt::format("{}.partial-peft-{}", path, getpid());
  try {
    NewFile file(partial, layout.file_bytes());
    file.write_at(0, std::as_bytes(std::span(layout.head)));
    file.write_at(layout.head.size(), {static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()});
    file.close(true);
  } catch (...) {
    SystemCalls::get().unlink(partial.c_str());
    throw;
  }
  move_into_place(partial, path, overwrite);
}

}  // namespace peft::torch_cli
