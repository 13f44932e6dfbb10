// Archives and pickles as torch.save writes them, byte by byte, and wrong ones.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace peft::pickle {

inline std::string little(std::uint64_t number, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(number >> (8 * i) & 0xFF);
  return text;
}

inline std::uint32_t crc_of(const std::string& bytes) {
  std::uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc % 2 != 0 ? 0xedb88320u ^ crc >> 1 : crc >> 1;
  }
  return ~crc;
}

// Stored entries, a directory and its end.
inline std::string archive_image(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string image, directory;
  for (const auto& [name, data] : entries) {
    const std::string facts = little(0, 4) + little(crc_of(data), 4) + little(data.size(), 4) + little(data.size(), 4) +
                              little(name.size(), 2) + little(0, 2);
    directory +=
        little(0x02014b50, 4) + little(0, 4) + little(0, 4) + facts + little(0, 10) + little(image.size(), 4) + name;
    image += little(0x04034b50, 4) + little(0, 2) + little(0, 4) + facts + name + data;
  }
  return image + directory + little(0x06054b50, 4) + little(0, 4) + little(entries.size(), 2) +
         little(entries.size(), 2) + little(directory.size(), 4) + little(image.size(), 4) + little(0, 2);
}

inline std::string text_of(const std::string& text) { return "X" + little(text.size(), 4) + text; }
inline std::string int_of(std::int32_t number) { return "J" + little(static_cast<std::uint32_t>(number), 4); }
inline std::string tuple_of(const std::vector<std::int32_t>& numbers) {
  std::string bytes = "(";
  for (const std::int32_t number : numbers) bytes += int_of(number);
  return bytes + "t";
}
// A float tensor of storage 0, which has `elements`.
inline std::string tensor_of(std::int32_t elements, const std::vector<std::int32_t>& shape,
                             const std::vector<std::int32_t>& strides, std::int32_t offset = 0) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + text_of("storage") + "ctorch\nFloatStorage\n" + text_of("0") +
         text_of("cpu") + int_of(elements) + "tQ" + int_of(offset) + tuple_of(shape) + tuple_of(strides) +
         "\x89"
         "ccollections\nOrderedDict\n)RtR";
}
inline std::string state_dict(const std::string& items) { return "\x80\x02}(" + items + "u."; }
inline std::string state_dict_of(const std::string& name, std::int32_t elements,
                                 const std::vector<std::int32_t>& shape) {
  std::vector<std::int32_t> strides(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return state_dict(text_of(name) + tensor_of(elements, shape, strides));
}
inline std::string file_of(const std::string& pickle, std::size_t floats = 12) {
  return archive_image(
      {{"a/data.pkl", pickle}, {"a/byteorder", "little"}, {"a/data/0", std::string(4 * floats, '\1')}});
}

}  // namespace peft::pickle
