#include "gguf/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "gguf/header.h"
#include "gguf/types/block_formats.h"

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
  const auto first = &Replacements::value_type::first;
  for (auto& old : file->replacements_)
    if (!std::ranges::binary_search(replacements, old.first, {}, first)) replacements.push_back(std::move(old));
  std::ranges::sort(replacements, {}, first);
  file->replacements_ = std::move(replacements);
  return file;
}

std::shared_ptr<const GgufFile> GgufFile::unpacked() const {
  auto changed = std::make_shared<std::vector<TensorInfo>>(tensors_.begin(), tensors_.end());
  Replacements values;
  std::uint64_t end = file_size_ - data_offset_;  // of the data: what lies in memory is said to lie after it
  for (std::uint32_t i = 0; i < changed->size(); ++i) {
    TensorInfo& tensor = (*changed)[i];
    const GgmlType type = type_of(tensor);
    if (find_block_format(type) == nullptr) continue;
    const auto blocks = TensorFile::bytes(tensor);
    const std::size_t bytes =
        blocks.size() / info(type).block_bytes * static_cast<std::size_t>(info(type).block) * sizeof(float);
    auto& [index, memory] = values.emplace_back(i, std::vector<std::byte>(bytes));
    unpack_blocks(type, blocks, reinterpret_cast<float*>(memory.data()));
    tensor.dtype = Dtype::f32, tensor.dtype_name = info(GgmlType::f32).name;
    tensor.begin = std::exchange(end, end + bytes), tensor.end = end;
  }
  if (values.empty()) return nullptr;
  auto file = std::shared_ptr<GgufFile>(new GgufFile(*this));
  file->tensors_ = *changed;
  file->changed_ = std::move(changed);
  file->replacements_ = std::move(values);
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
