#include "nn/lora/files/save.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "config/peft_rules.h"
#include "layout/encode/encode.h"
#include "layout/encode/write_config.h"
#include "layout/forms.h"
#include "nn/lora/files/factors.h"
#include "nn/lora/files/file_tensors.h"
#include "nn/model/network.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "pythonic/python_regex.h"
#include "safetensors/reading/input_file.h"
#include "safetensors/writing/staged_output.h"

namespace peft::nn {
namespace {

constexpr const char* kOption = "path_initial_model_for_weight_conversion";

void require_convertible(const AdapterConfig& config) {
  const std::string& init = config.init_lora_weights;
  // LoftQ also rounded the base, which cannot be taken back.
  if (!config::changes_base(init) || config::lora_init(init) == config::LoraInit::loftq) {
    at({}, kOption)
        .fail(ErrorCode::CF_UNSUP, {.problem = "only an adapter whose start was taken out of the base can be converted",
                                    .expected = "init_lora_weights = pissa, pissa_niter_N, olora, corda or lora_ga",
                                    .got = init,
                                    .hint = "save it without"});
  }
  if (config.use_rslora && !(config.rank_pattern.empty() && config.alpha_pattern.empty())) {
    at({}, kOption)
        .fail(ErrorCode::CF_UNSUP, {.problem = "rank_pattern and alpha_pattern cannot be doubled under use_rslora",
                                    .expected = "patterns or use_rslora",
                                    .got = "both",
                                    .hint = "PEFT refuses this as well"});
  }
}

// Doubles the rank; all scales stay the same.
void double_rank(AdapterConfig& config) {
  const auto twice = [](Number& number) { number.value *= 2; };
  config.init_lora_weights = "true";
  config.r *= 2;
  if (config.use_rslora)
    config.lora_alpha = {config.lora_alpha.value * std::sqrt(2.0), false};
  else
    twice(config.lora_alpha);
  for (auto& [pattern, rank] : config.rank_pattern) twice(rank);
  for (auto& [pattern, alpha] : config.alpha_pattern) twice(alpha);
}

at::Tensor start_of(const TensorFile& file, const std::string& name, const at::Tensor& now) {
  const TensorInfo* info = file.find(name);
  if (info == nullptr) {
    at(file.path(), name)
        .fail(ErrorCode::LO_MISSING, {.problem = "the adapter before training has no such tensor",
                                      .expected = "the tensors of the adapter that is saved",
                                      .hint = "is this the adapter's own start?"});
  }
  const at::Tensor start =
      read_tensor(file, static_cast<std::uint32_t>(info - file.tensors().data())).to(now.scalar_type());
  if (start.sizes() == now.sizes()) return start;
  at(file.path(), name)
      .fail(ErrorCode::LO_SHAPE, {.problem = "the adapter before training has another shape",
                                  .expected = fmt::format("[{}]", fmt::join(now.sizes(), ", ")),
                                  .got = fmt::format("[{}]", fmt::join(start.sizes(), ", ")),
                                  .hint = "is this the adapter's own start?"});
}

// save_pretrained's path_initial_model_for_weight_conversion: turns an adapter whose start was subtracted from the base
// into one for the original base. W_res + s B A = W + s (B A - B0 A0): A becomes [A; A0], B becomes [B, -B0], and the
// rank doubles. `folder` has A0 and B0, the adapter as it was saved before training.
void take_out_start(const std::string& folder, AdapterConfig& config, NamedTensors& tensors) {
  require_convertible(config);
  const auto file = TensorFile::open((std::filesystem::path(folder) / "adapter_model.safetensors").string());
  for (auto& [name, tensor] : tensors) {
    const bool a = name.ends_with(".lora_A.weight"), b = name.ends_with(".lora_B.weight");
    if (!a && !b) {
      at({}, name).fail(ErrorCode::CF_UNSUP,
                        {.problem = std::string(kOption) + " converts lora_A and lora_B of Linear layers only",
                         .expected = "an adapter without DoRA, biases, embeddings and modules_to_save",
                         .hint = "save it without, and load it with the base that it changed"});
    }
    const at::Tensor now = tensor.detach().cpu(), start = start_of(*file, name, now);
    tensor = a ? at::cat({now, start}, 0) : at::cat({now, -start}, 1);
  }
  double_rank(config);
}

// Every JSON string is a valid YAML string.
std::string yaml_text(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// README.md beside an adapter: the fields that PEFT fills in, so that hubs know whose adapter it is.
std::string model_card(const AdapterConfig& config) {
  const std::string base = config.base_model_name_or_path.value_or("");
  std::string card = "---\n";
  if (!base.empty()) card += fmt::format("base_model: {}\n", yaml_text(base));
  card += "library_name: peft\n";
  if (config.task_type == "CAUSAL_LM") card += "pipeline_tag: text-generation\n";
  card += "tags:\n";
  if (!base.empty()) card += fmt::format("- {}\n", yaml_text("base_model:adapter:" + base));
  card +=
      "- lora\n- transformers\n---\n\nA LoRA adapter, to be loaded on top of its base model.\n\n### Framework "
      "versions\n\n";
  card += fmt::format("- PEFT {}\n", config.peft_version.value_or("0.21.2"));
  return card;
}

constexpr const char* kWeights = "adapter_model.safetensors";
constexpr const char* kConfig = "adapter_config.json";
constexpr const char* kCard = "README.md";

bool names_embedding(const AdapterConfig& config, const std::string& module) {
  const std::string leaf = module.substr(module.rfind('.') == std::string::npos ? 0 : module.rfind('.') + 1);
  if (leaf != "embed_tokens" && leaf != "lm_head") return false;
  if (const auto* list = std::get_if<std::vector<std::string>>(&config.target_modules)) {
    return std::find(list->begin(), list->end(), leaf) != list->end() ||
           std::find(list->begin(), list->end(), module) != list->end();
  }
  const auto* pattern = std::get_if<std::string>(&config.target_modules);
  return pattern != nullptr && PythonRegex(*pattern).fullmatches(module);
}

// PEFT saves the embeddings themselves when they are targets; the base may have been resized.
void add_embeddings(const PeftModel::Impl& impl, const AdapterEntry& entry, const SaveOptions& options,
                    NamedTensors& tensors) {
  if (options.save_embedding_layers == false) return;
  const bool rows = entry.config.trainable_token_indices.has_value();
  const std::vector<std::string> modules = {impl.tree.input_embedding, impl.tree.output_embedding};
  const bool targeted = std::any_of(modules.begin(), modules.end(),
                                    [&](const std::string& m) { return names_embedding(entry.config, m); });
  if (!options.save_embedding_layers && (!targeted || rows)) return;
  for (const std::string& module : modules) {
    const Site* site = impl.find_site(module, "weight");
    const bool wrapped = site != nullptr && !site->by_parameter && site->find(entry.id) != nullptr;
    if (module.empty() || (targeted && !wrapped)) continue;
    const std::string key = "base_model.model." + module + (wrapped ? ".base_layer.weight" : ".weight");
    const bool there = std::any_of(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == key; });
    const auto* weight = impl.base->impl().modules.find(module);
    if (!there && weight != nullptr) tensors.emplace_back(key, *weight->find("weight"));
  }
}

AdapterConfig config_of(const PeftModel::Impl& impl, AdapterConfig config) {
  config.set("inference_mode", "true");
  if (!config.task_type && config.value("auto_mapping") == "null") {
    std::string type = impl.base->model_type();
    if (type.ends_with("_text")) type.resize(type.size() - 5);
    const std::string& architecture = impl.base->impl().config.architecture;
    if (!architecture.empty()) {
      const nlohmann::json mapping = {{"base_model_class", architecture},
                                      {"parent_library", "transformers.models." + type + ".modeling_" + type}};
      config.set("auto_mapping", mapping.dump());
    }
  }
  return config;
}

struct Prepared {
  std::string folder;  // below the output; "" for the default adapter
  NamedTensors tensors;
  std::vector<std::vector<std::byte>> images;  // of another layout than PEFT's own
  std::string config;
};

Prepared prepare(const PeftModel::Impl& impl, const AdapterEntry& entry, const SaveOptions& options) {
  Prepared prepared;
  prepared.folder = entry.name == "default" ? "" : entry.name + "/";
  const Layout layout = options.layout.value_or(entry.layout);
  const std::string& start = options.path_initial_model_for_weight_conversion;
  const bool own = layout == Layout::peft_fused && entry.layout == Layout::peft_fused;
  if (own) {
    for (const AdapterTensor& tensor : tensors_of(impl, entry)) {
      prepared.tensors.emplace_back(tensor.key, tensor.in_file_form(tensor.tensor));
    }
    AdapterConfig config = entry.config;
    if (!start.empty()) take_out_start(start, config, prepared.tensors);
    add_embeddings(impl, entry, options, prepared.tensors);
    prepared.tensors = on_host(prepared.tensors);
    prepared.config = config_of(impl, std::move(config)).dump();
    return prepared;
  }
  if (!start.empty()) {
    at({}, "path_initial_model_for_weight_conversion")
        .fail(ErrorCode::USAGE, {.problem = "works in PEFT's own layout only",
                                 .expected = "peft-fused",
                                 .got = std::string(info(layout).name),
                                 .hint = "convert the saved adapter afterwards"});
  }
  if (!layout::is_peft(layout)) {
    throw Error(ErrorCode::USAGE, {.problem = "a model saves adapters as PEFT does",
                                   .expected = "a layout of PEFT's",
                                   .got = std::string(info(layout).name),
                                   .hint = "convert the saved adapter afterwards"});
  }
  const InMemory adapter = factors_of(impl, entry);
  layout::Encoded encoded =
      layout::encode(adapter.factors, impl.model, adapter.memory->file.get(), {layout, {}, false});
  std::vector<std::string> ignored;
  const AdapterConfig config =
      layout == entry.layout ? entry.config : layout::write_config(entry.config, encoded, impl.model, layout, ignored);
  prepared.config = config_of(impl, config).dump();
  Plan plan;
  plan.sources = {adapter.memory->file};
  plan.files.push_back({kWeights, std::move(encoded.tensors), {{"format", "pt"}}});
  prepared.images = execute_in_memory(plan);
  return prepared;
}

void require_finite(const NamedTensors& tensors, const std::string& adapter) {
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.is_floating_point() || at::isfinite(tensor).all().item<bool>()) continue;
    at({}, name).fail(ErrorCode::NUM_NONFINITE,
                      {.problem = "NaN or infinity in adapter \"" + adapter + "\": nothing is saved",
                       .hint = "did the training diverge?"});
  }
}

void write_tensors(StagedOutput& output, const Prepared& adapter) {
  if (!adapter.images.empty()) {
    const auto& image = adapter.images.front();
    output.add_file(adapter.folder + kWeights, image.size()).write_at(0, image);
    return;
  }
  const FileLayout layout = layout_file(described(adapter.tensors));
  NewFile& file = output.add_file(adapter.folder + kWeights, layout.file_bytes());
  file.write_at(0, std::as_bytes(std::span(layout.head)));
  for (std::size_t i = 0; i < adapter.tensors.size(); ++i) {
    const Tensor& tensor = adapter.tensors[i].second;
    const auto* bytes = static_cast<const std::byte*>(tensor.const_data_ptr());
    if (tensor.nbytes() != 0) file.write_at(layout.head.size() + layout.begin[i], {bytes, tensor.nbytes()});
  }
}

std::vector<const AdapterEntry*> selected(const PeftModel::Impl& impl, const SaveOptions& options) {
  std::vector<const AdapterEntry*> entries;
  for (const AdapterEntry& entry : impl.entries) {
    const auto& names = options.selected_adapters;
    if (names.empty() || std::find(names.begin(), names.end(), entry.name) != names.end()) entries.push_back(&entry);
  }
  for (const std::string& name : options.selected_adapters) {
    if (std::none_of(entries.begin(), entries.end(), [&](const AdapterEntry* e) { return e->name == name; })) {
      at({}, name).fail(ErrorCode::USAGE, {.problem = "there is no adapter of this name", .got = name});
    }
  }
  return entries;
}

// The folder is replaced as a whole. Its other files (a tokenizer, adapters that are not saved now) are copied.
void carry_over(StagedOutput& output, const std::filesystem::path& folder, const std::set<std::string>& written) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(folder)) return;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder).generic_string();
    if (written.contains(name) || (entry.is_directory() && !entry.is_symlink())) continue;
    if (!entry.is_regular_file()) {
      at(entry.path().string())
          .fail(ErrorCode::OUT_EXISTS, {.problem = "the folder has something that cannot be kept while it is replaced",
                                        .expected = "files and folders",
                                        .hint = "choose another folder"});
    }
    output.copy_file(name, safetensors::path_inside(folder.string(), name, false));
  }
}

}  // namespace

void save_adapters(const PeftModel::Impl& impl, const std::string& folder, const SaveOptions& options) {
  const at::NoGradGuard no_grad;
  std::vector<Prepared> adapters;
  const std::vector<const AdapterEntry*> entries = selected(impl, options);
  for (const AdapterEntry* entry : entries) {
    adapters.push_back(prepare(impl, *entry, options));
    require_finite(adapters.back().tensors, entry->name);
  }
  std::uint64_t bytes = 0;
  for (const Prepared& adapter : adapters) {
    for (const auto& [name, tensor] : adapter.tensors) bytes += tensor.nbytes();
    for (const auto& image : adapter.images) bytes += image.size();
  }
  for (const auto& [name, content] : options.more_files) bytes += content.size();
  StagedOutput::Options staged;
  staged.overwrite = options.overwrite, staged.sync = options.sync, staged.expected_bytes = bytes;
  StagedOutput output(folder, staged, {impl.base->folder()});
  std::set<std::string> written;
  for (const Prepared& adapter : adapters) {
    write_tensors(output, adapter);
    output.add_text(adapter.folder + kConfig, adapter.config);
    written.insert({adapter.folder + kWeights, adapter.folder + kConfig});
  }
  for (const auto& [name, content] : options.more_files) {
    output.add_file(name, content.size()).write_at(0, content);
    written.insert(name);
  }
  // One card for all adapters. A card that the folder has already is kept.
  const bool has_card = std::filesystem::exists(std::filesystem::path(folder) / kCard);
  if (!has_card && !entries.empty()) output.add_text(kCard, model_card(entries.front()->config));
  if (options.overwrite) carry_over(output, folder, written);
  output.commit();
}

}  // namespace peft::nn
