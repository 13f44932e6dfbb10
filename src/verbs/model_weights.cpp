#include "verbs/model_weights.h"

#include <algorithm>

#include "base/text.h"
#include "execute/values/dequantise.h"
#include "peft/adapter.h"
#include "weights/impl.h"

namespace peft::verbs {
namespace {

// Endings of tensors that only say how to read another one.
constexpr std::string_view kScaleEndings[] = {"_scale_inv", "_scales"};
constexpr std::string_view kBlocks = "_blocks";

const Experts* experts_of(const Model& model, const std::string& module) {
  for (const Experts& experts : model.experts) {
    for (const Generation g : {Generation::v5, Generation::v4}) {
      const auto& parameters = g == Generation::v5 ? experts.form->v5 : experts.form->v4;
      if (experts_module(experts) == module) return &experts;
      for (const auto& parameter : parameters) {
        if (!experts.module(g).empty() && experts.fused_module(g, parameter) == module) return &experts;
      }
    }
  }
  return nullptr;
}

// What a stacked parameter holds of each expert; empty for a bias and the like.
std::vector<Projection> projections_of(const Experts& experts, std::string_view parameter) {
  if (parameter.ends_with(kBlocks)) parameter.remove_suffix(kBlocks.size());
  for (const auto* list : {&experts.form->v5, &experts.form->v4}) {
    for (const auto& fused : *list) {
      if (fused.name == parameter && !fused.projections.empty()) return fused.projections;
    }
  }
  return {};
}

}  // namespace

bool is_scale(std::string_view parameter) {
  return std::any_of(std::begin(kScaleEndings), std::end(kScaleEndings),
                     [&](std::string_view end) { return parameter.ends_with(end); });
}

ModelWeights::ModelWeights(const Model& model, const std::string& folder, const OpenOptions& options)
    : checkpoint(Checkpoint::open(resolve_path(folder), options)), weights(model, checkpoint) {
  const peft::weights::TensorNames names(model, checkpoint);
  for (std::size_t i = 0; i < checkpoint.tensors().size(); ++i) {
    const auto& name = names.name(i);
    const auto shape = checkpoint.tensors()[i].tensor->shape;
    if (is_scale(name.parameter)) continue;
    if (name.expert >= 0 && name.projection != Projection::none && name.parameter == "weight") {
      sites.push_back({name.module, "", name.expert, name.projection});
      continue;
    }
    const Experts* experts = shape.size() >= 3 ? experts_of(model, name.module) : nullptr;
    const auto projections = experts == nullptr ? std::vector<Projection>() : projections_of(*experts, name.parameter);
    for (const Projection projection : projections) {
      fused = true;
      for (std::int64_t e = 0; e < shape[0]; ++e) sites.push_back({peft::experts_module(*experts), "", e, projection});
    }
    if (!projections.empty()) continue;
    if (name.parameter == "weight" && shape.size() == 2 && name.expert < 0) {
      sites.push_back({name.module, "", -1, Projection::none});
    } else {
      others.push_back({name.module, name.parameter, i});
    }
  }
  std::sort(sites.begin(), sites.end(), [](const Site& x, const Site& y) { return site_less(x, y); });
  sites.erase(std::unique(sites.begin(), sites.end()), sites.end());
  std::sort(others.begin(), others.end(), [](const Other& x, const Other& y) {
    return x.module != y.module ? natural_less(x.module, y.module) : x.parameter < y.parameter;
  });
}

const TensorInfo& ModelWeights::info(const Weight& weight) const {
  const View& view = weight.parts.front().view;
  return checkpoint.files()[view.source]->tensors()[view.tensor];
}

low_rank::Dense ModelWeights::read(const Weight& weight, std::int64_t first, std::int64_t count) const {
  low_rank::Dense result(weight.out, count);
  Plan sources;  // only to read quantised values through
  for (const WeightPart& part : weight.parts) {
    low_rank::Dense values(part.view.rows, count);
    if (part.scales) {
      if (sources.sources.empty()) sources.sources = checkpoint.files();
      const Block block{0, 0, 1, part.view, 1, part.scales};
      for (std::int64_t j = 0; j < count; ++j) {
        for (std::int64_t i = 0; i < part.view.rows; ++i)
          values.at(i, j) = execution::value_at(sources, block, i, first + j);
      }
    } else {
      values = low_rank::read(adapter::bind(*checkpoint.files()[part.view.source], part.view.col_range(first, count)));
    }
    for (std::int64_t j = 0; j < count; ++j) {
      std::copy(values.column(j).begin(), values.column(j).end(), result.column(j).begin() + part.row);
    }
  }
  return result;
}

bool same_bytes(const ModelWeights& x, const Weight& of_x, const ModelWeights& y, const Weight& of_y) {
  if (of_x.parts.size() != of_y.parts.size() || of_x.out != of_y.out || of_x.in != of_y.in) return false;
  for (std::size_t i = 0; i < of_x.parts.size(); ++i) {
    const WeightPart &p = of_x.parts[i], &q = of_y.parts[i];
    if (p.row != q.row || p.scales || q.scales) return false;
    const auto& file_x = *x.checkpoint.files()[p.view.source];
    const auto& file_y = *y.checkpoint.files()[q.view.source];
    if (!adapter::equal(adapter::bind(file_x, p.view), adapter::bind(file_y, q.view))) return false;
  }
  return true;
}

}  // namespace peft::verbs
