#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "layout/encode/encode.h"
#include "layout/encode/write_config.h"
#include "layout/keys.h"
#include "peft/error.h"
#include "peft/verbs.h"

namespace peft {
namespace {

constexpr std::string_view kWeights = "adapter_model.safetensors";
constexpr std::string_view kConfig = "adapter_config.json";

// Every tensor that the reading uses, byte for byte.
std::vector<PlannedTensor> copies(const Input& input) {
  std::set<std::uint32_t> used;
  for (const Factor& factor : input.reading.factors.factors) used.insert({factor.a.tensor, factor.b.tensor});
  for (const Extra& extra : input.reading.factors.extras) used.insert(extra.tensor);
  // A stacked pair whose experts are all zero has no factor, but it is no stranger either.
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

// Names of dense modules that PEFT's own migration takes for experts (peft issue 3711).
void warn_of_namesakes(const layout::Encoded& encoded, const Model& model, Layout to,
                       std::vector<std::string>& warnings) {
  if (to == Layout::peft_per_expert || model.peft_config.empty()) return;
  for (const auto& target : encoded.targets) {
    if (target.parameter) continue;
    const std::string leaf = target.name.substr(target.name.rfind('.') + 1);
    static const std::set<std::string, std::less<>> kRewritten = {"gate", "gate_proj", "up_proj", "down_proj",
                                                                  "w1",   "w2",        "w3"};
    if (kRewritten.count(leaf) == 0) continue;
    warnings.push_back(fmt::format(
        "{} is named as an expert's projection: PEFT up to 0.21.2 rewrites such targets while loading, even in a "
        "right config, and drops their LoRA without a word (peft issue 3711)",
        target.name));
    return;
  }
}

// As the file has them: there are tens of thousands, and nobody has to sort them again.
void put_in_order(std::vector<PlannedTensor>& tensors, const std::vector<std::size_t>& order) {
  std::vector<PlannedTensor> ordered;
  ordered.reserve(tensors.size());
  for (const std::size_t t : order) ordered.push_back(std::move(tensors[t]));
  tensors = std::move(ordered);
}

void finish(Plan& plan, const Input& input) {
  plan.sources = {input.adapter.weights};
  std::vector<bool> read(input.adapter.weights->tensors().size());
  for (PlannedFile& file : plan.files) {
    for (const PlannedTensor& tensor : file.tensors) {
      for (const Block& block : tensor.blocks) read[block.source.tensor] = true;
    }
    const FileLayout layout = layout_file(file);
    put_in_order(file.tensors, layout.order);
    plan.bytes_out += layout.file_bytes();
    plan.peak_memory += layout.head.size();
  }
  for (const auto& [name, text] : plan.texts) plan.bytes_out += text.size();
  for (std::size_t i = 0; i < read.size(); ++i) {
    if (read[i]) plan.bytes_in += input.adapter.weights->tensors()[i].bytes();
  }
  plan.peak_memory += input.adapter.weights->data_offset() + (std::uint64_t{32} << 20);
  for (auto& copy : side_file_paths(input.adapter)) plan.copies.push_back(std::move(copy));
}

// Every tensor is called in the target as it is in the file (granite's experts are not: they were renamed).
bool same_names(const Input& input, const layout::Encoded& encoded) {
  return std::all_of(encoded.tensors.begin(), encoded.tensors.end(),
                     [&](const PlannedTensor& tensor) { return input.adapter.weights->find(tensor.name) != nullptr; });
}

bool keeps_everything(const Input& input, const layout::Encoded& encoded, const ConvertOptions& options) {
  if (options.dtype || options.block_diagonal) return false;
  if (input.reading.has_experts) return options.to == input.reading.layout && same_names(input, encoded);
  // Nothing but dense modules, and none of them is called or owned differently in the target. What a pattern or PEFT's
  // defaults select depends on the modules of the generation, so such configs of MoE models are spelled out.
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

// Experts of an unknown family look like dense modules: carried along they would be silently wrong in another layout.
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

}  // namespace

Plan plan_convert(const Input& input, const ConvertOptions& options) {
  require_usable(input.adapter.config, Verb::convert);
  require_known_experts(input);
  Plan plan;
  plan.warnings = input.reading.factors.warnings;
  if (std::string text = left_out(input.reading); !text.empty()) plan.warnings.push_back(std::move(text));
  const layout::EncodeOptions encode_options{options.to, options.dtype, options.block_diagonal};
  layout::Encoded encoded =
      layout::encode(input.reading.factors, input.model, input.adapter.weights.get(), encode_options);
  if (keeps_everything(input, encoded, options)) {
    plan.files.push_back({std::string(kWeights), copies(input)});
    plan.texts.emplace_back(kConfig, input.adapter.config.dump());
    plan.steps.push_back(input.reading.has_experts
                             ? "already in this layout: copied as it is (bit-exact)"
                             : "nothing in this adapter differs between the layouts: copied as it is (bit-exact)");
    finish(plan, input);
    return plan;
  }
  if (input.model.num_experts_assumed) {
    plan.warnings.push_back(
        "the number of experts is taken from the file (highest index + 1); --base or --num-experts would confirm it");
  }
  warn_of_namesakes(encoded, input.model, options.to, plan.warnings);
  const AdapterConfig config =
      layout::write_config(input.adapter.config, encoded, input.model, options.to, plan.warnings);
  warn_of_coarse_rounding(encoded, options, plan.warnings);
  plan.exactness = encoded.exactness;
  plan.steps = std::move(encoded.steps);
  plan.warnings.insert(plan.warnings.end(), encoded.warnings.begin(), encoded.warnings.end());
  plan.files.push_back({std::string(kWeights), std::move(encoded.tensors)});
  plan.texts.emplace_back(kConfig, config.dump());
  finish(plan, input);
  return plan;
}

}  // namespace peft
