#include "layout/slots.h"

#include <algorithm>

#include "layout/natural_order.h"

namespace peft::layout {
namespace {

struct Entry {
  Key key;
  std::uint32_t tensor;
};

bool same_slot(const Key& a, const Key& b) { return a.depth == b.depth && a.module == b.module; }

bool is_single(KeyKind kind) { return kind == KeyKind::plain || kind == KeyKind::token_delta; }

std::uint32_t* part_of(Slot& slot, KeyKind kind) {
  switch (kind) {
    case KeyKind::lora_a:
    case KeyKind::embedding_a: return &slot.a;
    case KeyKind::lora_b:
    case KeyKind::embedding_b: return &slot.b;
    case KeyKind::lora_b_bias: return &slot.b_bias;
    case KeyKind::magnitude: return &slot.magnitude;
    default: return nullptr;
  }
}

[[noreturn]] void refuse_suffix(const Adapter& adapter, std::string_view name) {
  throw Error(ErrorCode::LO_SUFFIX, {.file = adapter.weights->path(),
                                     .tensor = std::string(name),
                                     .problem = "this kind of tensor is not LoRA as peft.cpp knows it",
                                     .expected = "lora_A, lora_B, lora_embedding_A/B, lora_magnitude_vector, lora_B.bias",
                                     .hint = "LyCORIS, KaSA and other methods must be merged by the program that made them"});
}

std::string partner(std::string_view name) {
  std::string other(name);
  for (const auto& [from, to] : {std::pair{"lora_A", "lora_B"}, std::pair{"lora_B", "lora_A"},
                                 std::pair{"lora_embedding_A", "lora_embedding_B"},
                                 std::pair{"lora_embedding_B", "lora_embedding_A"}}) {
    if (const auto at = other.rfind(std::string(".") + from); at != std::string::npos) {
      return other.replace(at + 1, std::string_view(from).size(), to);
    }
  }
  return other;
}

// A pair that is not whole: everything of it belongs to nothing.
void check_pair(const Slot& slot, const Adapter& adapter, bool ignore_unused, Slots& slots) {
  const auto tensors = adapter.weights->tensors();
  for (const std::uint32_t part : {slot.a, slot.b, slot.b_bias, slot.magnitude}) {
    if (part == kNoTensor) continue;
    const std::string name(tensors[part].name);
    const bool half = part == slot.a || part == slot.b;
    const std::string missing = half ? partner(name) : std::string(slot.module) + ".lora_A.weight";
    if (!ignore_unused) {
      throw Error(ErrorCode::LO_PAIR, {.file = adapter.weights->path(),
                                       .tensor = name,
                                       .problem = "this tensor stands alone",
                                       .expected = missing,
                                       .got = "no such tensor",
                                       .hint = "a damaged or partial file; --ignore-unused goes on without it"});
    }
    slots.unused.push_back({name, ErrorCode::LO_PAIR, "its partner " + missing + " is missing"});
  }
}

}  // namespace

Slots collect_slots(const Adapter& adapter, bool ignore_unused) {
  const auto tensors = adapter.weights->tensors();
  Slots result;
  std::vector<Entry> entries;
  entries.reserve(tensors.size());
  for (std::uint32_t i = 0; i < tensors.size(); ++i) {
    const Key key = parse_key(tensors[i].name);
    if (key.kind == KeyKind::other_lora) {
      if (!ignore_unused) refuse_suffix(adapter, tensors[i].name);
      result.unused.push_back({std::string(tensors[i].name), ErrorCode::LO_SUFFIX, "not a LoRA tensor"});
    } else if (is_single(key.kind)) {
      result.singles.push_back({key, i});
    } else {
      entries.push_back({key, i});
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& x, const Entry& y) {
    if (x.key.module != y.key.module) return natural_less(x.key.module, y.key.module);
    return x.key.depth > y.key.depth;
  });
  for (std::size_t i = 0; i < entries.size();) {
    Slot slot{entries[i].key.module, entries[i].key.depth};
    std::size_t j = i;
    for (; j < entries.size() && same_slot(entries[i].key, entries[j].key); ++j) {
      std::uint32_t* part = part_of(slot, entries[j].key.kind);
      if (*part != kNoTensor) {
        throw Error(ErrorCode::LO_AMBIG, {.file = adapter.weights->path(),
                                          .tensor = std::string(tensors[entries[j].tensor].name),
                                          .problem = "two tensors stand for the same thing",
                                          .got = std::string(tensors[*part].name)});
      }
      *part = entries[j].tensor;
      slot.embedding |= entries[j].key.kind == KeyKind::embedding_a || entries[j].key.kind == KeyKind::embedding_b;
    }
    i = j;
    if (slot.a == kNoTensor || slot.b == kNoTensor) check_pair(slot, adapter, ignore_unused, result);
    else result.slots.push_back(slot);
  }
  return result;
}

void refuse_unused(const std::vector<Unused>& unused, const Adapter& adapter, bool ignore_unused) {
  if (unused.empty() || ignore_unused) return;
  constexpr std::size_t kListed = 50;
  std::string names;
  for (std::size_t i = 0; i < std::min(unused.size(), kListed); ++i) names += (i == 0 ? "" : ", ") + unused[i].name;
  if (unused.size() > kListed) names += " and " + std::to_string(unused.size() - kListed) + " more";
  const Unused& first = unused.front();
  throw Error(first.code, {.file = adapter.weights->path(),
                           .tensor = first.name,
                           .problem = std::to_string(unused.size()) +
                                      (unused.size() == 1 ? " tensor belongs" : " tensors belong") +
                                      " to nothing (" + first.reason + "): " + names,
                           .hint = "is this the right base model? --ignore-unused goes on without them"});
}

}  // namespace peft::layout
