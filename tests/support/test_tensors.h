// For tests: matrices, and safetensors images of them in memory.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/float_formats.h"
#include "peft/safetensors.h"

namespace peft::testing {

struct Dense {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;  // row by row

  Dense(std::int64_t r, std::int64_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
  Dense(std::int64_t r, std::int64_t c, std::vector<double> v) : rows(r), cols(c), values(std::move(v)) {}
  double& at(std::int64_t i, std::int64_t j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double at(std::int64_t i, std::int64_t j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
  Dense times(double factor) const {
    Dense result = *this;
    for (double& v : result.values) v *= factor;
    return result;
  }
  double norm() const {
    double sum = 0;
    for (const double v : values) sum += v * v;
    return std::sqrt(sum);
  }
};

// Numbers with 8 significant bits: exact in BF16, F16 and F32, so that a test decides where roundings happen.
inline Dense random_dense(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Dense result(rows, cols);
  for (double& v : result.values) {
    const auto bits = static_cast<std::int64_t>(random() % 255) - 127;
    v = std::ldexp(static_cast<double>(bits == 0 ? 1 : bits), -9);
  }
  return result;
}

// scale * B * A, element by element.
inline Dense product(const Dense& b, const Dense& a, double scale) {
  Dense result(b.rows, a.cols);
  for (std::int64_t i = 0; i < b.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) {
      for (std::int64_t k = 0; k < a.rows; ++k) result.at(i, j) += scale * b.at(i, k) * a.at(k, j);
    }
  }
  return result;
}

inline void append_value(std::vector<std::byte>& bytes, Dtype dtype, double x) {
  std::uint64_t bits = 0;
  switch (dtype) {
    case Dtype::f64:
      bits = std::bit_cast<std::uint64_t>(x);
      break;
    case Dtype::f32:
      bits = std::bit_cast<std::uint32_t>(static_cast<float>(x));
      break;
    case Dtype::bf16:
      bits = double_to_bf16(x);
      break;
    case Dtype::f16:
      bits = double_to_f16(x);
      break;
    default:
      bits = static_cast<std::uint64_t>(static_cast<std::int64_t>(x));
      break;  // integers
  }
  const auto* data = reinterpret_cast<const std::byte*>(&bits);  // little-endian, as the format
  bytes.insert(bytes.end(), data, data + info(dtype).bits / 8);
}

// Collects tensors and turns them into a file in memory. Tensors keep the order in which they were added.
class Tensors {
 public:
  std::uint32_t add(const std::string& name, Dtype dtype, std::vector<std::int64_t> shape,
                    const std::vector<double>& values) {
    const std::size_t begin = data_.size();
    for (const double v : values) append_value(data_, dtype, v);
    header_ +=
        fmt::format("{}\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", header_.empty() ? "" : ",",
                    name, info(dtype).name, fmt::join(shape, ","), begin, data_.size());
    begins_.push_back(begin);
    return static_cast<std::uint32_t>(begins_.size() - 1);
  }
  std::uint32_t add(const std::string& name, Dtype dtype, const Dense& m) {
    return add(name, dtype, {m.rows, m.cols}, m.values);
  }

  // Flips one bit of the data of a tensor.
  void flip(std::uint32_t tensor, std::int64_t byte, int bit) {
    data_[begins_[tensor] + static_cast<std::size_t>(byte)] ^= static_cast<std::byte>(1 << bit);
  }

  // Call once, at the end; the file reads from this object.
  std::shared_ptr<const TensorFile> file(const std::string& path = "test.safetensors") {
    std::string header = "{" + header_ + "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = header.size();
    image_.resize(8 + header.size());
    std::memcpy(image_.data(), &length, 8);
    std::memcpy(image_.data() + 8, header.data(), header.size());
    image_.insert(image_.end(), data_.begin(), data_.end());
    return TensorFile::parse(image_, path);
  }

 private:
  std::string header_;
  std::vector<std::byte> data_, image_;
  std::vector<std::size_t> begins_;
};

// A whole tensor [rows, cols] as a view.
inline View whole(std::uint32_t tensor, std::int64_t rows, std::int64_t cols) {
  return {0, tensor, 0, rows, cols, cols, 1};
}

}  // namespace peft::testing
