// Reading safetensors files and sharded checkpoints, and laying out new ones.
// The format and its exact rules: docs/format.md. A reader accepts what the Rust library accepts, except
// duplicate keys and absurd counts; no number of a file is trusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "peft/tensor.h"

namespace peft {

struct OpenOptions {
  bool allow_trailing_bytes = false;
  bool follow_symlinks = false;  // shards that are links out of the model's folder
  std::uint64_t max_tensors = 1'000'000;
};

using Metadata = std::map<std::string, std::string>;

// A tensor that lies in memory, row after row without gaps.
struct TensorInMemory {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
};

// One open file. Data is mapped read-only; a file that shrinks or changes while it is read ends in
// IO_CHANGED (checked by check_unchanged), never in a signal. Thread-safe for reading.
class TensorFile {
 public:
  // Opens, reads and validates the header; touches no tensor data.
  static std::shared_ptr<const TensorFile> open(const std::string& path, const OpenOptions& options = {});
  // The same over bytes in memory (tests, fuzzing). `path` is for messages only. The bytes must outlive the object.
  static std::shared_ptr<const TensorFile> parse(std::span<const std::byte> image, const std::string& path,
                                                 const OpenOptions& options = {});
  // The same over tensors that lie anywhere in memory and are read in place; they must outlive the object. Throws for
  // what a file must not hold either: ST_NAME, ST_DUP, ST_SHAPE, ST_OVERFLOW, ST_BITS, ST_LIMIT.
  static std::shared_ptr<const TensorFile> of(std::span<const TensorInMemory> tensors, const std::string& path,
                                              const OpenOptions& options = {});
  virtual ~TensorFile() = default;

  const std::string& path() const { return path_; }
  std::uint64_t file_size() const { return file_size_; }
  std::uint64_t data_offset() const { return data_offset_; }        // 8 + header length
  std::span<const TensorInfo> tensors() const { return tensors_; }  // by data offset, then name
  const TensorInfo* find(std::string_view name) const;              // null when absent
  const Metadata& metadata() const { return metadata_; }
  const std::vector<std::string>& notes() const { return notes_; }  // odd but accepted: unknown fields, no padding, ...

  // The bytes of one tensor, of the whole data section.
  virtual std::span<const std::byte> bytes(const TensorInfo& tensor) const;
  // Hints for streaming; [begin, end) is a byte range of the data section. They never fail.
  virtual void prefetch(std::uint64_t begin, std::uint64_t end) const = 0;  // map pages ahead, in one go
  virtual void release(std::uint64_t begin, std::uint64_t end) const = 0;   // pages are not needed any more
  // Throws IO_CHANGED if the file is not what it was at open (size, inode, mtime, or a page that could not be read).
  virtual void check_unchanged() const = 0;

 protected:
  struct Index;
  std::string path_;
  std::uint64_t file_size_ = 0, data_offset_ = 0;
  std::span<const TensorInfo> tensors_;
  Metadata metadata_;
  std::vector<std::string> notes_;
  const std::byte* data_ = nullptr;
  std::shared_ptr<const Index> index_;
};

// A model's weights: one file, or shards with model.safetensors.index.json. Only headers are read.
// Names are unique over all shards. Both index and single file present: the index wins, with a note.
class Checkpoint {
 public:
  // `stem`: what its files are called, as in model.safetensors and model.safetensors.index.json.
  static Checkpoint open(const std::string& folder, const OpenOptions& options = {}, const std::string& stem = "model");
  struct Entry {
    const TensorInfo* tensor;
    std::uint32_t file;
  };
  const std::vector<std::shared_ptr<const TensorFile>>& files() const { return files_; }
  const std::vector<Entry>& tensors() const { return tensors_; }  // sorted by name
  const Entry* find(std::string_view name) const;
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  std::vector<std::shared_ptr<const TensorFile>> files_;
  std::vector<Entry> tensors_;
  std::vector<std::string> notes_;
};

// What a new file will look like: the bytes the safetensors library writes for the same tensors
// (dtype descending, then name; header padded with spaces to 8 bytes; metadata keys sorted).
struct NewTensor {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
};
struct FileLayout {
  std::string head;                  // 8 bytes of length and the header: everything before the data
  std::vector<std::size_t> order;    // order[i]: which of the given tensors is the i-th in the file
  std::vector<std::uint64_t> begin;  // byte offset of each given tensor in the data section
  std::uint64_t data_bytes = 0;
  std::uint64_t file_bytes() const { return head.size() + data_bytes; }
};
FileLayout layout_file(std::span<const NewTensor> tensors, const Metadata& metadata = {{"format", "pt"}});

}  // namespace peft
