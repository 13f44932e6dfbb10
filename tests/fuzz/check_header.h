// What must hold for the bytes of any file: used by the fuzzer and by the sweep over changed bytes.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "fuzz/naive_header.h"
#include "peft/error.h"
#include "peft/safetensors.h"

namespace peft::naive {

inline std::string check_accepted(const TensorFile& file, const Reading& naive) {
  if (naive.verdict == Verdict::no_opinion) return {};
  if (naive.verdict == Verdict::refuse) return "accepted, but the naive reader refuses it";
  if (naive.tensors.size() != file.tensors().size()) return "another number of tensors";
  std::uint64_t covered = 0;
  for (std::size_t i = 0; i < naive.tensors.size(); ++i) {
    const Tensor& expected = naive.tensors[i];
    const TensorInfo& tensor = file.tensors()[i];
    const bool same = tensor.name == expected.name && tensor.dtype_name == expected.dtype &&
                      tensor.begin == expected.begin && tensor.end == expected.end &&
                      std::equal(tensor.shape.begin(), tensor.shape.end(), expected.shape.begin(), expected.shape.end(),
                                 [](std::int64_t a, std::uint64_t b) { return static_cast<std::uint64_t>(a) == b; });
    if (!same) return "another tensor: " + printable(tensor.name);
    if (tensor.begin != covered) return "a gap or an overlap before " + printable(tensor.name);
    if (file.find(tensor.name) != &tensor) return "a name that find() does not find: " + printable(tensor.name);
    covered = tensor.end;
  }
  return file.data_offset() + covered == file.file_size() ? "" : "the tensors do not fill the file";
}

// "" when all is well, else what is not.
inline std::string check_header(std::string_view bytes) {
  std::shared_ptr<const TensorFile> file;
  std::optional<Error> refused;
  try {
    file = TensorFile::parse(std::as_bytes(std::span(bytes)), "fuzz.safetensors");
  } catch (const Error& error) {
    refused = error;
  }
  const Reading naive = read(bytes);
  if (!refused) return check_accepted(*file, naive);
  if (naive.verdict == Verdict::accept)
    return std::string("refused, but the naive reader accepts it: ") + refused->what();
  if (info(refused->code()).exit_code != 1) return std::string("not an error of the input: ") + refused->what();
  const std::string_view message = refused->what();
  const bool shown_safely = std::all_of(message.begin(), message.end(),
                                        [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F; });
  return shown_safely ? "" : "a control character in a message";
}

}  // namespace peft::naive
