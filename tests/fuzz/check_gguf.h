// What must hold for the bytes of any file, as a GGUF file: used by the fuzzer and by the sweep over changed bytes.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/text.h"
#include "gguf/file_layout.h"
#include "gguf/gguf_file.h"
#include "peft/error.h"

namespace peft::gguf {

inline void visit_all(const Value& value, int depth, bool& deep) {
  static_cast<void>(describe(value));
  deep = deep || depth > 8;
  for (const Value& element : elements(value)) visit_all(element, depth + 1, deep);
}

inline std::string check_tensors(const GgufFile& file) {
  std::uint64_t covered = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    const std::string name = printable(tensor.name);
    if (tensor.name.empty() || tensor.name.size() > 63 || find_invalid_utf8(tensor.name) != std::string_view::npos)
      return "a name that is not allowed: " + name;
    if (tensor.shape.size() > 4) return "too many dimensions: " + name;
    if (tensor.begin < covered || tensor.begin - covered >= file.alignment() || tensor.begin % file.alignment() != 0)
      return "a gap, an overlap or an alignment that is wrong: " + name;
    if (tensor_bytes(file.type_of(tensor), tensor.shape) != tensor.bytes()) return "another size: " + name;
    if (file.data_offset() + tensor.end > file.file_size()) return "data out of the file: " + name;
    if (file.find(tensor.name) != &tensor) return "a name that find() does not find: " + name;
    covered = tensor.end;
  }
  return file.data_offset() % (file.tensors().empty() ? 1 : file.alignment()) == 0 ? "" : "data is not aligned";
}

inline std::vector<NewGgufTensor> described(const GgufFile& file) {
  std::vector<NewGgufTensor> tensors;
  for (const TensorInfo& tensor : file.tensors()) {
    tensors.push_back({std::string(tensor.name), file.type_of(tensor), {tensor.shape.begin(), tensor.shape.end()}});
  }
  return tensors;
}

// Writing what was read, and reading that, gives the same file.
inline std::string check_rewritten(const GgufFile& file, std::string_view bytes) {
  const FileLayout layout = layout_gguf(described(file), file.values());
  const std::string again = layout.head + std::string(layout.data_bytes, '\0');
  const auto copy = GgufFile::parse(std::as_bytes(std::span(again)), "again.gguf");
  if (copy->values() != file.values()) return "other values after writing";
  const auto same = [](const TensorInfo& a, const TensorInfo& b) {
    return a.name == b.name && a.dtype_name == b.dtype_name && std::ranges::equal(a.shape, b.shape) &&
           a.begin == b.begin && a.end == b.end;
  };
  if (!std::ranges::equal(copy->tensors(), file.tensors(), same)) return "other tensors after writing";
  const bool plain = file.notes().empty() && file.version() == 3 && !file.tensors().empty() &&
                     std::ranges::none_of(file.tensors(), [](const auto& tensor) { return tensor.bytes() == 0; });
  return !plain || bytes.substr(0, file.data_offset()) == layout.head ? "" : "another head after writing";
}

// "" when all is well, else what is not.
inline std::string check_gguf(std::string_view bytes) {
  std::shared_ptr<const GgufFile> file;
  std::optional<Error> refused;
  try {
    file = GgufFile::parse(std::as_bytes(std::span(bytes)), "fuzz.gguf");
  } catch (const Error& error) {
    refused = error;
  }
  if (refused) {
    if (info(refused->code()).exit_code != 1) return std::string("not an error of the input: ") + refused->what();
    const std::string_view message = refused->what();
    const bool shown_safely = std::all_of(message.begin(), message.end(),
                                          [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F; });
    return shown_safely ? "" : "a control character in a message";
  }
  if (const std::string fault = check_tensors(*file); !fault.empty()) return fault;
  bool deep = false;
  for (const auto& [key, value] : file->values()) visit_all(value, 0, deep);
  if (deep) return "arrays are nested too deeply";
  return check_rewritten(*file, bytes);
}

}  // namespace peft::gguf
