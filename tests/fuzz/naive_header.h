// A second reader of safetensors files, written to be obvious and slow, on another JSON library. What it says about a
// file must be what TensorFile says.
#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "peft/tensor.h"

namespace peft::naive {

using Json = nlohmann::json;

struct Tensor {
  std::string name, dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0, end = 0;
};

enum class Verdict { accept, refuse, no_opinion };

struct Reading {
  Verdict verdict = Verdict::refuse;
  std::vector<Tensor> tensors;
};

inline constexpr int kMaxDepth = 64;

// Numbers that this JSON library does not keep as they are written: no opinion about files that have them.
inline bool has_odd_number(const Json& value) {
  if (value.is_number_float()) return std::abs(value.get<double>()) >= 9e18;
  if (value.is_number_integer() && !value.is_number_unsigned()) return value.get<std::int64_t>() == 0;  // -0
  return value.is_structured() && std::any_of(value.begin(), value.end(), has_odd_number);
}

// nullopt: not a JSON object with distinct keys at every level.
inline std::optional<Json> parse_object(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto first = text.find_first_not_of(kSpace), last = text.find_last_not_of(kSpace);
  if (first == std::string_view::npos || text[first] != '{' || text[last] != '}') return std::nullopt;
  bool twice = false, deep = false;
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) twice = twice || !keys.back().insert(parsed.get<std::string>()).second;
    deep = deep || (depth >= kMaxDepth &&
                    (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start));
    return true;
  };
  Json root = Json::parse(text.substr(first, last - first + 1), watch, false);
  if (root.is_discarded() || twice || deep) return std::nullopt;
  return root;
}

inline bool read_unsigned(const Json& value, std::uint64_t& number) {
  if (!value.is_number_unsigned()) return false;
  number = value.get<std::uint64_t>();
  return true;
}

inline bool read_tensor(const std::string& name, const Json& value, Tensor& tensor) {
  if (name.empty() || name.size() > 4096 || !value.is_object()) return false;
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!value.contains(field)) return false;
  }
  const Json &dtype = value["dtype"], &shape = value["shape"], &offsets = value["data_offsets"];
  if (!dtype.is_string() || !shape.is_array() || !offsets.is_array() || offsets.size() != 2 || shape.size() > 16)
    return false;
  tensor.name = name;
  tensor.dtype = dtype.get<std::string>();
  if (tensor.dtype.size() > 4096) return false;
  for (const Json& dimension : shape) {
    if (!read_unsigned(dimension, tensor.shape.emplace_back())) return false;
  }
  return read_unsigned(offsets[0], tensor.begin) && read_unsigned(offsets[1], tensor.end) && tensor.begin <= tensor.end;
}

inline bool size_fits(const Tensor& tensor) {
  unsigned __int128 size = 1;
  for (const std::uint64_t dimension : tensor.shape) {
    size *= dimension;
    if (size >> 64 != 0) return false;
  }
  for (const std::uint64_t dimension : tensor.shape) {
    if (dimension >> 63 != 0) return false;
  }
  for (const DtypeInfo& row : dtypes()) {
    if (row.name != tensor.dtype) continue;
    size *= static_cast<unsigned>(row.bits);
    return size >> 64 == 0 && size % 8 == 0 && size / 8 == tensor.end - tensor.begin;
  }
  return true;  // an unknown dtype: its range is taken as it is
}

inline bool read_metadata(const Json& value) {
  if (value.is_null()) return true;
  if (!value.is_object()) return false;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string() || key.size() > 4096 || text.get<std::string>().size() > (16u << 20)) return false;
  }
  return true;
}

inline Reading read(std::string_view bytes) {
  Reading reading;
  if (bytes.size() < 8) return reading;
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < 8; ++i) length += std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  if (length > 100'000'000 || length > bytes.size() - 8) return reading;
  const std::optional<Json> root = parse_object(bytes.substr(8, length));
  if (!root) return reading;
  if (has_odd_number(*root)) {
    reading.verdict = Verdict::no_opinion;
    return reading;
  }
  for (const auto& [key, value] : root->items()) {
    if (key == "__metadata__") {
      if (!read_metadata(value)) return reading;
    } else if (!read_tensor(key, value, reading.tensors.emplace_back()) || !size_fits(reading.tensors.back())) {
      return reading;
    }
  }
  std::sort(reading.tensors.begin(), reading.tensors.end(), [](const Tensor& a, const Tensor& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t covered = 0;
  for (const Tensor& tensor : reading.tensors) {
    if (tensor.begin != covered) return reading;
    covered = tensor.end;
  }
  if (covered == bytes.size() - 8 - length) reading.verdict = Verdict::accept;
  return reading;
}

}  // namespace peft::naive
