// Names of the tensors of one file: a compact open-addressing table, built once.
#pragma once

#include <cstdint>
#include <memory_resource>
#include <span>
#include <string_view>
#include <utility>

#include "peft/tensor.h"

namespace peft::safetensors {

class NameIndex {
 public:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

  NameIndex() = default;
  // Memory comes from `memory`, which must outlive the index, as must the tensors.
  NameIndex(std::span<const TensorInfo> tensors, std::pmr::memory_resource& memory);

  std::uint32_t find(std::string_view name) const;  // kNone when absent
  // The first two tensors found with the same name: {kNone, kNone} when all names differ.
  std::pair<std::uint32_t, std::uint32_t> duplicate() const { return duplicate_; }

 private:
  struct Slot {
    std::uint32_t tag;     // half of the hash, so that most comparisons end here
    std::uint32_t number;  // of the tensor, plus one; 0 = free
  };
  void insert(std::uint32_t number, std::uint64_t code);

  std::span<const TensorInfo> tensors_;
  std::span<Slot> slots_;
  std::pair<std::uint32_t, std::uint32_t> duplicate_{kNone, kNone};
};

}  // namespace peft::safetensors
