#include "execute/resume/fingerprint.h"

#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "gguf/value.h"
#include "peft/version.h"
#include "safetensors/reading/input_file.h"

namespace peft::execution {
namespace {

constexpr std::size_t kSamples = 64;          // samples of a source
constexpr std::uint64_t kSampleBytes = 4096;  // bytes of a sample

// Each add() lists the members of its struct in a structured binding. A new member of the struct is a compile error
// until it is listed here.
class Writer {
 public:
  template <class Number>
  requires std::is_arithmetic_v<Number> || std::is_enum_v<Number>
  void add(Number value) { hash_.add(&value, sizeof value); }
  void add(std::string_view text) {
    add(text.size());
    hash_.add(text.data(), text.size());
  }
  void add(const std::string& text) { add(std::string_view(text)); }
  template <class Value>
  void add(const std::vector<Value>& values) {
    add(values.size());
    for (const Value& value : values) add(value);
  }
  template <class Value>
  void add(const std::optional<Value>& value) {
    add(value.has_value());
    if (value) add(*value);
  }
  template <class First, class Second>
  void add(const std::pair<First, Second>& pair) {
    add(pair.first);
    add(pair.second);
  }
  void add(const Metadata& metadata) {
    add(metadata.size());
    for (const auto& pair : metadata) add(pair);
  }
  void add(const View& view) {
    const auto& [source, tensor, offset, rows, cols, row_stride, col_stride] = view;
    add_all(source, tensor, offset, rows, cols, row_stride, col_stride);
  }
  void add(const Scales& scales) {
    const auto& [kind, grid, width, cell_rows, cell_cols] = scales;
    add_all(kind, grid, width, cell_rows, cell_cols);
  }
  void add(const Origin& origin) {
    const auto& [source, tensor, offset] = origin;
    add_all(source, tensor, offset);
  }
  void add(const Block& block) {
    const auto& [row, col, col_step, source, scale, scales, row_shift, col_shift, members] = block;
    add_all(row, col, col_step, source, scale, scales, row_shift, col_shift, members);
  }
  void add(const Update& update) {
    const auto& [target, a, b, scale, magnitude, delta_is_rounded, adapter] = update;
    add_all(target, a, b, scale, magnitude, delta_is_rounded, adapter);
  }
  void add(const Merge& merge) {
    const auto& [mode, base_dtype, updates] = merge;
    add_all(mode, base_dtype, updates);
  }
  void add(const gguf::Value& value) {
    const auto& [type, bytes, element, count] = value;
    add_all(type, bytes, element, count);
  }
  void add(const PlannedTensor& planned) {
    const auto& [name, dtype, shape, rows, cols, blocks, merge, must_be_finite, packing, column_group] = planned;
    add_all(name, dtype, shape, rows, cols, blocks, merge, must_be_finite, packing, column_group);
  }
  void add(const PlannedFile& file) {
    const auto& [name, tensors, metadata, gguf] = file;
    add_all(name, tensors, metadata, gguf != nullptr);
    if (gguf) add(gguf->values);
  }
  void add(const TensorInfo& tensor) {
    const auto& [name, dtype, dtype_name, shape, begin, end] = tensor;
    add_all(name, dtype, dtype_name, begin, end);
    for (const std::int64_t size : shape) add(size);
  }
  void add(const TensorFile& file) {
    add_all(file.file_size(), file.data_offset(), file.metadata(), file.tensors().size());
    for (const TensorInfo& tensor : file.tensors()) add(tensor);
    add_samples(file);
    file.check_unchanged();
  }
  void add(const Plan& plan) {
    const auto& [sources, files, texts, copies, exactness, steps, warnings, bytes_in, bytes_out, peak_memory,
                 single_file] = plan;
    add(sources.size());
    for (const auto& source : sources) add(*source);
    add_all(files, texts, copies.size(), single_file);
    for (const auto& [name, path] : copies) add(name);
  }
  template <class... Values>
  void add_all(const Values&... values) {
    (add(values), ...);
  }
  std::string hex() const {
    const auto digest = hash_.digest128();
    return fmt::format("{:016x}{:016x}", digest.high64, digest.low64);
  }

 private:
  // Another model of the same shapes has the same header. To read all of its data would take as long as to start over.
  void add_samples(const TensorFile& file) {
    const auto tensors = file.tensors();
    for (std::size_t i = 0; i < kSamples && !tensors.empty(); ++i) {
      const auto bytes = file.bytes(tensors[i * tensors.size() / kSamples]);
      const std::uint64_t size = std::min<std::uint64_t>(bytes.size(), kSampleBytes);
      const std::uint64_t begin = (bytes.size() - size) / kSamples * i;
      hash_.add(bytes.data() + begin, size);
    }
  }

  Hash hash_;
};

}  // namespace

std::string fingerprint(const Plan& plan, bool with_times) {
  Writer writer;
  writer.add(std::string_view(PEFT_VERSION));
  writer.add(plan);
  for (const auto& source : plan.sources) {
    struct stat status {};
    if (!with_times || ::stat(source->path().c_str(), &status) != 0) continue;
    writer.add(safetensors::identity_of(status).modified_ns);
  }
  return writer.hex();
}

}  // namespace peft::execution
