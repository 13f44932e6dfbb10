#include "layout/mlx/read.h"

#include <fmt/format.h>

#include <map>
#include <optional>

#include "base/text.h"
#include "layout/mlx/names.h"

namespace peft::layout {
namespace {

struct Sides {
  std::uint32_t a = kNoTensor, b = kNoTensor;
};
struct Found {
  std::map<std::string, Sides> pairs;  // by MLX-LM's module path
  std::vector<std::uint32_t> others;   // tensors that are no side of a pair
};

Found find_pairs(const Adapter& adapter) {
  Found found;
  const auto tensors = adapter.weights->tensors();
  for (std::uint32_t i = 0; i < tensors.size(); ++i) {
    const std::string_view name = tensors[i].name;
    const auto dot = name.rfind('.');
    const std::string_view side = dot == std::string_view::npos ? std::string_view() : name.substr(dot + 1);
    if (side == "lora_a")
      found.pairs[std::string(name.substr(0, dot))].a = i;
    else if (side == "lora_b")
      found.pairs[std::string(name.substr(0, dot))].b = i;
    else
      found.others.push_back(i);
  }
  return found;
}

// The number of experts of a switch layer: its lora_b is [E, out, r].
std::int64_t experts_of(const TensorInfo& b) { return b.shape.size() == 3 ? b.shape[0] : 0; }

NamedPair dense_pair(const Context& context, const std::string& module, const Sides& sides) {
  const TensorInfo &a = context.tensor(sides.a), &b = context.tensor(sides.b);
  if (a.shape.size() != 2 || b.shape.size() != 2) {
    context.at(sides.a).fail(ErrorCode::LO_SHAPE,
                             {.problem = "no pair of MLX-LM",
                              .expected = "lora_a [in, r], lora_b [r, out]; of switch layers [E, r, in], [E, out, r]",
                              .got = fmt::format("lora_a {}, lora_b {}", shape_text(a.shape), shape_text(b.shape))});
  }
  NamedPair pair;
  pair.module = module;
  pair.a = View{0, sides.a, 0, a.shape[0], a.shape[1], a.shape[1], 1}.transposed();
  pair.b = View{0, sides.b, 0, b.shape[0], b.shape[1], b.shape[1], 1}.transposed();
  return pair;
}

// lora_a of a switch layer has two or three dimensions with the same bytes: [E * r, in] is row e * r + k.
NamedPair switch_pair(const Context& context, const SwitchName& name, const Sides& sides) {
  const TensorInfo &a = context.tensor(sides.a), &b = context.tensor(sides.b);
  const std::int64_t experts = experts_of(b), rank = experts == 0 ? 0 : b.shape[2];
  const bool three = a.shape.size() == 3 && a.shape[0] == experts && a.shape[1] == rank;
  const bool two = a.shape.size() == 2 && rank != 0 && a.shape[0] == experts * rank;
  if (experts == 0 || (!two && !three)) {
    context.at(sides.a).fail(ErrorCode::LO_SHAPE,
                             {.problem = "no pair of a switch layer",
                              .expected = "lora_a [E, r, in] or [E * r, in], lora_b [E, out, r]",
                              .got = fmt::format("lora_a {}, lora_b {}", shape_text(a.shape), shape_text(b.shape))});
  }
  NamedPair pair;
  pair.module = name.experts;
  pair.projection = name.projection;
  pair.experts = experts;
  const std::int64_t in = a.shape.back(), out = b.shape[1];
  pair.a = {0, sides.a, 0, rank, in, in, 1}, pair.b = {0, sides.b, 0, out, rank, rank, 1};
  pair.a_step = rank * in, pair.b_step = out * rank;
  return pair;
}

bool is_embedding(const Model& model, const std::string& module) {
  for (const auto g : {Generation::v4, Generation::v5}) {
    if (model.kind(g, module) == ModuleKind::embedding) return true;
  }
  return false;
}

void require_rank(const Context& context, const NamedPair& pair) {
  const std::int64_t stated = context.adapter.config.r;
  if (pair.a.rows == stated) return;
  context.at(pair.a.tensor)
      .fail(ErrorCode::LO_RANK, {.problem = "the rank of the tensor is not the one of the config",
                                 .expected = fmt::format("rank {}", stated),
                                 .got = fmt::format("rank {}", pair.a.rows),
                                 .hint = "does this adapter_config.json belong to this file?"});
}

// One side without the other: MLX-LM ignores it in silence.
void refuse_half(Context& context, const std::string& module, const Sides& sides) {
  const std::uint32_t there = sides.a == kNoTensor ? sides.b : sides.a;
  const std::string missing = module + (sides.a == kNoTensor ? ".lora_a" : ".lora_b");
  if (!context.options.ignore_unused) {
    context.at(there).fail(ErrorCode::LO_PAIR, {.problem = "this tensor stands alone",
                                                .expected = missing,
                                                .got = "no such tensor",
                                                .hint = "a damaged or partial file; --ignore-unused leaves it out"});
  }
  context.unused.push_back(
      {std::string(context.tensor(there).name), ErrorCode::LO_PAIR, "its partner " + missing + " is missing"});
}

}  // namespace

void read_mlx(Context& context) {
  context.reading.layout = Layout::mlx;
  const Found found = find_pairs(context.adapter);
  for (const auto& [module, sides] : found.pairs) {
    if (sides.a == kNoTensor || sides.b == kNoTensor) {
      refuse_half(context, module, sides);
      continue;
    }
    const auto name = parse_switch_name(module);
    const bool stacked = name && experts_of(context.tensor(sides.b)) != 0;
    NamedPair pair =
        stacked ? switch_pair(context, *name, sides) : dense_pair(context, from_mlx(context.model, module), sides);
    pair.scale = context.adapter.scale.value_or(1);
    pair.embedding = !stacked && is_embedding(context.model, pair.module);
    require_rank(context, pair);
    add_pair(context, pair);
  }
  for (const std::uint32_t index : found.others)
    context.unused.push_back({std::string(context.tensor(index).name), ErrorCode::LO_UNUSED, "not LoRA"});
  context.reading.evidence.insert(context.reading.evidence.begin(),
                                  "a folder of MLX-LM: adapters.safetensors, lora_a and lora_b");
}

std::vector<std::string> mlx_module_names(const Adapter& adapter) {
  std::vector<std::string> names;
  const auto tensors = adapter.weights->tensors();
  for (const auto& [module, sides] : find_pairs(adapter).pairs) {
    NamedPair pair;
    pair.module = module;
    const auto name = parse_switch_name(module);
    if (name && sides.b != kNoTensor && experts_of(tensors[sides.b]) != 0) {
      pair.module = name->experts, pair.projection = name->projection, pair.experts = experts_of(tensors[sides.b]);
      add_module_names(pair, name->per_expert, names);
    } else {
      add_module_names(pair, nullptr, names);
    }
  }
  return names;
}

}  // namespace peft::layout
