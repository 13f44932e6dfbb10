#include <algorithm>
#include <array>
#include <cstring>

#include "peft/error.h"
#include "peft/safetensors.h"
#include "safetensors/foreign_format.h"
#include "safetensors/header.h"
#include "safetensors/mapping.h"
#include "safetensors/open_tensor_file.h"

namespace peft {

// Owns what tensors_ points to.
struct TensorFile::Index {
  safetensors::Header header;
};

namespace safetensors {
namespace {

constexpr std::size_t kFirstBytes = 512;  // enough to tell other formats by

// What the two kinds of file share: the header, from wherever its bytes come.
class HeaderedFile : public TensorFile {
 protected:
  HeaderedFile(std::string path, std::uint64_t size) {
    path_ = std::move(path);
    file_size_ = size;
  }

  template <typename Read>  // Read(std::uint64_t offset, std::span<char> bytes) fills all of `bytes`
  void read_header(const OpenOptions& options, Read read) {
    std::array<char, kFirstBytes> first{};
    const std::string_view start(first.data(), std::min<std::uint64_t>(first.size(), file_size_));
    read(0, std::span(first).first(start.size()));
    const FileFacts file{path_, file_size_};
    try {
      const std::span<char> json = json_buffer(header_length(start, file));
      read(kLengthBytes, json);
      adopt(parse_header({json.data(), json.size()}, file, options));
      data_offset_ = kLengthBytes + json.size();
    } catch (const Error&) {
      refuse_foreign_format(start, path_);  // a better answer, when the file is something that can be named
      throw;
    }
  }

 private:
  void adopt(Header header) {
    tensors_ = header.tensors;
    metadata_ = std::move(header.metadata);
    notes_ = std::move(header.notes);
    index_ = std::make_shared<const Index>(Index{std::move(header)});
  }
};

class MappedFile final : public HeaderedFile {
 public:
  MappedFile(const InputFile& file, const OpenOptions& options)
      : HeaderedFile(file.path(), file.size()), identity_(file.identity()) {
    read_header(options, [&](std::uint64_t offset, std::span<char> bytes) { file.read(offset, bytes); });
    mapping_ = std::make_unique<Mapping>(file.fd(), file.size(), file.path());
    data_ = mapping_->data() + data_offset_;
  }

  void prefetch(std::uint64_t begin, std::uint64_t end) const override {
    mapping_->prefetch(data_offset_ + begin, data_offset_ + end);
  }
  void release(std::uint64_t begin, std::uint64_t end) const override {
    mapping_->release(data_offset_ + begin, data_offset_ + end);
  }
  void check_unchanged() const override {
    require_unchanged(path_, identity_);
    if (!mapping_->damaged()) return;
    throw Error(ErrorCode::IO_CHANGED, {.file = path_,
                                        .problem = "a part of the file could not be read",
                                        .hint = "the file shrank for a time, or its disk or network failed"});
  }

 private:
  std::unique_ptr<Mapping> mapping_;
  FileIdentity identity_;
};

class MemoryFile final : public HeaderedFile {
 public:
  MemoryFile(std::span<const std::byte> image, const std::string& path, const OpenOptions& options)
      : HeaderedFile(path, image.size()) {
    read_header(options, [&](std::uint64_t offset, std::span<char> bytes) {
      if (!bytes.empty()) std::memcpy(bytes.data(), image.data() + offset, bytes.size());
    });
    data_ = image.data() + data_offset_;
  }

  void prefetch(std::uint64_t, std::uint64_t) const override {}
  void release(std::uint64_t, std::uint64_t) const override {}
  void check_unchanged() const override {}
};

}  // namespace

std::shared_ptr<const TensorFile> open_tensor_file(const InputFile& file, const OpenOptions& options) {
  return std::make_shared<const MappedFile>(file, options);
}

}  // namespace safetensors

std::shared_ptr<const TensorFile> TensorFile::open(const std::string& path, const OpenOptions& options) {
  return safetensors::open_tensor_file(safetensors::InputFile(path), options);
}

std::shared_ptr<const TensorFile> TensorFile::parse(std::span<const std::byte> image, const std::string& path,
                                                    const OpenOptions& options) {
  return std::make_shared<const safetensors::MemoryFile>(image, path, options);
}

const TensorInfo* TensorFile::find(std::string_view name) const {
  const std::uint32_t number = index_->header.names.find(name);
  return number == safetensors::NameIndex::kNone ? nullptr : &tensors_[number];
}

std::span<const std::byte> TensorFile::bytes(const TensorInfo& tensor) const {
  return {data_ + tensor.begin, tensor.bytes()};
}

}  // namespace peft
