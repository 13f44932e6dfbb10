// What must hold for the bytes of any file, as a state dict of torch: used by the fuzzer and by the sweep over changed
// bytes.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

#include "base/text.h"
#include "peft/error.h"
#include "pickle/pickle_file.h"

namespace peft::pickle {

// "" when all is well, else what is not. Bytes that are refused are well.
inline std::string check_pickle(std::string_view bytes) {
  std::shared_ptr<const PickleFile> file;
  try {
    file = PickleFile::parse(std::as_bytes(std::span(bytes)), "fuzz.bin");
  } catch (const Error& error) {
    return std::string(error.what()).empty() ? "an error without a message" : "";
  }
  unsigned sum = 0;
  for (const TensorInfo& tensor : file->tensors()) {
    if (tensor.begin > tensor.end || tensor.end > bytes.size()) return "data out of the file";
    if (tensor.name.empty() || find_invalid_utf8(tensor.name) != std::string_view::npos) return "a bad name";
    if (file->find(tensor.name) != &tensor) return "a name that find() does not find";
    std::uint64_t size = static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8;
    if (size == 0) return "a tensor of no known type";
    const bool empty = std::ranges::find(tensor.shape, 0) != tensor.shape.end();
    for (const std::int64_t dimension : tensor.shape) size *= static_cast<std::uint64_t>(dimension);
    if ((empty ? 0 : size) != tensor.bytes()) return "another size than the shape's";
    for (const std::byte byte : file->bytes(tensor)) sum += std::to_integer<unsigned>(byte);
  }
  return sum == ~0u ? "read" : "";  // the bytes have to be read
}

}  // namespace peft::pickle
