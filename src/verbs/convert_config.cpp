// A config alone: its targets are resolved on the model's module tree, become factors without tensors, and are encoded
// as any others.
#include <fmt/format.h>

#include <algorithm>

#include "layout/encode.h"
#include "layout/fused_forms.h"
#include "layout/natural_order.h"
#include "layout/write_config.h"
#include "peft/error.h"
#include "peft/targets.h"
#include "peft/verbs.h"

namespace peft {
namespace {

// Which generation's names a config speaks.
Generation generation_of(const AdapterConfig& config, const Model& model) {
  if (!model.v4) return Generation::v5;
  if (!model.v5) return Generation::v4;
  if (config.target_parameters && !config.target_parameters->empty()) return model.base_is_v4_only ? Generation::v4 : Generation::v5;
  if (model.base_is_v4_only) return Generation::v4;
  if (model.base_is_v5_only) return Generation::v5;
  return config.likely_version().first < AdapterConfig::Version{0, 19, 0} ? Generation::v4 : Generation::v5;
}

class VirtualFactors {
 public:
  VirtualFactors(const Model& model, Generation generation) : model_(model), generation_(generation) {}

  void add(const Target& target) {
    const std::string module = target.parameter ? target.name.substr(0, target.name.rfind('.')) : target.name;
    const auto located = model_.locate(module);
    if (located && located->experts != nullptr && located->expert >= 0) {
      add_factor(target, {layout::experts_module(*located->experts), "", located->expert, located->projection}, fresh_view(), dims(target));
    } else if (located && located->experts != nullptr) {
      add_stack(target, *located->experts, target.name.substr(target.name.rfind('.') + 1), module);
    } else {
      add_factor(target, {model_.rename(module, Generation::v4, Generation::v5), "", -1, Projection::none}, fresh_view(), dims(target));
    }
  }
  Factors take() {
    std::stable_sort(factors_.factors.begin(), factors_.factors.end(), [](const Factor& x, const Factor& y) {
      return layout::natural_less(x.site.module, y.site.module);
    });
    return std::move(factors_);
  }

 private:
  using Dims = layout::Dims;

  // Widths as the weight's shape gives them; only their agreement matters here.
  static Dims dims(const Target& target) {
    return target.shape.size() == 2 ? Dims{target.shape[0], target.shape[1]} : Dims{};
  }
  View fresh_view() { return {0, next_++, 0, 0, 0, 0, 0}; }

  void add_factor(const Target& target, Site site, const View& a, const Dims& dims) {
    factors_.factors.push_back({std::move(site), FactorKind::linear, dims.out, dims.in, target.rank, target.scaling, a, fresh_view()});
  }
  void add_stack(const Target& target, const Experts& experts, const std::string& name, const std::string& module) {
    const auto& list = generation_ == Generation::v4 ? experts.form->v4 : experts.form->v5;
    const auto parameter = std::find_if(list.begin(), list.end(), [&](const auto& p) {
      return p.name == name && experts.fused_module(generation_, p) == module;
    });
    if (parameter == list.end()) {
      throw Error(ErrorCode::LO_TARGET, {.tensor = target.name, .problem = "the family table has no such parameter of the experts"});
    }
    const std::string& place = layout::experts_module(experts);
    const Dims whole = layout::natural_dims(experts, *parameter);
    if (parameter->dims.size() == 2) {
      add_factor(target, {place, name, -1, Projection::none}, fresh_view(), whole);
      return;
    }
    const std::int64_t count = target.shape.empty() ? experts.num_experts : target.shape[0];
    factors_.expert_counts.push_back({place, count});
    const auto parts = static_cast<std::int64_t>(std::max<std::size_t>(1, parameter->projections.size()));
    for (std::int64_t e = 0; e < count; ++e) {
      const View shared = fresh_view();
      for (std::size_t p = 0; p < static_cast<std::size_t>(parts); ++p) {
        Site site{place, "", e, Projection::none};
        if (parameter->projections.empty()) site.parameter = name;
        else site.projection = parameter->projections[p];
        add_factor(target, std::move(site), shared, {whole.out / parts, whole.in});
      }
    }
  }

  const Model& model_;
  Generation generation_;
  Factors factors_;
  std::uint32_t next_ = 0;
};

bool is_fused(Layout layout) { return layout != Layout::peft_per_expert; }

}  // namespace

ConfigConversion convert_config(const std::string& path, const ConvertOptions& options) {
  const AdapterConfig config = AdapterConfig::read(path);
  const Model model = describe({resolve_path(options.input.base), options.input.family, options.input.families_file,
                                options.input.num_experts, {}});
  const Generation from = generation_of(config, model);
  const auto& tree = model.tree(from);
  if (!tree) {
    throw Error(ErrorCode::MD_NEEDED, {.file = path, .problem = "a config alone does not say what it targets",
                                       .hint = "give the model (its config.json is enough) with --base"});
  }
  const auto version = config.likely_version().first;
  ResolvedTargets resolved = resolve_targets(config, *tree, model, from, version);
  VirtualFactors virtual_factors(model, from);
  for (const Target& target : resolved.targets) virtual_factors.add(target);
  const Factors factors = virtual_factors.take();

  ConfigConversion result;
  result.warnings = resolved.warnings;
  layout::Encoded encoded = layout::encode(factors, model, nullptr, {options.to, options.dtype, options.block_diagonal});
  for (const std::string& module : resolved.modules_to_save) {
    const bool turn = from == Generation::v4 && is_fused(options.to);
    encoded.saved_modules.push_back(turn ? model.rename(module, Generation::v4, Generation::v5)
                                         : is_fused(options.to) ? module : model.rename(module, Generation::v5, Generation::v4));
  }
  result.before = config.json;
  result.after = layout::write_config(config, encoded, model, options.to, result.warnings).dump();
  return result;
}

}  // namespace peft
