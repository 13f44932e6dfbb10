#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <set>

#include "adapter/gguf_adapter.h"
#include "base/system.h"
#include "base/text.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "peft/weights.h"
#include "plan/check.h"
#include "verbs/merge/adapters.h"
#include "verbs/merge/checkpoint_base.h"
#include "verbs/merge/gguf/gguf_base.h"
#include "verbs/merge/gguf/gguf_output.h"
#include "verbs/merge/updates.h"

namespace peft {
namespace {

using merging::Base;
using merging::CheckpointBase;
using merging::MergeAdapter;
using merging::OutTensor;
using merging::OutTensors;

std::string parent_of(const std::string& name) {
  const auto dot = name.rfind('.');
  return dot == std::string::npos ? name : name.substr(0, dot);
}

void check_options(const MergeOptions& options) {
  if (options.base.empty() || options.adapters.empty()) {
    throw Error(ErrorCode::USAGE,
                {.problem = "a merge needs a base and at least one adapter", .hint = "--base DIR --adapter DIR"});
  }
  if (options.max_shard_size && *options.max_shard_size == 0) {
    throw Error(ErrorCode::USAGE, {.problem = "--max-shard-size is not a size", .got = "0"});
  }
}

// The model and its weights. A config or a tree file alone has nothing to add to.
Checkpoint open_base(const std::string& folder, const OpenOptions& options) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    const bool exists = std::filesystem::exists(folder, error);
    peft::at(folder).fail(exists ? ErrorCode::IO_KIND : ErrorCode::IO_OPEN,
                          {.problem = exists ? "the base is not a folder" : "there is no such folder",
                           .expected = "a model folder with config.json and *.safetensors"});
  }
  return Checkpoint::open(folder, options);
}

// What stays quantised, and what no longer is, in the words that config.json uses.
void describe_quantization(const std::vector<QuantizedTensor>& quantized, const std::set<OutTensors::Number>& keep,
                           const Model& model, merging::FileFacts& facts) {
  std::set<std::string> modules;
  for (const QuantizedTensor& tensor : quantized) {
    if (keep.contains({tensor.codes.view.source, tensor.codes.view.tensor})) {
      facts.kept_quantized.push_back(tensor.codes.name);
      continue;
    }
    const std::string module = parent_of(tensor.name);
    modules.insert(module);
    try {  // a loader that fuses experts asks for the module of all of them
      if (const auto located = model.locate(module); located && located->expert >= 0)
        modules.insert(located->experts->v5_module);
    } catch (const Error&) {
      continue;
    }
  }
  modules.erase("");
  facts.dequantized.assign(modules.begin(), modules.end());
}

// How long it will take: copying at the speed of memory, and two operations for every element and rank.
double estimated_seconds(const Plan& plan) {
  constexpr double kCopySpeed = 1.2e9, kRate = 1.5e10;
  double operations = 0;
  for (const PlannedFile& file : plan.files) {
    for (const PlannedTensor& tensor : file.tensors) {
      if (!tensor.merge) continue;
      for (const Update& update : tensor.merge->updates) {
        operations += 2.0 * static_cast<double>(update.target.rows) * static_cast<double>(update.target.cols) *
                      static_cast<double>(update.a.rows);
      }
    }
  }
  return static_cast<double>(plan.bytes_out) / kCopySpeed + operations / kRate / std::max(1, thread_count(0));
}

std::uint64_t quantized_growth(const std::vector<QuantizedTensor>& quantized, const Checkpoint& checkpoint,
                               const OutTensors& tensors) {
  std::uint64_t before = 0, after = 0;
  for (const QuantizedTensor& tensor : quantized) {
    before += checkpoint.files()[tensor.codes.view.source]->tensors()[tensor.codes.view.tensor].bytes();
  }
  for (const OutTensor& tensor : tensors.all()) after += tensor.dequantized ? tensor.planned.bytes() : 0;
  return before == 0 ? 0 : (after * 10 + before / 2) / before;
}

// Everything by its kind, in words.
void describe_steps(const OutTensors& tensors, const std::vector<MergeAdapter>& adapters, const MergeOptions& options,
                    MergePlan& merge) {
  std::map<std::string, std::size_t> rules;
  for (const OutTensor& tensor : tensors.all()) {
    merge.changed += tensor.parts.empty() ? 0 : 1;
    merge.copied += tensor.parts.empty() ? 1 : 0;
    merge.dequantized += tensor.dequantized ? 1 : 0;
    for (const MergedPart& part : tensor.parts) ++rules[std::string(name(part.rule)) + (part.dora ? " (DoRA)" : "")];
  }
  auto& steps = merge.plan.steps;
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    steps.push_back(fmt::format("adapter {}: {} ({}), weight {}, {} matrices", i + 1, adapters[i].adapter.folder,
                                adapters[i].reading.has_experts ? info(adapters[i].reading.layout).name : "dense",
                                adapters[i].weight, adapters[i].reading.factors.factors.size()));
  }
  for (const auto& [rule, count] : rules)
    steps.push_back(fmt::format("{}: {} updates (mode {})", rule, count, name(options.mode)));
  steps.push_back(fmt::format("{} tensors change, {} are copied{}", merge.changed, merge.copied,
                              merge.dequantized > 0 ? fmt::format(", {} of them dequantised", merge.dequantized) : ""));
}

Exactness exactness_of(const OutTensors& tensors, MergeMode mode) {
  Exactness worst = Exactness::bit_exact;
  for (const OutTensor& tensor : tensors.all()) {
    const bool computed =
        std::any_of(tensor.parts.begin(), tensor.parts.end(), [](const MergedPart& part) { return part.update >= 0; });
    const Exactness here = computed && mode == MergeMode::fast ? Exactness::lossy
                           : tensor.is_copy                    ? Exactness::bit_exact
                                                               : Exactness::rounded;
    worst = std::max(worst, here);
  }
  return worst;
}

void warn(const std::vector<MergeAdapter>& adapters, MergePlan& merge) {
  auto& warnings = merge.plan.warnings;
  std::size_t factors = 0;
  for (const MergeAdapter& adapter : adapters) {
    for (const std::string& warning : adapter.reading.factors.warnings)
      warnings.push_back(adapter.adapter.folder + ": " + warning);
    for (const std::string& anomaly : adapter.reading.anomalies)
      warnings.push_back(adapter.adapter.folder + ": " + anomaly);
    if (const auto text = left_out(adapter.reading); !text.empty())
      warnings.push_back(adapter.adapter.folder + ": " + text);
    for (const auto& text : adapter.reading.unused) merge.unused.push_back(adapter.adapter.folder + ": " + text);
    merge.zero_deltas.insert(merge.zero_deltas.end(), adapter.zero.begin(), adapter.zero.end());
    merge.layouts.emplace_back(info(adapter.reading.layout).name);
    merge.digests.push_back(adapter.digest);
    factors += adapter.reading.factors.factors.size() + adapter.reading.factors.extras.size();
  }
  if (merge.zero_deltas.empty()) return;
  if (merge.zero_deltas.size() == factors) {
    peft::at(adapters.front().adapter.folder)
        .fail(ErrorCode::LO_NONE, {.problem = "every factor is zero: the merged model would be the base",
                                   .got = fmt::format("{} zero deltas", factors),
                                   .hint = "was the adapter trained, and saved after training?"});
  }
  constexpr std::size_t kShown = 5;
  std::string names;
  for (std::size_t i = 0; i < std::min(kShown, merge.zero_deltas.size()); ++i)
    names += (i > 0 ? ", " : "") + merge.zero_deltas[i];
  warnings.push_back(fmt::format("{} of {} deltas are zero and change nothing: {}{}", merge.zero_deltas.size(), factors,
                                 names, merge.zero_deltas.size() > kShown ? ", ..." : ""));
}

// A head that the base lacks is added; what kind of model the folder holds, its config.json still does not say.
void warn_of_heads(const Base& base, const std::vector<MergeAdapter>& adapters, std::vector<std::string>& warnings) {
  for (const MergeAdapter& adapter : adapters) {
    std::string names;
    for (const Extra& extra : adapter.reading.factors.extras) {
      if (!base.lacks_head(adapter, extra)) continue;
      const auto& tensor = adapter.adapter.weights->tensors()[extra.tensor];
      names += fmt::format("{}{}.{} [{}]", names.empty() ? "" : ", ", extra.site.module, extra.suffix,
                           fmt::join(tensor.shape, ", "));
    }
    if (names.empty()) continue;
    warnings.push_back(fmt::format(
        "{}: the base has no head of this task ({}): {} added to it. Its config.json stays as it is: load the result "
        "with transformers' class for the task, and num_labels where the head has another number of rows than 2",
        adapter.adapter.folder, adapter.adapter.config.task_type.value_or(""), names));
  }
}

constexpr std::array<std::pair<MergeMode, std::string_view>, 4> kModes = {{{MergeMode::best, "best"},
                                                                           {MergeMode::peft, "peft"},
                                                                           {MergeMode::peft_safe, "peft-safe"},
                                                                           {MergeMode::fast, "fast"}}};

// Decimal and binary units, as huggingface_hub has them; a number alone is bytes.
constexpr std::array<std::pair<std::string_view, std::uint64_t>, 8> kUnits = {{{"KIB", std::uint64_t{1} << 10},
                                                                               {"MIB", std::uint64_t{1} << 20},
                                                                               {"GIB", std::uint64_t{1} << 30},
                                                                               {"TIB", std::uint64_t{1} << 40},
                                                                               {"KB", 1'000},
                                                                               {"MB", 1'000'000},
                                                                               {"GB", 1'000'000'000},
                                                                               {"TB", 1'000'000'000'000}}};

bool parse_number(std::string_view text, double& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(value) && !text.empty();
}

}  // namespace

namespace {

// What both kinds of base end with.
void finish(MergePlan& merge) {
  plan::check(merge.plan);
  set_cost(merge.plan);
  merge.seconds_estimate = estimated_seconds(merge.plan);
}

MergePlan plan_checkpoint(const MergeOptions& options) {
  const Checkpoint checkpoint = open_base(options.base, options.input.open);
  const Model model =
      describe({options.base, options.input.family, options.input.families_file, options.input.num_experts, {}});
  const auto& files = checkpoint.files();
  const auto adapters = merging::open_adapters(options, model, static_cast<std::uint32_t>(files.size()));
  if (!options.allow_repeat) {
    std::vector<Metadata> metadata;
    for (const auto& file : files) metadata.push_back(file->metadata());
    merging::refuse_repeats(adapters, metadata);
  }

  MergePlan merge;
  warn(adapters, merge);
  merge.plan.sources = files;
  for (const MergeAdapter& adapter : adapters) merge.plan.sources.push_back(adapter.adapter.weights);
  const Weights weights(model, checkpoint);
  const CheckpointBase base(options, model, checkpoint, weights);
  const auto quantized = weights.quantized();
  const auto touched = merging::touched_codes(base, adapters, quantized);
  std::set<OutTensors::Number> keep;
  for (const QuantizedTensor& tensor : quantized) {
    const OutTensors::Number number{tensor.codes.view.source, tensor.codes.view.tensor};
    if (options.keep_quantized && !touched.contains(number)) keep.insert(number);
  }
  OutTensors tensors(checkpoint, quantized, keep, options);
  merging::FileFacts facts;
  facts.untied = merging::add_updates(base, adapters, tensors);
  // Two embeddings from the start: nothing becomes untied, but only a config that says so is read alike by every
  // reader.
  facts.own_output = merge.own_output = weights.has_own_output();
  merge.untied = facts.untied && !facts.own_output;
  describe_quantization(quantized, keep, model, facts);
  facts.record = merging::merged_record(adapters, files.front()->metadata());
  warn_of_heads(base, adapters, merge.plan.warnings);
  merge.plan.exactness = exactness_of(tensors, options.mode);
  describe_steps(tensors, adapters, options, merge);
  if (merge.dequantized > 0) {
    if (!options.keep_quantized) merging::refuse_unread_codes(base, quantized);
    merge.plan.warnings.push_back(
        fmt::format("the base is quantised: {} tensors are written in bf16, {:.1f} times their bytes{}",
                    merge.dequantized, static_cast<double>(quantized_growth(quantized, checkpoint, tensors)) / 10,
                    options.keep_quantized ? "" : " (--keep-quantized leaves those that no adapter touches)"));
  }
  merging::write_files(checkpoint, options, tensors.all(), facts, merge);
  finish(merge);
  return merge;
}

// A model in GGUF, as one of the types that its architecture may be of.
MergePlan plan_gguf_as(const MergeOptions& options, const merging::GgufModel& file, const layout::GgufNames& names,
                       const std::string& type) {
  const Model model = file.describe_as(names, type, options.input.families_file);
  const auto adapters = merging::open_adapters(options, model, static_cast<std::uint32_t>(file.files().size()));
  const Metadata before = merging::merged_before(*file.files().front());
  if (!options.allow_repeat) merging::refuse_repeats(adapters, {before});
  MergePlan merge;
  warn(adapters, merge);
  for (const auto& part : file.files()) merge.plan.sources.push_back(part);
  for (const MergeAdapter& adapter : adapters) merge.plan.sources.push_back(adapter.adapter.weights);
  const merging::GgufBase base(options, model, file, names);
  OutTensors tensors = merging::tensors_of(file, options);
  merge.untied = merging::add_updates(base, adapters, tensors);
  if (merge.untied) {
    merge.plan.warnings.push_back(
        "input and output embedding were one tensor and only one of them changes: the output embedding is written out");
  }
  merge.plan.exactness = exactness_of(tensors, options.mode);
  merging::set_types(file, options, tensors.all(), merge.plan);
  describe_steps(tensors, adapters, options, merge);
  merging::write_gguf_files(file, options, tensors.all(), merging::merged_record(adapters, before), merge);
  finish(merge);
  return merge;
}

void check_gguf_options(const MergeOptions& options) {
  const bool is_type = !options.out_dtype || *options.out_dtype == Dtype::f16 || *options.out_dtype == Dtype::bf16 ||
                       *options.out_dtype == Dtype::f32;
  if (!is_type) {
    throw Error(ErrorCode::USAGE, {.problem = "merged tensors of a GGUF file are not written in this type",
                                   .expected = "--out-dtype F16, BF16, F32 or Q8_0",
                                   .got = std::string(info(*options.out_dtype).name)});
  }
  if (options.max_shard_size) {
    throw Error(ErrorCode::USAGE, {.problem = "--max-shard-size is for bases in safetensors",
                                   .hint = "llama-gguf-split cuts GGUF files"});
  }
}

// Tries the model types that the architecture serves, the likeliest first. The first one's error counts.
MergePlan plan_gguf(const MergeOptions& options) {
  check_gguf_options(options);
  const auto file = merging::GgufModel::open(options.base, options.input.open);
  std::optional<Error> first;
  for (const auto& [names, type] : file.types()) {
    if (!options.input.family.empty() && options.input.family != type) continue;
    try {
      return plan_gguf_as(options, file, *names, type);
    } catch (const Error& error) {
      const ErrorCode code = error.code();
      const bool of_names = code == ErrorCode::LO_TARGET || code == ErrorCode::LO_NONE || code == ErrorCode::LO_LAYOUT;
      if (!first) first = error;
      if (!of_names) break;
    }
  }
  if (first) throw Error(*first);
  peft::at(options.base, "general.architecture")
      .fail(ErrorCode::MD_FAMILY, {.problem = "the file is for another architecture than the model type",
                                   .expected = list_text(layout::gguf_model_types(file.architecture())),
                                   .got = options.input.family});
}

}  // namespace

MergePlan plan_merge(const MergeOptions& given) {
  MergeOptions options = given;
  options.input.read.verb = Verb::merge;
  check_options(options);
  options.base = resolve_path(options.base);
  if (adapter::is_gguf(options.base)) return plan_gguf(options);
  if (options.out_q8_0)
    throw Error(ErrorCode::USAGE, {.problem = "--out-dtype Q8_0 is for a base in GGUF", .got = options.base});
  return plan_checkpoint(options);
}

std::string_view name(MergeRule rule) {
  constexpr std::string_view kNames[] = {"linear", "expert", "parameter",  "embedding", "conv1d",
                                         "bias",   "saved",  "bias saved", "tokens"};
  return kNames[static_cast<std::size_t>(rule)];
}

std::string_view name(MergeMode mode) {
  for (const auto& [known, text] : kModes) {
    if (known == mode) return text;
  }
  return "";
}

std::optional<MergeMode> parse_merge_mode(std::string_view text) {
  for (const auto& [mode, known] : kModes) {
    if (known == text) return mode;
  }
  return std::nullopt;
}

WeightedAdapter parse_weighted_adapter(const std::string& text) {
  std::error_code error;
  const auto at = text.rfind('@');
  double weight = 1;
  if (at == std::string::npos || std::filesystem::exists(text, error)) return {text, 1};
  std::string_view number = std::string_view(text).substr(at + 1);
  if (number.starts_with('+')) number.remove_prefix(1);
  if (at == 0 || !parse_number(number, weight)) return {text, 1};
  return {text.substr(0, at), weight};
}

std::uint64_t parse_size(std::string_view text) {
  std::string upper;
  for (const char c : text) upper += static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  std::uint64_t unit = 1;
  std::string_view digits = upper;
  for (const auto& [name, bytes] : kUnits) {
    if (!digits.ends_with(name)) continue;
    digits.remove_suffix(name.size());
    unit = bytes;
    break;
  }
  while (digits.ends_with(' ')) digits.remove_suffix(1);
  double value = 0;
  constexpr double kLargest = 1e18;
  if (!parse_number(digits, value) || value <= 0 || value * static_cast<double>(unit) > kLargest) {
    throw Error(ErrorCode::USAGE, {.problem = "not a size",
                                   .expected = "a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 5GB",
                                   .got = std::string(text)});
  }
  return static_cast<std::uint64_t>(value * static_cast<double>(unit));
}

}  // namespace peft
