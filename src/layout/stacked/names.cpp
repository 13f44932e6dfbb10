#include "layout/stacked/names.h"

#include <array>
#include <utility>

#include "model/path.h"

namespace peft::layout {
namespace {

constexpr std::array<std::pair<std::string_view, Projection>, 3> kProjections{
    {{"w1", Projection::gate}, {"w2", Projection::down}, {"w3", Projection::up}}};

// A part of a module's path that Tinker calls otherwise in this model type. Source: golden/consumers/tinker/gpt_oss.
struct Renaming {
  std::string_view model_type, transformers, tinker;
};
constexpr Renaming kRenamings[] = {{"gpt_oss", ".self_attn.", ".attn."}};

}  // namespace

Projection stacked_projection(std::string_view name) {
  for (const auto& [stacked, projection] : kProjections) {
    if (stacked == name) return projection;
  }
  return Projection::none;
}

std::string_view stacked_name(Projection projection) {
  for (const auto& [stacked, named] : kProjections) {
    if (named == projection) return stacked;
  }
  return {};
}

std::string from_tinker(const Model& model, std::string_view module) {
  for (const Renaming& row : kRenamings) {
    if (row.model_type == model.model_type)
      return model::replace_all(std::string(module), row.tinker, row.transformers);
  }
  return std::string(module);
}

std::string to_tinker(const Model& model, std::string_view module) {
  for (const Renaming& row : kRenamings) {
    if (row.model_type == model.model_type)
      return model::replace_all(std::string(module), row.transformers, row.tinker);
  }
  return std::string(module);
}

}  // namespace peft::layout
