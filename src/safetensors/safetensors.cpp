// What peft/safetensors.h declares for reading: one file, and a folder of shards.
#include "peft/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/text.h"
#include "peft/error.h"
#include "safetensors/reading/header.h"
#include "safetensors/reading/json.h"
#include "safetensors/reading/mapping.h"
#include "safetensors/reading/shard_index.h"

namespace peft {
namespace {

namespace fs = std::filesystem;
using namespace safetensors;

// ---- Files of other formats, recognised by their first bytes

constexpr std::string_view kConvertFirst = "convert it to safetensors first";
constexpr std::string_view kUnpackFirst = "unpack it first";
constexpr std::string_view kGzip = "\x1f\x8b\x08";

struct Magic {
  std::string_view bytes;
  std::string_view what;
  std::string_view hint;
};

constexpr Magic kMagics[] = {
    {kLfsPointer, kLfsText, kLfsHint},
    {"GGUF", "a GGUF file", kConvertFirst},
    {"\x93NUMPY", "a NumPy array file", kConvertFirst},
    {"\x89HDF\r\n\x1a\n", "an HDF5 file", kConvertFirst},
    {"\x28\xb5\x2f\xfd", "a Zstandard archive", kUnpackFirst},
    {"BZh", "a bzip2 archive", kUnpackFirst},
    {"\xfd"
     "7zXZ",
     "an xz archive", kUnpackFirst},
};

[[noreturn]] void refuse(const std::string& path, std::string_view what, std::string_view hint) {
  at(path).fail(ErrorCode::NOT_ST,
                {.problem = "not a safetensors file", .got = std::string(what), .hint = std::string(hint)});
}

[[noreturn]] void refuse_pickle(const std::string& path, std::string_view what) {
  at(path).fail(ErrorCode::E_PICKLE,
                {.problem = "a pickle can run code when it is loaded, so it is never opened",
                 .expected = "a safetensors file",
                 .got = std::string(what),
                 .hint = "if you trust it: python -c \"import torch, safetensors.torch as s; "
                         "s.save_file(torch.load('FILE', weights_only=True), 'NEW.safetensors')\""});
}

// The local header of a zip archive's first entry names it: torch.save begins with NAME/data.pkl.
void refuse_zip(std::string_view start, const std::string& path) {
  constexpr std::size_t kLengthAt = 26, kNameAt = 30;
  if (start.size() < kNameAt) refuse(path, "a zip archive", kUnpackFirst);
  const auto length =
      static_cast<unsigned char>(start[kLengthAt]) + static_cast<unsigned char>(start[kLengthAt + 1]) * 256u;
  const std::string_view name = start.substr(kNameAt, length);
  if (name.ends_with(".npy")) refuse(path, "a NumPy .npz archive", kConvertFirst);
  if (name.ends_with(".pkl") || name.ends_with("/version") || name.ends_with("/byteorder")) {
    refuse_pickle(path, "a zip archive with a pickle, as torch.save writes it");
  }
  refuse(path, "a zip archive", kUnpackFirst);
}

bool may_be_header_length(std::string_view start) {
  if (start.size() < kLengthBytes) return true;
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(start[i]);
  return length <= kMaxHeader;
}

bool is_html(std::string_view start) {
  const auto text = start.find_first_not_of(" \t\r\n");
  if (text == std::string_view::npos) return false;
  std::string lower;
  for (const char c : start.substr(text, 16)) lower += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return lower.starts_with("<!doctype") || lower.starts_with("<html") || lower.starts_with("<?xml") ||
         lower.starts_with("<head");
}

// Throws NOT_ST or E_PICKLE when `start` (the first 512 bytes, or all of a shorter file) is that of a known other
// format; returns otherwise. It is called only for files that have been refused already.
void refuse_foreign_format(std::string_view start, const std::string& path) {
  if (start.starts_with("PK\x03\x04")) refuse_zip(start, path);
  if (start.starts_with(kGzip)) refuse(path, "a gzip archive", kUnpackFirst);
  // The other marks are short, or texts: when they may as well be a header's length, they prove nothing.
  if (may_be_header_length(start)) return;
  for (const Magic& magic : kMagics) {
    if (start.starts_with(magic.bytes)) refuse(path, magic.what, magic.hint);
  }
  if (start[0] == '\x80' && start[1] >= 2 && start[1] <= 5) refuse_pickle(path, "a pickle");
  if (is_html(start)) refuse(path, "an HTML page", "check the address and the access token of the download");
  if (start.starts_with("{")) {
    refuse(path, "a JSON text", "a safetensors file begins with 8 bytes of length; is this a config or an index?");
  }
}

// ---- One file

constexpr std::size_t kFirstBytes = 512;  // enough to tell other formats by

// The part that mapped files and files in memory share: reading the header.
class HeaderedFile : public TensorFile {
 protected:
  explicit HeaderedFile(std::string path) { path_ = std::move(path); }
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
      refuse_foreign_format(start, path_);  // throws a better error when it knows the format
      throw;
    }
  }

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
    mapping_->require_undamaged(path_);
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

// Tensors that others hold. The byte ranges count from the lowest address.
class MemoryTensors final : public HeaderedFile {
 public:
  MemoryTensors(std::span<const TensorInMemory> tensors, const std::string& path, const OpenOptions& options)
      : HeaderedFile(path) {
    for (const TensorInMemory& tensor : tensors) {
      if (tensor.data != nullptr && (data_ == nullptr || tensor.data < data_)) data_ = tensor.data;
    }
    adopt(describe_memory(tensors, data_, FileFacts{.path = path, .part = "list"}, options));
    for (const TensorInfo& tensor : tensors_) file_size_ += tensor.bytes();
  }

  void prefetch(std::uint64_t, std::uint64_t) const override {}
  void release(std::uint64_t, std::uint64_t) const override {}
  void check_unchanged() const override {}
};

// ---- A folder of shards

constexpr const char* kPickles[] = {"pytorch_model.bin", "pytorch_model.bin.index.json"};
constexpr std::size_t kMaxListed = 10;  // names in one message

class Folder {
 public:
  explicit Folder(const std::string& path) : path_(path) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ >= 0) return;
    const int error = errno;
    const bool kind = error == ENOTDIR && fs::exists(path);
    at(path).fail(kind ? ErrorCode::IO_KIND : ErrorCode::IO_OPEN,
                  {.problem = kind ? "the path is not a folder" : "the folder cannot be opened",
                   .expected = "a model's folder",
                   .got = kind ? "a file" : std::strerror(error),
                   .hint = error == ENOENT ? missing_file_hint(path) : ""});
  }
  ~Folder() { ::close(fd_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  int fd() const { return fd_; }
  std::string path_of(const std::string& name) const { return (fs::path(path_) / name).string(); }
  // Follows links; false for a link that leads nowhere.
  bool has(const std::string& name) const { return ::faccessat(fd_, name.c_str(), F_OK, 0) == 0 || errno != ENOENT; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int fd_ = -1;
};

void require_present(const Folder& folder, const ShardIndex& index, std::span<const std::string> shards) {
  std::vector<std::string> missing;
  for (const std::string& shard : shards) {
    if (!folder.has(shard)) missing.push_back(shard);
  }
  if (missing.empty()) return;
  at(index.path)
      .fail(ErrorCode::IX_MISSING,
            {.problem = fmt::format("{} of {} shards are missing", missing.size(), shards.size()),
             .got = "no " + list_text(missing, kMaxListed, ", and {} more"),
             .hint = "the download is incomplete: fetch the missing files"});
}

[[noreturn]] void refuse_no_weights(const Folder& folder, const std::string& single, const std::string& index) {
  for (const char* name : kPickles) {
    if (!folder.has(name)) continue;
    at(folder.path_of(name))
        .fail(ErrorCode::E_PICKLE,
              {.problem = "weights of a model that are pickles are not read",
               .expected = fmt::format("{} or {}", single, index),
               .hint = "load the model with transformers and save it again: save_pretrained writes safetensors"});
  }
  at(folder.path())
      .fail(ErrorCode::IO_OPEN, {.problem = "the folder has no weights",
                                 .expected = fmt::format("{} or {}", single, index),
                                 .hint = missing_file_hint(folder.path_of(single))});
}

std::string file_name(const std::string& path) { return fs::path(path).filename().string(); }

using Entries = std::vector<Checkpoint::Entry>;
using Files = std::vector<std::shared_ptr<const TensorFile>>;

Entries all_entries(const Files& files) {
  Entries entries;
  for (std::uint32_t number = 0; number < files.size(); ++number) {
    for (const TensorInfo& tensor : files[number]->tensors()) entries.push_back({&tensor, number});
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.tensor->name < b.tensor->name; });
  return entries;
}

void require_unique(const Entries& entries, const Files& files) {
  const auto same = [](const auto& a, const auto& b) { return a.tensor->name == b.tensor->name; };
  const auto twice = std::adjacent_find(entries.begin(), entries.end(), same);
  if (twice == entries.end()) return;
  at(files[twice->file]->path(), std::string(twice->tensor->name))
      .fail(ErrorCode::IX_DUP, {.problem = "two shards have this tensor",
                                .got = file_name(files[twice->file]->path()) + " and " +
                                       file_name(files[std::next(twice)->file]->path())});
}

struct Tally {
  std::uint64_t count = 0;
  std::string first;
  void add(std::string_view tensor, std::string_view shard) {
    if (count++ == 0) first = fmt::format("\"{}\" in {}", printable(tensor), printable(shard));
  }
};

// Both lists are sorted by tensor. A tensor in another shard than the index says is an error. A tensor that only the
// index or only a shard has becomes a note: such checkpoints exist, and the code that needs the tensor reports it
// missing.
void compare_with_index(const Entries& entries, const Files& files, const ShardIndex& index,
                        std::vector<std::string>& notes) {
  Tally absent, extra;
  auto entry = entries.begin();
  const auto tell_extra = [&] {
    extra.add(entry->tensor->name, file_name(files[entry->file]->path()));
    ++entry;
  };
  for (const auto& [tensor, shard] : index.files) {
    while (entry != entries.end() && entry->tensor->name < tensor) tell_extra();
    if (entry == entries.end() || entry->tensor->name != tensor) {
      absent.add(tensor, shard);
      continue;
    }
    const std::string found = file_name(files[entry->file]->path());
    if (found != shard) {
      at(index.path, tensor)
          .fail(ErrorCode::IX_WHERE, {.problem = "the tensor is not in the shard that the index names",
                                      .expected = shard,
                                      .got = found,
                                      .hint = "the index belongs to another version of the shards"});
    }
    ++entry;
  }
  while (entry != entries.end()) tell_extra();
  if (absent.count != 0)
    notes.push_back(fmt::format("the index names {} tensors that no shard has, first {}", absent.count, absent.first));
  if (extra.count != 0)
    notes.push_back(
        fmt::format("the shards have {} tensors that the index does not name, first {}", extra.count, extra.first));
}

void compare_total_size(const Entries& entries, const ShardIndex& index, std::vector<std::string>& notes) {
  std::uint64_t total = 0;  // cannot overflow: each is a part of a file
  for (const Checkpoint::Entry& entry : entries) total += entry.tensor->bytes();
  if (!index.total_size || *index.total_size == total) return;
  notes.push_back(
      fmt::format("the index states a total_size of {} bytes, the tensors have {}", *index.total_size, total));
}

}  // namespace

std::shared_ptr<const TensorFile> TensorFile::open(const std::string& path, const OpenOptions& options) {
  return std::make_shared<const MappedFile>(InputFile(path), options);
}

std::shared_ptr<const TensorFile> TensorFile::parse(std::span<const std::byte> image, const std::string& path,
                                                    const OpenOptions& options) {
  return std::make_shared<const MemoryFile>(image, path, options);
}

std::shared_ptr<const TensorFile> TensorFile::of(std::span<const TensorInMemory> tensors, const std::string& path,
                                                 const OpenOptions& options) {
  return std::make_shared<const MemoryTensors>(tensors, path, options);
}

const TensorInfo* TensorFile::find(std::string_view name) const {
  const std::uint32_t number = index_->header.names.find(name);
  return number == NameIndex::kNone ? nullptr : &tensors_[number];
}

std::span<const std::byte> TensorFile::bytes(const TensorInfo& tensor) const {
  return {data_ + tensor.begin, tensor.bytes()};
}

Checkpoint Checkpoint::open(const std::string& path, const OpenOptions& options, const std::string& stem) {
  const std::string single = stem + ".safetensors", index_name = single + ".index.json";
  const Folder folder(path);
  Checkpoint checkpoint;
  if (!folder.has(index_name)) {
    if (!folder.has(single)) refuse_no_weights(folder, single, index_name);
    checkpoint.files_.push_back(TensorFile::open(folder.path_of(single), options));
    checkpoint.tensors_ = all_entries(checkpoint.files_);
    return checkpoint;
  }
  const ShardIndex index = read_shard_index(folder.path_of(index_name));
  const std::vector<std::string> shards = index.shards();
  checkpoint.notes_ = index.notes;
  if (folder.has(single) && std::find(shards.begin(), shards.end(), single) == shards.end()) {
    checkpoint.notes_.push_back(fmt::format("{} is ignored, because {} is there, too", single, index_name));
  }
  require_present(folder, index, shards);
  for (const std::string& shard : shards) {
    const InputFile file(folder.fd(), shard, folder.path_of(shard));
    if (!options.follow_symlinks) require_inside(file, path);
    checkpoint.files_.push_back(std::make_shared<const MappedFile>(file, options));
  }
  checkpoint.tensors_ = all_entries(checkpoint.files_);
  require_unique(checkpoint.tensors_, checkpoint.files_);
  compare_with_index(checkpoint.tensors_, checkpoint.files_, index, checkpoint.notes_);
  compare_total_size(checkpoint.tensors_, index, checkpoint.notes_);
  return checkpoint;
}

const Checkpoint::Entry* Checkpoint::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const Entry& entry, std::string_view wanted) { return entry.tensor->name < wanted; });
  return at != tensors_.end() && at->tensor->name == name ? &*at : nullptr;
}

}  // namespace peft
