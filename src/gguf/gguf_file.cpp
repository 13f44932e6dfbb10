#include "gguf/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "gguf/header.h"

namespace peft::gguf {

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path, const OpenOptions& options) {
  return std::shared_ptr<const GgufFile>(new GgufFile(safetensors::InputFile(path), options));
}

std::shared_ptr<const GgufFile> GgufFile::parse(std::span<const std::byte> image, const std::string& path,
                                                const OpenOptions& options) {
  return std::shared_ptr<const GgufFile>(new GgufFile(image, path, options));
}

GgufFile::GgufFile(const safetensors::InputFile& file, const OpenOptions& options) : identity_(file.identity()) {
  path_ = file.path();
  file_size_ = file.size();
  const auto read = [&](std::uint64_t offset, std::span<char> bytes) { file.read(offset, bytes); };
  adopt(parse_header({path_, file_size_}, read, options));
  mapping_ = std::make_shared<const safetensors::Mapping>(file.fd(), file.size(), file.path());
  data_ = mapping_->data() + data_offset_;
}

GgufFile::GgufFile(std::span<const std::byte> image, const std::string& path, const OpenOptions& options) {
  path_ = path;
  file_size_ = image.size();
  const auto read = [&](std::uint64_t offset, std::span<char> bytes) {
    if (!bytes.empty()) std::memcpy(bytes.data(), image.data() + offset, bytes.size());
  };
  adopt(parse_header({path_, file_size_}, read, options));
  data_ = image.data() + data_offset_;
}

void GgufFile::adopt(Header header) {
  version_ = header.version;
  alignment_ = header.alignment;
  values_ = std::move(header.values);
  data_offset_ = header.data_offset;
  tensors_ = header.list.tensors;
  notes_ = std::move(header.list.notes);
  index_ = std::make_shared<const Index>(Index{std::move(header.list)});
}

std::shared_ptr<const GgufFile> GgufFile::with(Replacements replacements) const {
  auto file = std::shared_ptr<GgufFile>(new GgufFile(*this));
  file->replacements_ = std::move(replacements);
  return file;
}

bool GgufFile::has_replacement(std::uint32_t tensor) const {
  return std::ranges::binary_search(replacements_, tensor, {}, &Replacements::value_type::first);
}

std::span<const std::byte> GgufFile::bytes(const TensorInfo& tensor) const {
  const auto index = static_cast<std::uint32_t>(&tensor - tensors_.data());
  const auto found = std::ranges::lower_bound(replacements_, index, {}, &Replacements::value_type::first);
  return found != replacements_.end() && found->first == index ? found->second : TensorFile::bytes(tensor);
}

void GgufFile::prefetch(std::uint64_t begin, std::uint64_t end) const {
  if (mapping_) mapping_->prefetch(data_offset_ + begin, data_offset_ + end);
}

void GgufFile::release(std::uint64_t begin, std::uint64_t end) const {
  if (mapping_) mapping_->release(data_offset_ + begin, data_offset_ + end);
}

void GgufFile::check_unchanged() const {
  if (!mapping_) return;
  safetensors::require_unchanged(path_, identity_);
  mapping_->require_undamaged(path_);
}

}  // namespace peft::gguf
