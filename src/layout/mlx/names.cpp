#include "layout/mlx/names.h"

#include <algorithm>
#include <array>

#include "model/path.h"

namespace peft::layout {
namespace {

constexpr ProjectionNames kLongNames{"gate_proj", "up_proj", "down_proj"}, kShortNames{"w1", "w3", "w2"};

// The end of the experts' path in both programs. Where `model_types` are given the row is for them alone. Source:
// MLX-LM 0.32.2, models/*.py; the first three were run (golden/consumers/mlx_lm).
struct SwitchRow {
  std::string_view mlx, transformers;
  const ProjectionNames* per_expert = nullptr;
  ProjectionNames names = kLongNames;  // of the projections in MLX-LM
  std::array<std::string_view, 6> model_types{};
};
constexpr SwitchRow kSwitchRows[] = {
    {"block_sparse_moe.switch_mlp", "block_sparse_moe.experts", &kShortNames},
    {"mlp.experts", "mlp.experts", nullptr, kLongNames, {"gpt_oss", "dots1", "afmoe", "Klear"}},
    {"feed_forward.experts", "feed_forward.experts", nullptr, kLongNames, {"llama4", "llama4_text"}},
    {"experts.switch_glu", "experts", nullptr, kLongNames, {"gemma4", "gemma4_text"}},
    {"mixer.switch_mlp", "mixer.experts", nullptr, {"", "fc1", "fc2"}, {"nemotron_h"}},
    {"mlp.switch_mlp", "mlp.experts", &kLongNames},
    {"feed_forward.switch_mlp", "feed_forward.experts"},
};

bool is_for(const SwitchRow& row, std::string_view model_type) {
  return row.model_types.front().empty() || std::ranges::find(row.model_types, model_type) != row.model_types.end();
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
      return std::string(path.substr(0, path.size() - row.transformers.size())) + std::string(row.mlx) + "." +
             std::string(row.names.of(projection));
    }
  }
  return {};
}

}  // namespace peft::layout
