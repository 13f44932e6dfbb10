#include "pickle/pickle_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "base/checked.h"
#include "base/text.h"
#include "peft/error.h"
#include "pickle/pickle_stream.h"
#include "pickle/zip_archive.h"
#include "safetensors/reading/header.h"

namespace peft::pickle {
namespace {

using safetensors::kMaxName;
using safetensors::kMaxRank;

// Tensors and their names, made of the archive's directory and its pickle.
class TensorList {
 public:
  TensorList(std::span<const std::byte> image, const std::string& path, const OpenOptions& options)
      : image_(image), path_(path), entries_(read_zip(image, path, options.max_tensors + kOtherEntries)) {
    find_root();
    header_.memory = std::make_unique<std::pmr::monotonic_buffer_resource>();
  }

  safetensors::Header take() {
    const ZipEntry& stream = required("data.pkl");
    require_checksum(image_, stream, path_);
    require_little_endian();
    const Pickle pickle = read_pickle(text_of(stream), path_);
    pickle_ = &pickle;
    header_.notes = pickle.notes;
    const Value& top = pickle[pickle.top];
    if (top.kind != Kind::dict) refuse_top("no dictionary of tensors");
    auto& memory = *header_.memory;
    const std::size_t count = top.items.size() / 2;
    auto* tensors = static_cast<TensorInfo*>(
        memory.allocate(std::max<std::size_t>(count, 1) * sizeof(TensorInfo), alignof(TensorInfo)));
    for (std::size_t i = 0; i < count; ++i)
      new (tensors + i) TensorInfo(tensor(top.items[2 * i], top.items[2 * i + 1]));
    sort({tensors, count});
    note_unused();
    return std::move(header_);
  }

 private:
  static constexpr std::uint64_t kOtherEntries = 64;  // data.pkl, version, byteorder, ...

  std::string_view text_of(const ZipEntry& entry) const {
    return {reinterpret_cast<const char*>(image_.data()) + entry.begin, entry.end - entry.begin};
  }
  [[noreturn]] void fail(ErrorCode code, std::string_view tensor, ErrorReason reason) const {
    at(path_, std::string(tensor)).fail(code, std::move(reason));
  }
  [[noreturn]] void refuse_top(std::string got) const {
    fail(ErrorCode::E_PICKLE, "data.pkl",
         {.problem = "the file is no state dict",
          .expected = "a dictionary from names to tensors",
          .got = std::move(got),
          .hint = "is it a checkpoint of a trainer? The adapter's own adapter_model.bin has tensors alone"});
  }

  // All entries lie in one folder, which torch names after the file.
  void find_root() {
    const auto stream = std::ranges::find_if(entries_, [](const ZipEntry& entry) {
      return entry.name.ends_with("/data.pkl") && entry.name.find('/') == entry.name.size() - 9;
    });
    if (stream == entries_.end()) {
      fail(ErrorCode::E_PICKLE, {},
           {.problem = "an archive without data.pkl", .expected = "an archive as torch.save writes it"});
    }
    root_ = stream->name.substr(0, stream->name.size() - 8);
    const auto other =
        std::ranges::find_if(entries_, [&](const ZipEntry& entry) { return !entry.name.starts_with(root_); });
    if (other != entries_.end()) {
      fail(ErrorCode::PK_ARCHIVE, {},
           {.problem = "the entry " + printable(other->name) + " lies outside of " + printable(root_)});
    }
    if (find_entry(entries_, std::string(root_) + "constants.pkl") == nullptr) return;
    fail(ErrorCode::E_PICKLE, {},
         {.problem = "a TorchScript archive, which holds code",
          .expected = "a state dict",
          .hint = "save the adapter with save_pretrained"});
  }
  const ZipEntry& required(const std::string& name) const {
    if (const ZipEntry* entry = find_entry(entries_, std::string(root_) + name)) return *entry;
    fail(ErrorCode::PK_ARCHIVE, {}, {.problem = "the archive has no entry " + printable(std::string(root_) + name)});
  }
  void require_little_endian() const {
    const ZipEntry* order = find_entry(entries_, std::string(root_) + "byteorder");
    if (order == nullptr || text_of(*order) == "little") return;
    fail(ErrorCode::E_PICKLE, {},
         {.problem = "the tensors have another byte order", .expected = "little", .got = printable(text_of(*order))});
  }

  TensorInfo tensor(std::uint32_t key_place, std::uint32_t place) {
    const Value &key = (*pickle_)[key_place], &made = (*pickle_)[place];
    if (key.kind != Kind::text) refuse_top("a key that is no text");
    if (key.text.empty() || key.text.size() > kMaxName || find_invalid_utf8(key.text) != std::string_view::npos)
      refuse_top("a name that is empty, too long or not UTF-8");
    if (made.kind != Kind::tensor) refuse_top(printable(key.text) + " is no tensor");
    auto& memory = *header_.memory;
    auto* name = static_cast<char*>(memory.allocate(key.text.size(), 1));
    std::memcpy(name, key.text.data(), key.text.size());
    TensorInfo tensor;
    tensor.name = {name, key.text.size()};
    tensor.dtype = made.dtype;
    tensor.dtype_name = info(made.dtype).name;
    tensor.shape = shape_of(tensor.name, (*pickle_)[made.items[2]]);
    place_in_storage(tensor, made);
    return tensor;
  }

  std::span<const std::int64_t> shape_of(std::string_view name, const Value& size) {
    if (size.items.size() > kMaxRank)
      fail(ErrorCode::PK_TENSOR, name, {.problem = "the tensor has too many dimensions"});
    if (size.items.empty()) return {};
    auto* shape = static_cast<std::int64_t*>(
        header_.memory->allocate(size.items.size() * sizeof(std::int64_t), alignof(std::int64_t)));
    for (std::size_t i = 0; i < size.items.size(); ++i) {
      const Value& dimension = (*pickle_)[size.items[i]];
      if (dimension.kind != Kind::integer || dimension.number < 0)
        fail(ErrorCode::PK_TENSOR, name, {.problem = "a dimension of the tensor is no size"});
      shape[i] = dimension.number;
    }
    return {shape, size.items.size()};
  }

  void place_in_storage(TensorInfo& tensor, const Value& made) {
    const Value &storage = (*pickle_)[made.items[0]], &offset = (*pickle_)[made.items[1]];
    require_in_order(tensor, (*pickle_)[made.items[3]]);
    const ZipEntry& data = required("data/" + std::string(storage.text));
    used_.push_back(data.name);
    const std::uint64_t bytes = data.end - data.begin, item = static_cast<std::uint64_t>(info(made.dtype).bits) / 8;
    const std::uint64_t stated_item = static_cast<std::uint64_t>(info(storage.dtype).bits) / 8;
    if (storage.number < 0 || checked_mul(static_cast<std::uint64_t>(storage.number), stated_item) != bytes) {
      fail(ErrorCode::PK_TENSOR, tensor.name,
           {.problem = "the tensor's storage has another size than the pickle says",
            .expected = fmt::format("{} elements of {}", storage.number, info(storage.dtype).name),
            .got = fmt::format("{} bytes", bytes)});
    }
    std::optional<std::uint64_t> count = 1, begin, end;
    for (const std::int64_t dimension : tensor.shape)
      count = count ? checked_mul(*count, static_cast<std::uint64_t>(dimension)) : count;
    if (offset.number >= 0) begin = checked_mul(static_cast<std::uint64_t>(offset.number), item);
    if (count) count = checked_mul(*count, item);
    if (begin && count) end = checked_add(*begin, *count);
    if (!end || *end > bytes) {
      fail(ErrorCode::PK_TENSOR, tensor.name,
           {.problem = "the tensor is larger than its storage",
            .expected = fmt::format("at most {} bytes", bytes),
            .got = fmt::format("shape {} of {} from element {}", shape_text(tensor.shape), tensor.dtype_name,
                               offset.number)});
    }
    tensor.begin = data.begin + *begin, tensor.end = data.begin + *end;
  }

  void require_in_order(const TensorInfo& tensor, const Value& strides) const {
    std::int64_t step = 1;
    bool in_order = strides.items.size() == tensor.shape.size();
    const bool empty = std::ranges::find(tensor.shape, 0) != tensor.shape.end();
    for (std::size_t i = tensor.shape.size(); in_order && !empty && i-- > 0;) {
      const Value& stride = (*pickle_)[strides.items[i]];
      in_order = stride.kind == Kind::integer && (tensor.shape[i] == 1 || stride.number == step);
      const auto next = checked_mul(step, tensor.shape[i]);
      if (!next) break;  // refused as larger than its storage
      step = *next;
    }
    if (in_order) return;
    fail(ErrorCode::PK_TENSOR, tensor.name,
         {.problem = "the tensor's elements do not follow each other: it was saved as a view of another one",
          .expected = "a tensor as .contiguous() makes it",
          .hint = "save the adapter again with save_pretrained, which writes safetensors"});
  }

  void sort(std::span<TensorInfo> list) {
    std::stable_sort(list.begin(), list.end(), [](const TensorInfo& a, const TensorInfo& b) {
      if (a.begin != b.begin) return a.begin < b.begin;
      return a.end != b.end ? a.end < b.end : a.name < b.name;
    });
    header_.tensors = list;
    header_.names = safetensors::NameIndex(list, *header_.memory);
    const auto [first, second] = header_.names.duplicate();
    if (first == safetensors::NameIndex::kNone) return;
    fail(ErrorCode::PK_TENSOR, list[first].name, {.problem = "two tensors have this name"});
  }

  void note_unused() {
    std::ranges::sort(used_);
    const std::string prefix = std::string(root_) + "data/";
    const auto unused = std::ranges::count_if(entries_, [&](const ZipEntry& entry) {
      return entry.name.starts_with(prefix) && !std::ranges::binary_search(used_, entry.name);
    });
    if (unused != 0) header_.notes.push_back(fmt::format("{} storages in the archive belong to no tensor", unused));
  }

  std::span<const std::byte> image_;
  const std::string& path_;
  std::vector<ZipEntry> entries_;
  std::string_view root_;  // "archive/"
  const Pickle* pickle_ = nullptr;
  std::vector<std::string_view> used_;
  safetensors::Header header_;
};

}  // namespace

std::shared_ptr<const PickleFile> PickleFile::open(const std::string& path, const OpenOptions& options) {
  return std::shared_ptr<const PickleFile>(new PickleFile(safetensors::InputFile(path), options));
}

std::shared_ptr<const PickleFile> PickleFile::parse(std::span<const std::byte> image, const std::string& path,
                                                    const OpenOptions& options) {
  return std::shared_ptr<const PickleFile>(new PickleFile(image, path, options));
}

PickleFile::PickleFile(const safetensors::InputFile& file, const OpenOptions& options) : identity_(file.identity()) {
  path_ = file.path();
  mapping_ = std::make_shared<const safetensors::Mapping>(file.fd(), file.size(), file.path());
  adopt({mapping_->data(), mapping_->size()}, options);
  mapping_->require_undamaged(path_);
}

PickleFile::PickleFile(std::span<const std::byte> image, const std::string& path, const OpenOptions& options) {
  path_ = path;
  adopt(image, options);
}

void PickleFile::adopt(std::span<const std::byte> image, const OpenOptions& options) {
  file_size_ = image.size();
  data_ = image.data();  // offsets of tensors are those in the archive
  safetensors::Header header = TensorList(image, path_, options).take();
  tensors_ = header.tensors;
  notes_ = std::move(header.notes);
  index_ = std::make_shared<const Index>(Index{std::move(header)});
}

void PickleFile::prefetch(std::uint64_t begin, std::uint64_t end) const {
  if (mapping_) mapping_->prefetch(begin, end);
}

void PickleFile::release(std::uint64_t begin, std::uint64_t end) const {
  if (mapping_) mapping_->release(begin, end);
}

void PickleFile::check_unchanged() const {
  if (!mapping_) return;
  safetensors::require_unchanged(path_, identity_);
  mapping_->require_undamaged(path_);
}

}  // namespace peft::pickle
