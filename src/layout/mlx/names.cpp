#include "layout/mlx/names.h"

#include <algorithm>
#include <array>
#include <vector>

#include "model/path.h"

namespace peft::layout {
namespace {

// Source of the tables: MLX-LM 0.32.2, models/*.py and sanitize() in them. tools/consumers/mlx_names.py compares names
// and shapes with the modules of its classes; Mixtral, qwen3_moe and gpt_oss were run (golden/consumers/mlx_lm).

constexpr ProjectionNames kLongNames{"gate_proj", "up_proj", "down_proj"}, kShortNames{"w1", "w3", "w2"};

// The end of the experts' path in both programs. Where `model_types` are given the row is for them alone.
struct SwitchRow {
  std::string_view mlx, transformers;
  const ProjectionNames* per_expert = nullptr;
  ProjectionNames names = kLongNames;  // of the projections in MLX-LM
  std::array<std::string_view, 6> model_types{};
};
constexpr SwitchRow kSwitchRows[] = {
    {"block_sparse_moe.switch_mlp", "block_sparse_moe.experts", &kShortNames},
    {"block_sparse_moe.switch_mlp", "mlp.experts", nullptr, kLongNames, {"minimax_m2", "minimax_m3_vl"}},
    {"mlp.experts", "mlp.experts", nullptr, kLongNames, {"gpt_oss", "dots1", "afmoe", "Klear", "muse_spark"}},
    {"feed_forward.experts", "feed_forward.experts", nullptr, kLongNames, {"llama4"}},
    {"experts.switch_glu", "experts", nullptr, kLongNames, {"gemma4", "gemma4_text", "gemma4_unified"}},
    {"mixer.switch_mlp", "mixer.experts", nullptr, {"", "fc1", "fc2"}, {"nemotron_h"}},
    {"mlp.switch_mlp", "mlp.experts", &kLongNames},
    {"feed_forward.switch_mlp", "feed_forward.experts"},
};

// What stands before the layers, and before lm_head, where it is not "model." and nothing.
struct RootRow {
  std::string_view root, head;
  std::array<std::string_view, 16> model_types{};
};
constexpr RootRow kRoots[] = {
    {"language_model.model.",
     "language_model.",
     {"llama4", "qwen3_5", "qwen3_5_moe", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "kimi_k25", "kimi_k3",
      "kimi_vl", "minimax_m3_vl", "gemma3", "gemma4", "gemma4_unified", "mistral3", "pixtral"}},
    {"language_model.model.", "language_model.", {"llava"}},
    {"model.language_model.", "", {"muse_spark"}},
    {"backbone.", "", {"nemotron_h", "mamba", "mamba2", "falcon_mamba"}},
};

// Parts of a path that MLX-LM calls otherwise in these models.
struct PartRow {
  std::string_view mlx, transformers;
  std::array<std::string_view, 2> model_types{};
  bool only_written = false;  // transformers 5 has MLX-LM's name; the checkpoint has the other one
};
constexpr PartRow kParts[] = {
    {".h.", ".layers.", {"gpt_neox"}},
    {".layers.", ".blocks.", {"kimi_k25"}, true},
    {".feed_forward.gate_proj", ".feed_forward.w1", {"lfm2_moe"}},
    {".feed_forward.down_proj", ".feed_forward.w2", {"lfm2_moe"}},
    {".feed_forward.up_proj", ".feed_forward.w3", {"lfm2_moe"}},
};

// Modules that MLX-LM does not have: it would pass over their tensors in silence.
struct MissingRow {
  std::string_view module, why;
  std::array<std::string_view, 12> model_types{};
};
constexpr std::string_view kSplit = "MLX-LM has taken kv_b_proj apart into embed_q and unembed_out",
                           kDense = "MLX-LM's class for this type has no experts",
                           kOneMatrix = "MLX-LM holds the projections of attention in one matrix";
constexpr MissingRow kMissing[] = {
    {"self_attn.kv_b_proj",
     kSplit,
     {"deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "mistral4", "kimi_k2", "kimi_k25", "kimi_vl",
      "kimi_linear", "kimi_k3", "longcat_flash"}},
    {"shared_experts.gate_up_proj", "MLX-LM holds gate_proj and up_proj apart", {"minimax_m3_vl"}},
    {"feed_forward.experts", kDense, {"llama4_text"}},
    {"feed_forward.router", kDense, {"llama4_text"}},
    {"feed_forward.shared_expert", kDense, {"llama4_text"}},
    {"self_attn.q_proj", kOneMatrix, {"muse_spark"}},
    {"self_attn.k_proj", kOneMatrix, {"muse_spark"}},
    {"self_attn.v_proj", kOneMatrix, {"muse_spark"}},
    {"self_attn.gate_proj", kOneMatrix, {"muse_spark"}},
    {"embed_out", "MLX-LM calls the output embedding otherwise", {"gpt_neox"}},
};

template <class Row>
bool names_type(const Row& row, std::string_view model_type) {
  // Lists are filled up with "", which is also what an unknown type is called.
  return !model_type.empty() && std::ranges::find(row.model_types, model_type) != row.model_types.end();
}

bool is_for(const SwitchRow& row, std::string_view model_type) {
  return row.model_types.front().empty() || names_type(row, model_type);
}

Projection projection_named(const ProjectionNames& names, std::string_view name) {
  for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
    if (!name.empty() && names.of(projection) == name) return projection;
  }
  return Projection::none;
}

// Whether the path is `end`, or has it after a dot.
bool ends_with_path(std::string_view path, std::string_view end) {
  return path.ends_with(end) && (path.size() == end.size() || path[path.size() - end.size() - 1] == '.');
}

// Router and shared experts stand beside the experts: their block, where it is called otherwise in MLX-LM and no
// generation of transformers has that name. Found by the experts of the layer: dense layers keep their names.
std::string with_block(const Model& model, std::string name, bool to_mlx) {
  for (const SwitchRow& row : kSwitchRows) {
    const std::string mlx = std::string(model::parent(row.mlx)), own = std::string(model::parent(row.transformers));
    if (!names_type(row, model.model_type) || own.empty() || mlx == own) continue;
    const Experts* experts = experts_at(model, name);
    if (experts == nullptr) return name;
    const std::string &from = to_mlx ? own : mlx, &to = to_mlx ? mlx : own;
    return model::replace_all(std::move(name), "." + from + ".", "." + to + ".");
  }
  return name;
}

const RootRow& root_of(const Model& model) {
  static constexpr RootRow kPlain{"model.", ""};
  const auto row = std::ranges::find_if(kRoots, [&](const RootRow& r) { return names_type(r, model.model_type); });
  return row == std::end(kRoots) ? kPlain : *row;
}

// What stands before the layers in transformers: the place of the embeddings, and of the experts where only they are
// known.
std::vector<std::string> own_roots(const Model& model) {
  std::vector<std::string> roots;
  for (const Generation g : {Generation::v5, Generation::v4}) {
    const auto& tree = model.tree(g);
    if (tree && tree->input_embedding.find('.') != std::string::npos)
      roots.push_back(std::string(model::parent(tree->input_embedding)) + ".");
    if (model.experts.empty()) continue;
    const std::string_view experts = model.experts.front().module(g);
    if (const auto layers = experts.find("layers."); layers != std::string_view::npos && layers != 0)
      roots.emplace_back(experts.substr(0, layers));
  }
  return roots;
}

std::string with_parts(const Model& model, std::string name, std::string_view PartRow::*from,
                       std::string_view PartRow::*to) {
  for (const PartRow& row : kParts) {
    const bool reads = from == &PartRow::mlx;
    if (names_type(row, model.model_type) && !(reads && row.only_written))
      name = model::replace_all(std::move(name), row.*from, row.*to);
  }
  return name;
}

std::string with_mlx_root(const Model& model, std::string_view name) {
  const std::string module = with_parts(model, std::string(name), &PartRow::transformers, &PartRow::mlx);
  const RootRow& row = root_of(model);
  for (const std::string& root : own_roots(model)) {
    if (module.starts_with(root)) return std::string(row.root) + module.substr(root.size());
  }
  return module == "lm_head" ? std::string(row.head) + "lm_head" : module;
}

}  // namespace

std::optional<SwitchName> parse_switch_name(std::string_view module) {
  const std::string_view place = model::parent(module);
  for (const SwitchRow& row : kSwitchRows) {
    const Projection projection = projection_named(row.names, model::leaf(module));
    if (projection == Projection::none || !ends_with_path(place, row.mlx)) continue;
    const std::string_view above = place.substr(0, place.size() - row.mlx.size());
    return SwitchName{std::string(above) + std::string(row.transformers), projection, row.per_expert};
  }
  return std::nullopt;
}

std::string switch_name(const Model& model, const Experts& experts, Projection projection) {
  for (const SwitchRow& row : kSwitchRows) {
    if (!is_for(row, model.model_type) || row.names.of(projection).empty()) continue;
    for (const std::string_view path : {std::string_view(experts.v4_module), std::string_view(experts.v5_module)}) {
      if (path.empty() || !ends_with_path(path, row.transformers)) continue;
      const std::string switched =
          std::string(path.substr(0, path.size() - row.transformers.size())) + std::string(row.mlx);
      return with_mlx_root(model, switched) + "." + std::string(row.names.of(projection));
    }
  }
  return {};
}

std::string from_mlx(const Model& model, std::string_view name) {
  const std::string module = with_parts(model, std::string(name), &PartRow::mlx, &PartRow::transformers);
  const RootRow& row = root_of(model);
  const auto roots = own_roots(model);
  if (module.starts_with(row.root) && !roots.empty())
    return with_block(model, roots.front() + module.substr(row.root.size()), false);
  if (!row.head.empty() && module == std::string(row.head) + "lm_head") return "lm_head";
  return module;
}

std::string_view missing_in_mlx(const Model& model, std::string_view module) {
  const auto lies_in = [&](std::string_view part) {
    const auto at = module.find(part);
    const auto end = at + part.size();
    return at != std::string_view::npos && (at == 0 || module[at - 1] == '.') &&
           (end == module.size() || module[end] == '.');
  };
  const auto row = std::ranges::find_if(
      kMissing, [&](const MissingRow& r) { return names_type(r, model.model_type) && lies_in(r.module); });
  return row == std::end(kMissing) ? std::string_view() : row->why;
}

std::string to_mlx(const Model& model, std::string_view module) {
  return with_mlx_root(model, with_block(model, model.rename(module, Generation::v5, Generation::v4), true));
}

}  // namespace peft::layout
