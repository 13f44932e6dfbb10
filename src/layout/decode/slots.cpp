#include "layout/decode/slots.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/text.h"
#include "model/path.h"

namespace peft::layout {
namespace {

bool is_single(KeyKind kind) { return kind == KeyKind::plain || kind == KeyKind::token_delta; }

std::uint32_t* part_of(Slot& slot, KeyKind kind) {
  switch (kind) {
    case KeyKind::lora_a:
    case KeyKind::embedding_a:
      return &slot.a;
    case KeyKind::lora_b:
    case KeyKind::embedding_b:
      return &slot.b;
    case KeyKind::lora_b_bias:
      return &slot.b_bias;
    case KeyKind::magnitude:
      return &slot.magnitude;
    default:
      return nullptr;
  }
}

[[noreturn]] void refuse_suffix(const Adapter& adapter, std::string_view name) {
  at(adapter.weights->path(), std::string(name))
      .fail(ErrorCode::LO_SUFFIX,
            {.problem = "this kind of tensor is not LoRA as peft.cpp knows it",
             .expected = "lora_A, lora_B, lora_embedding_A/B, lora_magnitude_vector, lora_B.bias",
             .hint = "LyCORIS, KaSA and other methods must be merged by the program that made them"});
}

std::string partner(std::string_view name) {
  std::string other(name);
  for (const auto& [from, to] :
       {std::pair{"lora_A", "lora_B"}, std::pair{"lora_B", "lora_A"}, std::pair{"lora_embedding_A", "lora_embedding_B"},
        std::pair{"lora_embedding_B", "lora_embedding_A"}}) {
    if (const auto at = other.rfind(std::string(".") + from); at != std::string::npos) {
      return other.replace(at + 1, std::string_view(from).size(), to);
    }
  }
  return other;
}

// Handles a pair with a missing half: none of its tensors belongs to anything.
void check_pair(const Slot& slot, const Adapter& adapter, bool ignore_unused, Slots& slots) {
  const auto tensors = adapter.weights->tensors();
  for (const std::uint32_t part : {slot.a, slot.b, slot.b_bias, slot.magnitude}) {
    if (part == kNoTensor) continue;
    const std::string name(tensors[part].name);
    const bool half = part == slot.a || part == slot.b;
    const std::string missing = half ? partner(name) : std::string(slot.module) + ".lora_A.weight";
    if (!ignore_unused) {
      at(adapter.weights->path(), name)
          .fail(ErrorCode::LO_PAIR, {.problem = "this tensor stands alone",
                                     .expected = missing,
                                     .got = "no such tensor",
                                     .hint = "a damaged or partial file; --ignore-unused leaves out it"});
    }
    slots.unused.push_back({name, ErrorCode::LO_PAIR, "its partner " + missing + " is missing"});
  }
}

// Puts the tensors of a file together to pairs, in whatever order they come.
class Pairs {
 public:
  Pairs(const Adapter& adapter, std::size_t tensors) : adapter_(adapter) { slots_.reserve(tensors / 2 + 1); }

  void add(const Key& key, std::uint32_t tensor) {
    // In files that are sorted by name a pair's tensors are neighbours.
    if (slots_.empty() || !is_of(slots_.back(), key) || !set(slots_.back(), key, tensor)) {
      slots_.push_back({key.module, key.depth});
      set(slots_.back(), key, tensor);
    }
  }

  // In natural order of modules, the innermost wrapper first: it has the largest depth.
  std::vector<Slot> finish() {
    std::sort(slots_.begin(), slots_.end(), [](const Slot& x, const Slot& y) {
      if (natural_less(x.module, y.module)) return true;
      return x.depth > y.depth && x.module == y.module;
    });
    std::size_t last = 0;
    for (std::size_t i = 1; i < slots_.size(); ++i) {
      if (slots_[i].module == slots_[last].module && slots_[i].depth == slots_[last].depth) {
        join(slots_[last], slots_[i]);
      } else {
        slots_[++last] = slots_[i];
      }
    }
    if (!slots_.empty()) slots_.resize(last + 1);
    return std::move(slots_);
  }

 private:
  static bool is_of(const Slot& slot, const Key& key) { return slot.depth == key.depth && slot.module == key.module; }

  // False when the place is taken.
  static bool set(Slot& slot, const Key& key, std::uint32_t tensor) {
    std::uint32_t* part = part_of(slot, key.kind);
    if (*part != kNoTensor) return false;
    *part = tensor;
    slot.embedding |= key.kind == KeyKind::embedding_a || key.kind == KeyKind::embedding_b;
    return true;
  }

  void join(Slot& slot, const Slot& other) const {
    for (std::uint32_t Slot::*part : {&Slot::a, &Slot::b, &Slot::b_bias, &Slot::magnitude}) {
      if (other.*part == kNoTensor) continue;
      if (slot.*part != kNoTensor) refuse_twin(std::max(slot.*part, other.*part), std::min(slot.*part, other.*part));
      slot.*part = other.*part;
    }
    slot.embedding |= other.embedding;
  }

  [[noreturn]] void refuse_twin(std::uint32_t tensor, std::uint32_t earlier) const {
    const auto tensors = adapter_.weights->tensors();
    at(adapter_.weights->path(), std::string(tensors[tensor].name))
        .fail(ErrorCode::LO_AMBIG,
              {.problem = "two tensors stand for the same thing", .got = std::string(tensors[earlier].name)});
  }

  const Adapter& adapter_;
  std::vector<Slot> slots_;
};

// Megatron-Bridge writes a side that all experts share once, as <experts>.gate_proj.lora_A [1, r, in], and the other
// one as <experts>.<e>.gate_proj.lora_B. Gives each expert its pair, and takes the shared sides off the list.
void share_sides(const Adapter& adapter, std::vector<Slot>& slots) {
  const auto tensors = adapter.weights->tensors();
  const auto lone = [](const Slot& slot) { return (slot.a == kNoTensor) != (slot.b == kNoTensor); };
  std::map<std::string, const Slot*> shared;
  for (const Slot& slot : slots) {
    if (!lone(slot) || !model::leaf(model::parent(slot.module)).ends_with("experts")) continue;
    const auto shape = tensors[std::min(slot.a, slot.b)].shape;
    if (shape.size() == 3 && shape[0] == 1) shared.emplace(slot.module, &slot);
  }
  if (shared.empty()) return;
  std::set<std::string> used;
  std::vector<Slot> result;
  for (Slot slot : slots) {
    const std::string name =
        std::string(model::parent(model::parent(slot.module))) + "." + std::string(model::leaf(slot.module));
    const auto found = lone(slot) ? shared.find(name) : shared.end();
    if (found != shared.end() && (found->second->a == kNoTensor) == (slot.b == kNoTensor)) {
      (slot.a == kNoTensor ? slot.a : slot.b) = std::min(found->second->a, found->second->b);
      slot.outer = true;
      used.insert(name);
    }
    result.push_back(slot);
  }
  std::erase_if(result, [&](const Slot& slot) { return used.contains(std::string(slot.module)); });
  slots = std::move(result);
}

}  // namespace

Slots collect_slots(const Adapter& adapter, bool ignore_unused) {
  const auto tensors = adapter.weights->tensors();
  Slots result;
  Pairs pairs(adapter, tensors.size());
  for (std::uint32_t i = 0; i < tensors.size(); ++i) {
    const Key key = parse_key(tensors[i].name);
    if (key.kind == KeyKind::other_lora) {
      if (!ignore_unused) refuse_suffix(adapter, tensors[i].name);
      result.unused.push_back({std::string(tensors[i].name), ErrorCode::LO_SUFFIX, "not a LoRA tensor"});
    } else if (is_single(key.kind)) {
      result.singles.push_back({key, i});
    } else {
      pairs.add(key, i);
    }
  }
  std::vector<Slot> slots = pairs.finish();
  share_sides(adapter, slots);
  for (const Slot& slot : slots) {
    if (slot.a == kNoTensor || slot.b == kNoTensor)
      check_pair(slot, adapter, ignore_unused, result);
    else
      result.slots.push_back(slot);
  }
  return result;
}

void refuse_unused(const std::vector<Unused>& unused, const Adapter& adapter, bool ignore_unused) {
  if (unused.empty() || ignore_unused) return;
  constexpr std::size_t kListed = 50;
  std::vector<std::string> names;
  for (const Unused& tensor : unused) names.push_back(tensor.name);
  const Unused& first = unused.front();
  at(adapter.weights->path(), first.name)
      .fail(first.code,
            {.problem = std::to_string(unused.size()) + (unused.size() == 1 ? " tensor belongs" : " tensors belong") +
                        " to nothing (" + first.reason + "): " + list_text(names, kListed),
             .hint = "is this the right base model? --ignore-unused leaves out them"});
}

}  // namespace peft::layout
