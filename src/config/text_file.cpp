#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "config/python_json.h"
#include "safetensors/reading/foreign_format.h"

namespace peft::config {
namespace {

[[noreturn]] void fail(ErrorCode code, const std::string& path, std::string problem, std::string hint = {}) {
  ErrorDetail detail;
  detail.file = path;
  detail.problem = std::move(problem);
  detail.hint = std::move(hint);
  throw Error(code, std::move(detail));
}

}  // namespace

std::string read_text_file(const std::string& path, ErrorCode missing) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) fail(missing, path, "there is no such file");
  if (error) fail(ErrorCode::IO_OPEN, path, "cannot be read: " + error.message());
  if (status.type() != std::filesystem::file_type::regular) fail(ErrorCode::IO_KIND, path, "not a regular file");

  std::ifstream in(path, std::ios::binary);
  if (!in) fail(ErrorCode::IO_OPEN, path, "cannot be opened", "check the file's permissions");
  std::string text;
  char block[1 << 14];
  while (in.read(block, sizeof block), in.gcount() > 0) {
    text.append(block, static_cast<std::size_t>(in.gcount()));
    if (text.size() > kMaxJsonBytes) {
      fail(missing, path, fmt::format("longer than the {} bytes a config may have", kMaxJsonBytes));
    }
  }
  if (in.bad()) fail(ErrorCode::IO_OPEN, path, "reading failed");
  safetensors::refuse_lfs_pointer(text, path, missing);
  return text;
}

}  // namespace peft::config
