#include "verbs/inspect/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <tuple>

#include "base/text.h"
#include "config/adapter_fields.h"
#include "config/peft_keys.h"
#include "engines/judge.h"
#include "engines/read_facts.h"
#include "layout/decode/decode.h"
#include "layout/encode/write_config.h"
#include "layout/forms.h"
#include "layout/keys.h"
#include "peft/error.h"
#include "peft/model.h"
#include "peft/verbs.h"

namespace peft::verbs {
namespace {

// A width, named as the model's configuration names it.
std::string width_name(std::int64_t width, const Experts* experts) {
  if (experts != nullptr && experts->hidden == width) return fmt::format("hidden {}", width);
  if (experts != nullptr && experts->intermediate == width) return fmt::format("intermediate {}", width);
  if (experts != nullptr && experts->intermediate != 0 && 2 * experts->intermediate == width) {
    return fmt::format("gate and up 2 × {}", experts->intermediate);
  }
  return std::to_string(width);
}

struct TensorUse {
  const Factor* factor = nullptr;
  const Extra* extra = nullptr;
  bool is_a = false;         // lora_A on disk
  std::int64_t experts = 0;  // of a stacked tensor
};

// What each tensor of an adapter means, in words.
class Meanings {
 public:
  explicit Meanings(const Input& input) : input_(input) {
    const Factors& factors = input.reading.factors;
    for (const ExpertCount& count : factors.expert_counts) counts_[count.module] = count.count;
    for (const Experts& experts : input.model.experts) by_module_[experts_module(experts)] = &experts;
    for (const Factor& factor : factors.factors) {
      for (const auto tensor : {factor.a.tensor, factor.b.tensor}) uses_[tensor].factor = &factor;
    }
    for (const Extra& extra : factors.extras) uses_[extra.tensor].extra = &extra;
  }

  std::string of(std::uint32_t index) const {
    const auto at = uses_.find(index);
    if (at == uses_.end()) return unused_meaning(index);
    if (at->second.extra != nullptr) return extra_meaning(*at->second.extra);
    const Factor& factor = *at->second.factor;
    const TensorInfo& tensor = input_.adapter.weights->tensors()[index];
    if (!layout::is_peft(input_.reading.layout)) return other_meaning(factor, index);
    const bool stored_a = layout::parse_key(tensor.name).kind == layout::KeyKind::lora_a ||
                          layout::parse_key(tensor.name).kind == layout::KeyKind::embedding_a;
    const Experts* experts = factor.site.expert >= 0 ? find(factor.site.module) : nullptr;
    const bool stacked = factor.site.expert >= 0 && layout::is_fused(input_.reading.layout);
    if (!stacked || tensor.shape.size() != 2) {
      return stored_a ? fmt::format("[rank {}, in {}]", factor.rank, width_name(factor.in, experts))
                      : fmt::format("[out {}, rank {}]", width_name(factor.out, experts), factor.rank);
    }
    const auto count = counts_.at(factor.site.module);
    const std::int64_t components = tensor.shape[stored_a ? 0 : 1], width = tensor.shape[stored_a ? 1 : 0];
    const std::int64_t rank = components / std::max<std::int64_t>(1, count);
    const bool reversed = stored_a != (factor.a.tensor == index);
    const std::string stack = fmt::format("rank {} × experts {}", rank, count);
    const std::string width_text = width_name(width, experts);
    std::string text =
        stored_a ? fmt::format("[{}, {}]", stack, width_text) : fmt::format("[{}, {}]", width_text, stack);
    if (reversed)
      text += fmt::format(" reversed: should be {}",
                          stored_a ? fmt::format("[{}, {}]", stack, width_name(other_width(factor, index), experts))
                                   : fmt::format("[{}, {}]", width_name(other_width(factor, index), experts), stack));
    return text;
  }

 private:
  // Of the forms of other programs: the view of the factor shows which axis is what.
  std::string other_meaning(const Factor& factor, std::uint32_t index) const {
    const TensorInfo& tensor = input_.adapter.weights->tensors()[index];
    const bool is_a = factor.a.tensor == index;
    const View& view = is_a ? factor.a : factor.b;
    const Experts* experts = factor.site.expert >= 0 ? find(factor.site.module) : nullptr;
    const bool turned = view.row_stride == 1 && view.col_stride != 1;
    const std::size_t last = tensor.shape.size() - 1;
    const bool rank_last = is_a == turned;
    const std::string rank = fmt::format("rank {}", tensor.shape[rank_last ? last : last - 1]);
    const bool tokens = is_a && factor.kind == FactorKind::embedding;
    const std::string width = fmt::format("{} {}",
                                          tokens ? "tokens"
                                          : is_a ? "in"
                                                 : "out",
                                          width_name(is_a ? factor.in : factor.out, experts));
    const std::string stack = tensor.shape.size() < 3     ? ""
                              : tensor.shape.front() == 1 ? "all experts, "
                                                          : fmt::format("experts {}, ", tensor.shape.front());
    return rank_last ? fmt::format("[{}{}, {}]", stack, width, rank) : fmt::format("[{}{}, {}]", stack, rank, width);
  }
  std::string unused_meaning(std::uint32_t index) const {
    switch (layout::unwrap(layout::parse_key(input_.adapter.weights->tensors()[index].name).module).part) {
      case layout::WrapperPart::original:
        return "the module before training: not used";
      case layout::WrapperPart::saved:
        return "the saved module once more: not used";
      case layout::WrapperPart::none:
        break;
    }
    return "belongs to nothing, or is zero throughout";
  }
  const Experts* find(const std::string& module) const {
    const auto at = by_module_.find(module);
    return at == by_module_.end() ? nullptr : at->second;
  }
  // The width the partner of a reversed tensor has.
  std::int64_t other_width(const Factor& factor, std::uint32_t index) const {
    const std::uint32_t partner = factor.a.tensor == index ? factor.b.tensor : factor.a.tensor;
    const TensorInfo& tensor = input_.adapter.weights->tensors()[partner];
    const bool partner_is_a = layout::parse_key(tensor.name).kind == layout::KeyKind::lora_a;
    return tensor.shape[partner_is_a ? 1 : 0];
  }
  static std::string extra_meaning(const Extra& extra) {
    switch (extra.kind) {
      case ExtraKind::magnitude:
        return "DoRA magnitude, one per output";
      case ExtraKind::lora_bias:
        return "bias of lora_B";
      case ExtraKind::saved_module:
        return "the module itself, saved whole";
      case ExtraKind::token_delta:
        return "new rows of the embedding, one per token index";
      case ExtraKind::base_bias:
        return "trained bias of the base model";
    }
    return {};
  }

  const Input& input_;
  std::map<std::string, std::int64_t> counts_;
  std::map<std::string, const Experts*> by_module_;
  std::map<std::uint32_t, TensorUse> uses_;
};

// Counts values by their bits. `sign` and `exponent` are masks; an exponent of all ones is infinity or NaN.
template <typename Word>
ValueCounts count(std::span<const std::byte> bytes, Word sign, Word exponent) {
  ValueCounts counts;
  Word any = 0;
  for (std::size_t at = 0; at + sizeof(Word) <= bytes.size(); at += sizeof(Word)) {
    Word word;
    std::memcpy(&word, bytes.data() + at, sizeof(Word));
    const Word magnitude = static_cast<Word>(word & static_cast<Word>(~sign));
    any = static_cast<Word>(any | magnitude);
    if (magnitude < exponent) continue;
    if (magnitude > exponent)
      ++counts.nan;
    else if ((word & sign) != 0)
      ++counts.negative_infinity;
    else
      ++counts.positive_infinity;
  }
  counts.all_zero = any == 0;
  return counts;
}

}  // namespace

std::string pattern_of(std::string_view name) {
  std::string pattern;
  std::string_view before;  // what a number counts
  int numbers = 0;
  for (std::size_t at = 0; at < name.size();) {
    const auto dot = std::min(name.find('.', at), name.size());
    const std::string_view segment = name.substr(at, dot - at);
    const bool number = !segment.empty() && segment.find_first_not_of("0123456789") == std::string_view::npos;
    if (!pattern.empty()) pattern += '.';
    if (!number)
      pattern += segment;
    else
      pattern += numbers++ == 0 && before != "experts" ? "{layer}" : before == "experts" ? "{expert}" : "{n}";
    before = segment;
    at = dot + 1;
  }
  return pattern;
}

std::vector<InspectReport::Row> describe_tensors(const Input& input, bool decoded) {
  std::optional<Meanings> meanings;
  if (decoded) meanings.emplace(input);
  std::map<std::tuple<std::string, std::string, std::string>, std::int64_t> rows;
  const auto tensors = input.adapter.weights->tensors();
  for (std::uint32_t i = 0; i < tensors.size(); ++i) {
    std::string_view name = tensors[i].name;
    if (name.starts_with(layout::kPrefix)) name.remove_prefix(layout::kPrefix.size());
    ++rows[{pattern_of(name), shape_text(tensors[i].shape), meanings ? meanings->of(i) : std::string()}];
  }
  std::vector<InspectReport::Row> result;
  for (const auto& [row, count] : rows) result.push_back({std::get<0>(row), std::get<1>(row), std::get<2>(row), count});
  return result;
}

std::vector<InspectReport::RankRow> describe_ranks(const Input& input) {
  std::map<std::tuple<std::string, std::int64_t, double>, std::int64_t> rows;
  for (const Factor& factor : input.reading.factors.factors) {
    std::string site = factor.site.module.substr(factor.site.module.rfind('.') + 1);
    if (!factor.site.parameter.empty()) site += "." + factor.site.parameter;
    if (factor.site.projection != Projection::none) site += " " + std::string(name(factor.site.projection));
    ++rows[{site, factor.rank, factor.scale}];
  }
  std::vector<InspectReport::RankRow> result;
  for (const auto& [row, count] : rows) {
    const auto& [site, rank, scale] = row;
    const auto r = static_cast<double>(rank);
    const double alpha = input.adapter.config.use_rslora ? scale * std::sqrt(r) : scale * r;
    result.push_back({site, rank, alpha, scale, count});
  }
  return result;
}

ValueCounts count_values(const TensorFile& file, const TensorInfo& tensor) {
  const auto bytes = file.bytes(tensor);
  switch (tensor.dtype) {
    case Dtype::bf16:
      return count<std::uint16_t>(bytes, 0x8000, 0x7f80);
    case Dtype::f16:
      return count<std::uint16_t>(bytes, 0x8000, 0x7c00);
    case Dtype::f32:
      return count<std::uint32_t>(bytes, 0x80000000U, 0x7f800000U);
    case Dtype::f64:
      return count<std::uint64_t>(bytes, 0x8000000000000000ULL, 0x7ff0000000000000ULL);
    default:
      return count<std::uint8_t>(bytes, 0, 0xff);
  }
}

std::vector<std::string> value_anomalies(const Adapter& adapter, const Factors& factors) {
  std::map<std::uint32_t, ValueCounts> counts;
  for (const Factor& factor : factors.factors) {
    for (const auto tensor : {factor.a.tensor, factor.b.tensor}) {
      if (counts.count(tensor) == 0)
        counts[tensor] = count_values(*adapter.weights, adapter.weights->tensors()[tensor]);
    }
  }
  std::vector<std::string> anomalies;
  std::size_t pairs = 0, zero = 0;
  for (const auto& [index, count] : counts) {
    const std::string name(adapter.weights->tensors()[index].name);
    const auto kind = layout::parse_key(name).kind;
    const bool second = adapter.form != AdapterForm::peft
                            ? name.ends_with(".lora_b")
                            : kind == layout::KeyKind::lora_b || kind == layout::KeyKind::embedding_a;
    if (second) {
      ++pairs;
      zero += count.all_zero ? 1 : 0;
    }
    if (count.nan + count.positive_infinity + count.negative_infinity != 0) {
      anomalies.push_back(fmt::format("{}: {} NaN, {} +Inf, {} -Inf", name, count.nan, count.positive_infinity,
                                      count.negative_infinity));
    }
  }
  if (zero == pairs && pairs != 0)
    anomalies.push_back("every lora_B is zero: the adapter changes nothing (untrained?)");
  else if (zero != 0)
    anomalies.push_back(fmt::format("{} of {} lora_B tensors are zero: those pairs change nothing", zero, pairs));
  return anomalies;
}

std::vector<InspectReport::Consumer> consumers_of(const engines::AdapterFacts& facts) {
  std::vector<InspectReport::Consumer> consumers;
  for (const engines::Engine& engine : engines::engines()) {
    for (const engines::Profile& profile : engine.profiles) {
      if (!profile.shown) continue;
      const engines::Answer answer = engines::judge(engine, profile, facts);
      const engines::Judgement* decisive = answer.decisive();
      consumers.push_back({profile.title, answer.outcome, decisive == nullptr ? std::string() : decisive->why});
    }
  }
  return consumers;
}

}  // namespace peft::verbs

namespace peft {
namespace {

// Configs of other programs do not say which PEFT wrote them; their layout names the program.
std::string producer(const AdapterConfig& config, AdapterForm form) {
  if (form != AdapterForm::peft) {
    const auto row = std::ranges::find(layouts(), form, &LayoutInfo::form);
    return row == layouts().end() ? std::string() : std::string(row->written_by);
  }
  const auto [version, evidence] = config.likely_version();
  std::string text = fmt::format("PEFT {}.{}.{} ({})", version.major, version.minor, version.patch, evidence);
  if (!config.lora_B_layout.empty())
    text += ", marked by Unsloth";
  else if (config.base_model_name_or_path.value_or("").starts_with("unsloth/"))
    text += ", base model from Unsloth";
  return text;
}

std::string dtypes_of(const TensorFile& file) {
  std::set<std::string_view> names;
  for (const TensorInfo& tensor : file.tensors()) names.insert(tensor.dtype_name);
  std::string text;
  for (const auto name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return text;
}

// Lists the fields whose values some verbs refuse.
void list_refusals(const AdapterConfig& config, InspectReport& report) {
  using enum Verb;
  constexpr config::Verbs kOfAdapters{targets, convert, verify, merge, combine, resize, run};
  for (const auto& [row, value] : config::telling_keys(config)) {
    const config::Verbs refused = row->refused & kOfAdapters;
    if (refused.empty()) continue;
    report.anomalies.push_back(
        fmt::format("{} = {}: {}; refused by {}", row->key, value, row->why, config::names(refused)));
  }
}

bool is_refused_by(Verb verb, const AdapterConfig& config) {
  const auto keys = config::telling_keys(config);
  return std::ranges::any_of(keys, [verb](const auto& key) { return key.row->refused.contains(verb); });
}

// Says which patterns of the config decide nothing, and which modules the config targets without tensors in the file.
void check_config(const Input& input, InspectReport& report) {
  const AdapterConfig& config = input.adapter.config;
  if (is_refused_by(Verb::targets, config)) return;  // its targets are not known
  const bool fused = layout::is_fused(input.reading.layout);
  const Generation g = input.reading.has_experts && !fused ? Generation::v4 : Generation::v5;
  const auto& tree = input.model.tree(g) ? input.model.tree(g)
                                         : input.model.tree(g == Generation::v4 ? Generation::v5 : Generation::v4);
  if (!tree) return;
  ResolvedTargets resolved;
  try {
    resolved = resolve_targets(config, *tree, input.model, g, config.likely_version().first);
  } catch (const Error& error) {
    report.anomalies.push_back("the config alone would not load: " + error.detail().problem);
    return;
  }
  report.warnings.insert(report.warnings.end(), resolved.warnings.begin(), resolved.warnings.end());
  std::set<std::string> present;
  for (const TensorInfo& tensor : input.adapter.weights->tensors())
    present.insert(std::string(layout::parse_key(tensor.name).module));
  std::size_t random = 0;
  std::string example;
  for (const Target& target : resolved.targets) {
    const std::string module = target.parameter ? target.name.substr(0, target.name.rfind('.')) : target.name;
    if (present.count(module) != 0) continue;
    ++random;
    if (example.empty()) example = target.name;
  }
  if (random != 0) {
    report.anomalies.push_back(fmt::format(
        "the config targets {} modules or parameters that the file has no tensors for ({}): PEFT gives them {}", random,
        example, config.init_lora_weights == "false" ? "random values that change the model" : "untrained values"));
  }
}

void fill_decoded(const Input& input, InspectReport& report) {
  const Reading& reading = input.reading;
  report.layout = reading.layout;
  report.has_experts = reading.has_experts;
  // The config of a trainer has keys of PEFT's, and no version.
  const bool is_of_program = !layout::is_peft(reading.layout) || reading.layout == Layout::nemo;
  if (is_of_program) report.producer = info(reading.layout).written_by;
  report.evidence = reading.evidence;
  report.anomalies = reading.anomalies;
  report.warnings = reading.factors.warnings;
  for (const auto& unused : reading.unused) report.anomalies.push_back("belongs to nothing: " + unused);
  std::set<std::int64_t> layers;
  std::int64_t highest = -1;
  std::set<std::string> blocks;
  for (const Factor& factor : reading.factors.factors) {
    if (factor.site.expert >= 0) blocks.insert(factor.site.module);
    highest = std::max(highest, factor.site.expert);
  }
  report.num_layers = static_cast<std::int64_t>(blocks.size());
  report.num_experts = highest + 1;
  for (const ExpertCount& count : reading.factors.expert_counts)
    report.num_experts = std::max(report.num_experts, count.count);
  for (const Experts& experts : input.model.experts)
    report.num_experts = std::max(report.num_experts, experts.num_experts);
  if (reading.has_experts && layout::is_fused(reading.layout)) {
    bool reversed = false;
    for (const Factor& factor : reading.factors.factors) {
      if (factor.site.expert >= 0)
        reversed =
            layout::parse_key(input.adapter.weights->tensors()[factor.a.tensor].name).kind == layout::KeyKind::lora_b;
    }
    report.orientation = reversed ? Orientation::reversed : Orientation::natural;
    report.b_packing = reading.layout == Layout::unsloth_grouped ? BPacking::grouped_by_expert : BPacking::rank_major;
  }
  report.ranks = verbs::describe_ranks(input);
  for (auto& sentence : verbs::value_anomalies(input.adapter, reading.factors))
    report.anomalies.push_back(std::move(sentence));
  report.consumers = verbs::consumers_of(engines::facts_of(input.adapter, input.model, reading));
}

void fill_config(const AdapterConfig& config, AdapterForm form, InspectReport& report) {
  constexpr std::string_view kShown[] = {
      "peft_type",      "task_type",    "base_model_name_or_path", "r",
      "lora_alpha",     "rank_pattern", "alpha_pattern",           "use_rslora",
      "use_dora",       "bias",         "target_modules",          "target_parameters",
      "modules_to_save"};
  report.producer = producer(config, form);
  const pythonic::Json object = config::object_of(config);
  for (const std::string_view key : kShown) {
    const auto found = object.find(std::string(key));
    if (found == object.end() || found->is_null() || *found == false || (found->is_object() && found->empty()))
      continue;
    report.config.emplace_back(key, pythonic::dump_python(*found, -1));
  }
}

// The report where the weights are missing or no safetensors file: what the config says. Throws `error` again where
// there is no config either.
InspectReport config_alone(const std::string& path, const InputOptions& options, const Error& error) {
  InspectReport report;
  report.path = path;
  report.error = error.what();
  const std::filesystem::path root = resolve_path(path);
  const bool whole = options.adapter_name.empty() || options.adapter_name == "default";
  try {
    const AdapterConfig config = AdapterConfig::read((whole ? root : root / options.adapter_name).string());
    fill_config(config, AdapterForm::peft, report);
    list_refusals(config, report);
  } catch (const Error&) {
    throw error;
  }
  return report;
}

InputOptions lenient(InputOptions options) {
  options.read.verb = Verb::inspect;
  options.read.ignore_unused = true;
  return options;
}

// `error`: why the adapter could not be decoded; "" when it was.
InspectReport report_of(const Input& input, std::string error) {
  InspectReport report;
  const bool decoded = error.empty();
  report.path = input.adapter.root;
  report.error = std::move(error);
  fill_config(input.adapter.config, input.adapter.form, report);
  report.model_type = input.model.model_type;
  report.family = input.model.source;
  report.dtype = dtypes_of(*input.adapter.weights);
  report.num_tensors = static_cast<std::int64_t>(input.adapter.weights->tensors().size());
  for (const TensorInfo& tensor : input.adapter.weights->tensors()) {
    report.bytes += tensor.bytes();
    std::uint64_t count = 1;
    for (const auto d : tensor.shape) count *= static_cast<std::uint64_t>(d);
    report.parameters += count;
  }
  report.tensors = verbs::describe_tensors(input, decoded);
  list_refusals(input.adapter.config, report);
  for (const auto& key : input.adapter.config.unknown)
    report.anomalies.push_back("unknown config key " + key + ": PEFT ignores it");
  if (decoded) {
    auto unknown = std::move(report.anomalies);
    fill_decoded(input, report);
    report.anomalies.insert(report.anomalies.end(), unknown.begin(), unknown.end());
    if (layout::is_peft(input.reading.layout)) check_config(input, report);
  }
  return report;
}

}  // namespace

InspectReport inspect(const std::string& path, const InputOptions& options) {
  Input input;
  std::string failure;
  try {
    input = load(path, lenient(options));
  } catch (const Error& error) {
    // The file itself must open. What it means may be in doubt: inspect is for such files.
    try {
      input.adapter = open(path, {options.adapter_name, options.open});
    } catch (const Error& unopened) {
      return config_alone(path, options, unopened);
    }
    failure = error.what();
  }
  InspectReport report = report_of(input, std::move(failure));
  report.path = path;
  return report;
}

InspectReport inspect(const Adapter& adapter, const InputOptions& options) {
  Input input;
  std::string failure;
  try {
    input = load(adapter, lenient(options));
  } catch (const Error& error) {
    input.adapter = adapter;
    failure = error.what();
  }
  return report_of(input, std::move(failure));
}

}  // namespace peft
