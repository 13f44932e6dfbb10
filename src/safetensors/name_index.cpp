#include "safetensors/name_index.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <random>

namespace peft::safetensors {
namespace {

// A new seed in each process: nobody can make a file whose names all collide.
std::uint64_t hash(std::string_view name) {
  static const std::uint64_t seed = std::random_device{}() * std::uint64_t{0x9E3779B97F4A7C15};
  return XXH3_64bits_withSeed(name.data(), name.size(), seed);
}

}  // namespace

NameIndex::NameIndex(std::span<const TensorInfo> tensors, std::pmr::memory_resource& memory) : tensors_(tensors) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(8, tensors.size() + tensors.size() / 2));
  slots_ = {static_cast<Slot*>(memory.allocate(size * sizeof(Slot), alignof(Slot))), size};
  std::fill(slots_.begin(), slots_.end(), Slot{0, 0});
  // The hash of a name is taken some steps before its slot is needed, so that the slot is in the cache by then.
  constexpr std::size_t kAhead = 16;
  std::array<std::uint64_t, kAhead> codes{};
  for (std::size_t step = 0; step < tensors.size() + kAhead; ++step) {
    std::uint64_t& code = codes[step % kAhead];
    if (step >= kAhead) insert(static_cast<std::uint32_t>(step - kAhead), code);
    if (step >= tensors.size()) continue;
    code = hash(tensors[step].name);
    __builtin_prefetch(&slots_[code & (size - 1)], 1);
  }
}

void NameIndex::insert(std::uint32_t number, std::uint64_t code) {
  const auto tag = static_cast<std::uint32_t>(code >> 32);
  std::size_t at = code & (slots_.size() - 1);
  for (; slots_[at].number != 0; at = (at + 1) & (slots_.size() - 1)) {
    const std::uint32_t other = slots_[at].number - 1;
    if (slots_[at].tag != tag || tensors_[other].name != tensors_[number].name) continue;
    if (duplicate_.first == kNone) duplicate_ = {other, number};
  }
  slots_[at] = {tag, number + 1};
}

std::uint32_t NameIndex::find(std::string_view name) const {
  if (slots_.empty()) return kNone;
  const std::uint64_t code = hash(name);
  const auto tag = static_cast<std::uint32_t>(code >> 32);
  for (std::size_t at = code & (slots_.size() - 1); slots_[at].number != 0; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].tag == tag && tensors_[slots_[at].number - 1].name == name) return slots_[at].number - 1;
  }
  return kNone;
}

}  // namespace peft::safetensors
