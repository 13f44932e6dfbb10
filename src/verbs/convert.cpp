#include "verbs/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <unordered_map>

#include "base/text.h"
#include "config/peft_rules.h"
#include "gguf/gguf_file.h"
#include "layout/encode/encode.h"
#include "layout/encode/stack.h"
#include "layout/encode/write_config.h"
#include "layout/forms.h"
#include "layout/keys.h"
#include "layout/stacked.h"
#include "model/path.h"
#include "model/trees/build_tree.h"
#include "peft/error.h"
#include "peft/model.h"
#include "peft/verbs.h"

namespace peft {

namespace {

constexpr std::string_view kConfig = "adapter_config.json";

// Every tensor that the reading uses, byte for byte.
std::vector<PlannedTensor> copies(const Input& input) {
  std::set<std::uint32_t> used;
  for (const Factor& factor : input.reading.factors.factors) used.insert({factor.a.tensor, factor.b.tensor});
  for (const Extra& extra : input.reading.factors.extras) used.insert(extra.tensor);
  // A stacked pair whose experts are all zero has no factor, but it belongs to the adapter.
  if (input.reading.unused.empty()) {
    for (std::uint32_t i = 0; i < input.adapter.weights->tensors().size(); ++i) used.insert(i);
  }
  std::vector<PlannedTensor> tensors;
  for (const std::uint32_t index : used) {
    const TensorInfo& tensor = input.adapter.weights->tensors()[index];
    tensors.push_back(copy_of(tensor, index, std::string(tensor.name), tensor.dtype));
    const auto kind = layout::parse_key(tensor.name).kind;
    tensors.back().must_be_finite = kind != layout::KeyKind::plain && kind != layout::KeyKind::token_delta;
  }
  return tensors;
}

// Warns of dense modules that PEFT's own migration takes for experts.
void warn_of_namesakes(const layout::Encoded& encoded, const Model& model, Layout to,
                       std::vector<std::string>& warnings) {
  if (!layout::is_fused(to) || model.peft_config.empty()) return;
  for (const auto& target : encoded.targets) {
    if (target.parameter) continue;
    if (!config::is_named_like_projection(target.name)) continue;
    warnings.push_back(fmt::format(
        "{} is named as an expert's projection: PEFT up to 0.21.2 rewrites such targets while loading, even in a "
        "right config, and drops their LoRA without a word (peft issue 3711)",
        target.name));
    return;
  }
}

// Puts the tensors in the order of the file, so that nobody has to sort tens of thousands of them again.
void put_in_order(std::vector<PlannedTensor>& tensors, const std::vector<std::size_t>& order) {
  std::vector<PlannedTensor> ordered;
  ordered.reserve(tensors.size());
  for (const std::size_t t : order) ordered.push_back(std::move(tensors[t]));
  tensors = std::move(ordered);
}

// What stands beside an adapter has no place in an output of one file.
void warn_of_side_files(const Input& input, std::vector<std::string>& warnings) {
  const auto& names = input.adapter.side_files;
  if (!names.empty()) warnings.push_back("the output is one file: " + list_text(names) + " not copied");
}

void finish(Plan& plan, const Input& input) {
  plan.sources = {input.adapter.weights};
  const std::vector<FileLayout> layouts = set_cost(plan);
  for (std::size_t i = 0; i < layouts.size(); ++i) put_in_order(plan.files[i].tensors, layouts[i].order);
  if (plan.single_file) return warn_of_side_files(input, plan.warnings);
  for (auto& copy : side_file_paths(input.adapter)) plan.copies.push_back(std::move(copy));
}

// Whether every tensor has the same name in the target as in the file. Granite's experts have not: they were renamed.
bool same_names(const Input& input, const layout::Encoded& encoded) {
  return std::all_of(encoded.tensors.begin(), encoded.tensors.end(),
                     [&](const PlannedTensor& tensor) { return input.adapter.weights->find(tensor.name) != nullptr; });
}

// Whether every tensor has the shape that this layout has today. MLX-LM's older files have not.
bool same_shapes(const Input& input, const layout::Encoded& encoded) {
  return std::ranges::all_of(encoded.tensors, [&](const PlannedTensor& tensor) {
    const TensorInfo* own = input.adapter.weights->find(tensor.name);
    return own != nullptr && std::ranges::equal(own->shape, tensor.shape);
  });
}

bool keeps_everything(const Input& input, const layout::Encoded& encoded, const ConvertOptions& options) {
  if (options.to == Layout::gguf || input.adapter.form != info(options.to).form) return false;
  if (options.dtype || options.block_diagonal) return false;
  // NeMo's config has other keys than PEFT's.
  if (options.to == Layout::nemo && input.adapter.wrapper_layout != "peft-0.19.1") return false;
  if (encoded.uniform && !same_shapes(input, encoded)) return false;
  const bool own_names = encoded.uniform.has_value() || layout::find_stacked_form(input.reading.layout) != nullptr;
  if (input.reading.has_experts || own_names) return options.to == input.reading.layout && same_names(input, encoded);
  // Dense modules can stay as they are where none of them is named or owned differently in the target. What a pattern
  // or PEFT's defaults select depends on the modules of the generation, so such configs of MoE models are written
  // out.
  const AdapterConfig& config = input.adapter.config;
  const bool plain_list = std::holds_alternative<std::vector<std::string>>(config.target_modules) &&
                          !config.layers_to_transform && std::holds_alternative<std::monostate>(config.exclude_modules);
  // A router is a parameter in transformers 5 and a module in 4, often under one name.
  const bool owns_parameters = config.target_parameters && !config.target_parameters->empty();
  if ((!plain_list || owns_parameters) && !input.model.experts.empty()) return false;
  const bool parameters =
      std::any_of(encoded.targets.begin(), encoded.targets.end(), [](const auto& t) { return t.parameter; });
  return encoded.steps.empty() && !parameters;
}

// Scales that differ within a tensor are multiplied into lora_B and rounded to the file's dtype.
void warn_of_coarse_rounding(const layout::Encoded& encoded, const ConvertOptions& options,
                             std::vector<std::string>& warnings) {
  if (encoded.exactness != Exactness::rounded || options.dtype) return;
  for (const PlannedTensor& tensor : encoded.tensors) {
    const bool scaled = std::ranges::any_of(tensor.blocks, [](const Block& block) { return block.scale != 1; });
    if (!scaled || info(tensor.dtype).bits > 16) continue;
    warnings.push_back(
        fmt::format("scales that differ within one tensor are multiplied into lora_B and rounded to {}; "
                    "--dtype F32 would round them less",
                    info(tensor.dtype).name));
    return;
  }
}

// Refuses experts of an unknown family. They look like dense modules, and would be silently wrong in another layout.
void require_known_experts(const Input& input) {
  if (!input.model.experts.empty()) return;
  for (const Factor& factor : input.reading.factors.factors) {
    const auto at = factor.site.module.find(".experts.");
    if (at == std::string::npos) continue;
    std::string notes;
    for (const auto& note : input.model.notes) notes += (notes.empty() ? "" : "; ") + note;
    throw Error(ErrorCode::MD_NEEDED, {.file = input.adapter.weights->path(),
                                       .tensor = factor.site.module,
                                       .problem = "these are experts, and the model is not known",
                                       .expected = "--base with the model, or --family with its type",
                                       .got = notes});
  }
}

bool names_parameter(const std::vector<std::string>& targets, const ModuleTree& tree) {
  const auto matches = [&](const std::string& name) { return config::is_named_by(name, targets); };
  return std::any_of(tree.parameters.begin(), tree.parameters.end(),
                     [&](const Parameter& p) { return matches(p.full_name()); }) ||
         std::any_of(tree.modules.begin(), tree.modules.end(),
                     [&](const Module& m) { return matches(m.name + ".weight"); });
}

// The tree that a v4 config was made on. A type that transformers 4 lacks has the names of its checkpoints there.
std::optional<ModuleTree> tree_of_v4(const Model& model) {
  if (model.v4 || !model.v5) return model.v4;
  const bool on_disk = std::any_of(model.experts.begin(), model.experts.end(),
                                   [](const Experts& e) { return e.form->per_expert_on_disk_only; });
  if (!on_disk) return std::nullopt;
  ModuleTree tree = model::rename_tree(model, *model.v5, Generation::v5, Generation::v4);
  // Routers became classes of their own with the fused experts; before that they were nn.Linear.
  for (Module& module : tree.modules) {
    for (const Experts& experts : model.experts) {
      const std::string block = experts.v5_module.substr(0, experts.v5_module.rfind('.') + 1);
      const bool router =
          module.kind == ModuleKind::other && module.weight.size() == 2 && module.weight[0] == experts.num_experts;
      if (router && module.name.starts_with(block)) module.kind = ModuleKind::linear;
    }
  }
  return tree;
}

// Which generation's names a config uses: that of the parameters it names, else that of its writer.
Generation generation_of(const AdapterConfig& config, const Model& model, const std::optional<ModuleTree>& v4) {
  if (!v4) return Generation::v5;
  if (!model.v5) return Generation::v4;
  if (const auto& targets = config.target_parameters; targets && !targets->empty()) {
    return names_parameter(*targets, *model.v5) || !names_parameter(*targets, *v4) ? Generation::v5 : Generation::v4;
  }
  if (config.likely_version().first < AdapterConfig::Version{0, 19, 0}) return Generation::v4;
  // PEFT 0.19 and later run on both: names that only v4 has decide.
  const auto* list = std::get_if<std::vector<std::string>>(&config.target_modules);
  const auto has = [](const ModuleTree& tree, const std::string& name) {
    return std::any_of(tree.modules.begin(), tree.modules.end(),
                       [&](const Module& m) { return config::is_named_by(m.name, name); });
  };
  const auto only_v4_has = [&](const std::string& name) { return has(*v4, name) && !has(*model.v5, name); };
  const bool only_v4 = list != nullptr && std::any_of(list->begin(), list->end(), only_v4_has);
  return only_v4 ? Generation::v4 : Generation::v5;
}

// Factors of a config's targets, made from shapes alone: there are no tensors.
class ShapeOnlyFactors {
 public:
  ShapeOnlyFactors(const Model& model, Generation generation) : model_(model), generation_(generation) {}

  void add(const Target& target) {
    const std::string module = target.parameter ? target.name.substr(0, target.name.rfind('.')) : target.name;
    const auto located = model_.locate(module);
    if (located && located->experts != nullptr && located->expert >= 0) {
      add_factor(target, {experts_module(*located->experts), "", located->expert, located->projection}, fresh_view(),
                 dims(target));
    } else if (located && located->experts != nullptr) {
      add_stack(target, *located->experts, target.name.substr(target.name.rfind('.') + 1), module);
    } else {
      add_factor(target, {model_.rename(module, Generation::v4, Generation::v5), "", -1, Projection::none},
                 fresh_view(), dims(target));
    }
  }
  Factors take() {
    std::stable_sort(factors_.factors.begin(), factors_.factors.end(),
                     [](const Factor& x, const Factor& y) { return natural_less(x.site.module, y.site.module); });
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
    factors_.factors.push_back(
        {std::move(site), FactorKind::linear, dims.out, dims.in, target.rank, target.scaling, a, fresh_view()});
  }
  void add_stack(const Target& target, const Experts& experts, const std::string& name, const std::string& module) {
    const auto& list = generation_ == Generation::v4 ? experts.form->v4 : experts.form->v5;
    const auto parameter = std::find_if(list.begin(), list.end(), [&](const auto& p) {
      return p.name == name && experts.fused_module(generation_, p) == module;
    });
    if (parameter == list.end()) {
      throw Error(ErrorCode::LO_TARGET,
                  {.tensor = target.name, .problem = "the family table has no such parameter of the experts"});
    }
    const std::string& place = experts_module(experts);
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
        if (parameter->projections.empty())
          site.parameter = name;
        else
          site.projection = parameter->projections[p];
        add_factor(target, std::move(site), shared, {whole.out / parts, whole.in});
      }
    }
  }

  const Model& model_;
  Generation generation_;
  Factors factors_;
  std::uint32_t next_ = 0;
};

AdapterConfig write_converted(const AdapterConfig& config, const Model& model, Generation from,
                              const ResolvedTargets& resolved, const layout::EncodeOptions& options,
                              std::vector<std::string>& warnings) {
  ShapeOnlyFactors shape_only(model, from);
  for (const Target& target : resolved.targets) shape_only.add(target);
  const Factors factors = shape_only.take();
  layout::Encoded encoded = layout::encode(factors, model, nullptr, options);
  for (const std::string& module : resolved.modules_to_save) {
    const bool turn = from == Generation::v4 && layout::is_fused(options.to);
    encoded.saved_modules.push_back(turn ? model.rename(module, Generation::v4, Generation::v5)
                                    : layout::is_fused(options.to)
                                        ? module
                                        : model.rename(module, Generation::v5, Generation::v4));
  }
  return layout::write_config(config, encoded, model, options.to, warnings);
}

// Whether a name in a list can mean a module that only v4 has; a pattern can mean any. Experts are most of a v4 tree,
// so this is asked before anything is resolved on it.
bool may_name_v4_only(const AdapterConfig& config, const ModuleTree& tree, const Model& model) {
  const auto* list = std::get_if<std::vector<std::string>>(&config.target_modules);
  if (list == nullptr) return true;
  std::set<std::string_view> leaves;
  for (const std::string& name : *list) leaves.insert(model::leaf(name));
  return std::ranges::any_of(tree.modules, [&](const Module& module) {
    if (!leaves.contains(model::leaf(module.name))) return false;
    const Module* now = model.v5->find(model.rename(module.name, Generation::v4, Generation::v5));
    return now == nullptr || now->kind == ModuleKind::other;
  });
}

// What v4 targets on `tree` name, when that includes experts or routers; nothing when they name neither, or nothing
// at all.
std::optional<ResolvedTargets> targets_among_experts(const AdapterConfig& config, const ModuleTree& tree,
                                                     const Model& model) {
  ResolvedTargets resolved;
  try {
    resolved = resolve_targets(config, tree, model, Generation::v4);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::CF_TARGET) return std::nullopt;  // names of v5, or wrong there as well
    throw;
  }
  const bool any = std::ranges::any_of(resolved.targets, [&](const Target& target) {
    const auto located = model.locate(target.name);
    if (located && located->expert >= 0) return true;
    const Module* now = model.v5->find(model.rename(target.name, Generation::v4, Generation::v5));
    return now == nullptr || now->kind == ModuleKind::other;
  });
  if (!any) return std::nullopt;
  return resolved;
}

// A fused parameter takes all its projections and all its experts, or none.
void require_whole(const std::vector<Target>& targets, const Model& model) {
  std::map<std::string, std::map<Projection, std::int64_t>> counts;
  for (const Target& target : targets) {
    const auto located = model.locate(target.name);
    if (!located || located->expert < 0) continue;
    const std::string& module = experts_module(*located->experts);
    ++counts[module][located->projection];
  }
  for (const Experts& experts : model.experts) {
    const std::string& module = experts_module(experts);
    const auto found = counts.find(module);
    if (found == counts.end()) continue;
    auto& of = found->second;
    if (of.contains(Projection::gate) != of.contains(Projection::up)) {
      at({}, module)
          .fail(ErrorCode::CF_TARGET,
                {.problem = "gate and up are one parameter here, and only one of them is a target",
                 .expected = "both or neither",
                 .hint = "name both in target_modules",
                 .python_error = "ValueError"});
    }
    for (const auto& [projection, count] : of) {
      if (count == experts.num_experts) continue;
      at({}, module)
          .fail(ErrorCode::CF_TARGET,
                {.problem = fmt::format("only {} of {} experts are targets, and they are one parameter here", count,
                                        experts.num_experts),
                 .expected = "all experts of a layer",
                 .hint = "name the projection without an expert's number",
                 .python_error = "ValueError"});
    }
  }
}

std::int64_t largest_rank(const layout::Encoded& encoded) {
  std::int64_t rank = encoded.uniform ? encoded.uniform->rank : 0;
  for (const auto& target : encoded.targets) rank = std::max(rank, target.rank);
  return rank;
}

// A file with one rank and one scale needs no rule but alpha / r. Returns whether the config has others.
bool forget_scale_rules(AdapterConfig& config, Layout to, const verbs::Suiting& suiting) {
  if (to != Layout::peft_per_expert || !(suiting.one_scale || suiting.one_rank)) return false;
  const bool has_rules = config.use_rslora || !config.alpha_pattern.empty() || !config.rank_pattern.empty();
  if (suiting.one_scale) config.use_rslora = false;
  return has_rules;
}

void require_gguf_options(const ConvertOptions& options) {
  if (options.to == Layout::gguf) return;
  const std::string_view flag = options.q8_0 ? "--dtype Q8_0" : !options.gguf_base.empty() ? "--gguf-base" : "";
  if (flag.empty()) return;
  throw Error(ErrorCode::USAGE, {.problem = std::string(flag) + " is for --to gguf",
                                 .got = "--to " + std::string(info(options.to).name)});
}

}  // namespace

namespace verbs {

SuitedPlan plan_suited(const Input& input, const ConvertOptions& options, const Suiting& suiting) {
  require_usable(input.adapter.config, Verb::convert);
  require_known_experts(input);
  Plan plan;
  plan.warnings = input.reading.factors.warnings;
  if (std::string text = left_out(input.reading); !text.empty()) plan.warnings.push_back(std::move(text));
  layout::EncodeOptions encode_options{options.to, options.dtype, options.block_diagonal, options.q8_0};
  encode_options.all_projections = suiting.all_projections, encode_options.spelling = suiting.spelling;
  encode_options.one_rank = suiting.one_rank, encode_options.one_scale = suiting.one_scale;
  require_gguf_options(options);
  if (!options.gguf_base.empty())
    encode_options.gguf_base = gguf::GgufFile::open(options.gguf_base, options.input.open);
  layout::Encoded encoded =
      layout::encode(input.reading.factors, input.model, input.adapter.weights.get(), encode_options);
  AdapterConfig source = input.adapter.config;
  const bool had_rules = forget_scale_rules(source, options.to, suiting);
  const std::int64_t rank = largest_rank(encoded);
  if (!encoded.evened && !had_rules && keeps_everything(input, encoded, options)) {
    layout::add_weights(plan, copies(input), options.to);
    if (input.adapter.form == AdapterForm::peft && layout::find_stacked_form(input.reading.layout) == nullptr)
      plan.texts.emplace_back(kConfig, input.adapter.config.dump());
    else
      plan.copies.emplace_back(kConfig, (std::filesystem::path(input.adapter.folder) / kConfig).string());
    if (options.to == Layout::nemo) {
      constexpr const char* kMarker = "automodel_peft_config.json";
      plan.copies.emplace_back(kMarker, (std::filesystem::path(input.adapter.folder) / kMarker).string());
    }
    plan.steps.push_back(input.reading.has_experts
                             ? "already in this layout: copied as it is (bit-exact)"
                             : "nothing in this adapter differs between the layouts: copied as it is (bit-exact)");
    finish(plan, input);
    return {std::move(plan), rank};
  }
  if (input.model.num_experts_assumed) {
    plan.warnings.push_back(
        "the number of experts is taken from the file (highest index + 1); --base or --num-experts would confirm it");
  }
  warn_of_namesakes(encoded, input.model, options.to, plan.warnings);
  warn_of_coarse_rounding(encoded, options, plan.warnings);
  layout::add_adapter_files(plan, std::move(encoded), source, input.model, options.to);
  finish(plan, input);
  return {std::move(plan), rank};
}

}  // namespace verbs

Plan plan_convert(const Input& input, const ConvertOptions& options) {
  return verbs::plan_suited(input, options, {}).plan;
}

std::optional<AdapterConfig> rewrite_v4_targets(const AdapterConfig& config, const Model& model,
                                                std::vector<std::string>& warnings) {
  const auto v4 = tree_of_v4(model);
  const bool named = !std::holds_alternative<std::monostate>(config.target_modules);
  if (!named || !v4 || !model.v5 || model.peft_config.empty() || !may_name_v4_only(config, *v4, model))
    return std::nullopt;
  AdapterConfig modules = config;
  modules.target_parameters.reset();
  const auto resolved = targets_among_experts(modules, *v4, model);
  if (!resolved) return std::nullopt;
  require_whole(resolved->targets, model);
  AdapterConfig after =
      write_converted(modules, model, Generation::v4, *resolved, {Layout::peft_fused, std::nullopt, true}, warnings);
  // What a parameter cannot have is refused later, as for any target_parameters.
  after.lora_dropout = config.lora_dropout, after.use_dora = config.use_dora, after.lora_bias = config.lora_bias;
  if (config.target_parameters) {
    auto& all = after.target_parameters;
    if (!all) all.emplace();
    for (const std::string& name : *config.target_parameters) {
      if (std::ranges::find(*all, name) == all->end()) all->push_back(name);
    }
  }
  return after;
}

ConfigConversion convert_config(const std::string& path, const ConvertOptions& options) {
  if (!layout::is_peft(options.to) || options.to == Layout::nemo) {
    throw Error(ErrorCode::USAGE, {.problem = "a config of PEFT has no form in the layout without its weights",
                                   .expected = "--to with a layout of PEFT's, or the whole adapter",
                                   .got = std::string(info(options.to).name)});
  }
  const AdapterConfig config = AdapterConfig::read(path);
  require_usable(config, Verb::convert);
  const Model model = describe({resolve_path(options.input.base),
                                options.input.family,
                                options.input.families_file,
                                options.input.num_experts,
                                {}});
  const auto v4 = tree_of_v4(model);
  const Generation from = generation_of(config, model, v4);
  const auto& tree = from == Generation::v4 ? v4 : model.v5;
  if (!tree) {
    throw Error(ErrorCode::MD_NEEDED, {.file = path,
                                       .problem = "a config alone does not say what it targets",
                                       .hint = "give the model (its config.json is enough) with --base"});
  }
  const auto version = config.likely_version().first;
  const ResolvedTargets resolved = resolve_targets(config, *tree, model, from, version);
  ConfigConversion result;
  result.warnings = resolved.warnings;
  result.before = config.json;
  result.after = write_converted(config, model, from, resolved, {options.to, options.dtype, options.block_diagonal},
                                 result.warnings)
                     .dump();
  return result;
}

}  // namespace peft
