#include <fmt/core.h>

#include <algorithm>

#include "base/checked.h"
#include "safetensors/header_parts.h"

namespace peft::safetensors {
namespace {

bool before(const TensorInfo& a, const TensorInfo& b) {
  if (a.begin != b.begin) return a.begin < b.begin;
  if (a.end != b.end) return a.end < b.end;  // an empty tensor stands before the one that begins at the same byte
  return a.name < b.name;
}

std::string quoted(std::string_view name) { return "\"" + printable(name) + "\""; }

[[noreturn]] void refuse_gap(const TensorInfo* previous, const TensorInfo& tensor, std::uint64_t expected,
                             const FileFacts& file) {
  const std::string where = previous == nullptr ? "before the first tensor" : "after " + quoted(previous->name);
  throw Error(ErrorCode::ST_HOLE,
              {.file = file.path,
               .tensor = std::string(tensor.name),
               .problem = fmt::format("{} bytes {} belong to no tensor", tensor.begin - expected, where),
               .expected = fmt::format("data from byte {}", expected),
               .got = fmt::format("{}", tensor.begin),
               .hint = "such bytes may hide data; export the file again"});
}

[[noreturn]] void refuse_overlap(const TensorInfo& previous, const TensorInfo& tensor, const FileFacts& file) {
  throw Error(ErrorCode::ST_OVERLAP,
              {.file = file.path,
               .tensor = std::string(tensor.name),
               .problem = "the tensor shares bytes with " + quoted(previous.name),
               .expected = fmt::format("data from byte {}", previous.end),
               .got = fmt::format("[{}, {}) and [{}, {})", tensor.begin, tensor.end, previous.begin, previous.end)});
}

[[noreturn]] void refuse_truncated(std::span<const TensorInfo> tensors, std::uint64_t data_offset,
                                   std::uint64_t data_size, const FileFacts& file) {
  const auto first =
      std::find_if(tensors.begin(), tensors.end(), [&](const TensorInfo& t) { return t.end > data_size; });
  const auto total = checked_add(data_offset, tensors.back().end);
  throw Error(ErrorCode::ST_TRUNC,
              {.file = file.path,
               .tensor = std::string(first->name),
               .problem = "the file ends before this tensor's data does",
               .expected = total ? fmt::format("{} bytes in all", *total) : "more than 2^64 bytes in all",
               .got = fmt::format("{} bytes", file.size),
               .hint = "the download is incomplete: fetch the file again and compare its checksum"});
}

}  // namespace

void sort_by_offset(std::span<TensorInfo> tensors) {
  if (!std::is_sorted(tensors.begin(), tensors.end(), before)) std::sort(tensors.begin(), tensors.end(), before);
}

void require_exact_coverage(std::span<const TensorInfo> tensors, std::uint64_t data_offset, const FileFacts& file,
                            const OpenOptions& options, std::vector<std::string>& notes) {
  const TensorInfo* previous = nullptr;
  std::uint64_t covered = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin > covered) refuse_gap(previous, tensor, covered, file);
    if (tensor.begin < covered) refuse_overlap(*previous, tensor, file);
    covered = tensor.end;
    previous = &tensor;
  }
  const std::uint64_t data_size = file.size - data_offset;
  if (covered > data_size) refuse_truncated(tensors, data_offset, data_size, file);
  if (covered == data_size) return;
  const std::uint64_t extra = data_size - covered;
  if (!options.allow_trailing_bytes) {
    throw Error(ErrorCode::ST_TRAIL, {.file = file.path,
                                      .problem = fmt::format("{} bytes follow the last tensor", extra),
                                      .expected = fmt::format("{} bytes in all", data_offset + covered),
                                      .got = fmt::format("{} bytes", file.size),
                                      .hint = "--allow-trailing-bytes reads the file without them"});
  }
  notes.push_back(fmt::format("{} bytes after the last tensor are ignored", extra));
}

}  // namespace peft::safetensors
