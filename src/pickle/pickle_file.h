// adapter_model.bin: a state dict as torch.save writes it. It is a TensorFile: plans and views read its tensors like
// those of safetensors files. It is never written.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "peft/safetensors.h"
#include "safetensors/reading/input_file.h"
#include "safetensors/reading/mapping.h"

namespace peft::pickle {

// The archive's directory and the pickle are read, no tensor data is. metadata() is empty.
class PickleFile final : public TensorFile {
 public:
  // Throws as read_zip and read_pickle do; PK_TENSOR for a tensor that its storage does not hold, or whose elements do
  // not follow each other.
  static std::shared_ptr<const PickleFile> open(const std::string& path, const OpenOptions& options = {});
  // `image` must outlive the object.
  static std::shared_ptr<const PickleFile> parse(std::span<const std::byte> image, const std::string& path,
                                                 const OpenOptions& options = {});

  void prefetch(std::uint64_t begin, std::uint64_t end) const override;
  void release(std::uint64_t begin, std::uint64_t end) const override;
  void check_unchanged() const override;

 private:
  PickleFile(const safetensors::InputFile& file, const OpenOptions& options);
  PickleFile(std::span<const std::byte> image, const std::string& path, const OpenOptions& options);
  void adopt(std::span<const std::byte> image, const OpenOptions& options);

  std::shared_ptr<const safetensors::Mapping> mapping_;  // null for bytes in memory
  safetensors::FileIdentity identity_;
};

}  // namespace peft::pickle
