// One open GGUF file. It is a TensorFile: plans and views read its tensors like those of safetensors files.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf/types/ggml_type.h"
#include "gguf/value.h"
#include "peft/safetensors.h"
#include "safetensors/reading/input_file.h"
#include "safetensors/reading/mapping.h"

namespace peft::gguf {

struct Header;

// TensorInfo::dtype is `unknown` for quantised types; TensorInfo::dtype_name names the ggml type. Shapes have the
// slowest dimension first. metadata() is empty: the values of a GGUF file have types, and are in values().
class GgufFile final : public TensorFile {
 public:
  // As TensorFile's: the header is validated, no tensor data is touched.
  static std::shared_ptr<const GgufFile> open(const std::string& path, const OpenOptions& options = {});
  static std::shared_ptr<const GgufFile> parse(std::span<const std::byte> image, const std::string& path,
                                               const OpenOptions& options = {});

  std::uint32_t version() const { return version_; }
  std::uint32_t alignment() const { return alignment_; }
  const KeyValues& values() const { return values_; }

  // The same file with other bytes for some tensors, as many as they had: by index into tensors(), in their order.
  using Replacements = std::vector<std::pair<std::uint32_t, std::vector<std::byte>>>;
  std::shared_ptr<const GgufFile> with(Replacements replacements) const;
  bool has_replacement(std::uint32_t tensor) const;
  // The same file with tensors of quantised types as F32 in memory, as far as their blocks are read. Null: it has none.
  std::shared_ptr<const GgufFile> unpacked() const;
  std::span<const std::byte> bytes(const TensorInfo& tensor) const override;
  GgmlType type_of(const TensorInfo& tensor) const { return *parse_ggml_type(tensor.dtype_name); }

  void prefetch(std::uint64_t begin, std::uint64_t end) const override;
  void release(std::uint64_t begin, std::uint64_t end) const override;
  void check_unchanged() const override;

 private:
  GgufFile(const safetensors::InputFile& file, const OpenOptions& options);
  GgufFile(std::span<const std::byte> image, const std::string& path, const OpenOptions& options);
  void adopt(Header header);

  std::uint32_t version_ = 0, alignment_ = 0;
  KeyValues values_;
  std::shared_ptr<const safetensors::Mapping> mapping_;  // null for bytes in memory
  safetensors::FileIdentity identity_;
  Replacements replacements_;
  std::shared_ptr<const std::vector<TensorInfo>> changed_;  // what tensors_ is a span of, where they are not the file's
};

}  // namespace peft::gguf
