#include "nn/lora/files/load.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "config/peft_rules.h"
#include "nn/lora/create.h"
#include "nn/lora/files/factors.h"
#include "nn/lora/files/file_tensors.h"
#include "nn/lora/files/place.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "peft/model.h"
#include "peft/verbs.h"

namespace peft::nn {
namespace {

// Refuses a file without tensors for some targets of the config. PEFT would leave them at their first values.
void require_complete(const PeftModel::Impl& impl, const Input& input, const AdapterConfig& config, int id) {
  if (input.reading.layout == Layout::peft_per_expert && input.reading.has_experts) return;  // absent experts are zero
  const ResolvedTargets resolved =
      resolve_targets(config, impl.tree, impl.model, Generation::v5, input.adapter.config.likely_version().first);
  std::vector<std::string> missing;
  for (const Target& target : resolved.targets) {
    const std::string name = target.parameter ? target.name : target.name + ".weight";
    const auto site = impl.site_by_name.find(name);
    if (site == impl.site_by_name.end() || site->second->find(id) == nullptr) missing.push_back(target.name);
  }
  if (missing.empty()) return;
  const std::size_t shown = std::min<std::size_t>(3, missing.size());
  const std::vector<std::string> first(missing.begin(), missing.begin() + static_cast<std::ptrdiff_t>(shown));
  peft::at(input.adapter.weights->path(), missing.front())
      .fail(ErrorCode::LO_MISSING, {.problem = "targets of the config have no tensors in the file",
                                    .expected = fmt::format("lora_A and lora_B of {} targets", resolved.targets.size()),
                                    .got = fmt::format("{} without: {}", missing.size(), fmt::join(first, ", ")),
                                    .hint = "is the file complete, and is this the right base model?"});
}

// The config that save_pretrained will write: converted to PEFT's own layout where that can hold the adapter.
std::pair<AdapterConfig, Layout> config_to_save(const Input& input, std::vector<std::string>& warnings) {
  ConvertOptions options;
  options.to = Layout::peft_fused;
  try {
    const Plan plan = plan_convert(input, options);
    warnings.insert(warnings.end(), plan.warnings.begin(), plan.warnings.end());
    return {AdapterConfig::parse(plan.texts.front().second, input.adapter.config.file), Layout::peft_fused};
  } catch (const Error& error) {
    if (error.code() != ErrorCode::LO_NO_FORM) throw;
    warnings.push_back(fmt::format("{}: it is kept in the layout it came in", error.detail().problem));
    return {input.adapter.config, input.reading.layout};
  }
}

// PiSSA and OLoRA: subtracts the same start from the weights again, as PEFT does.
void subtract_start(PeftModel::Impl& impl, int id, const std::string& init) {
  const at::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(0);
  for (const auto& site : impl.sites) {
    const SiteFactors* factors = site->find(id);
    if (factors == nullptr || site->kind != SiteKind::linear || site->by_parameter) continue;
    SiteFactors start;
    start.stack = {at::empty_like(factors->stack.a), at::empty_like(factors->stack.b), factors->stack.scale};
    initialise(*site, start, init, generator);
  }
}

void check_changed_base(const AdapterConfig& config, ChangedBase choice) {
  const std::string& init = config.init_lora_weights;
  if (!config::changes_base(init) || choice == ChangedBase::is_residual) return;
  if (choice == ChangedBase::subtract && starts_from_weight(init)) return;
  peft::at(config.file, "init_lora_weights")
      .fail(ErrorCode::CF_UNSUP,
            {.problem = "this initialisation changed the base model, so the factors do not belong to the original one",
             .expected = "a base that is known to be the changed one (is_residual), or PiSSA and OLoRA to be taken out "
                         "of this one again (subtract)",
             .got = init,
             .hint =
                 "save such adapters with PEFT's path_initial_model_for_weight_conversion, or say that the base is the "
                 "changed one (--base-is-residual)"});
}

// Presents an adapter of the model as if it had been opened from PEFT's own file.
Input opened(const PeftModel::Impl& impl, const AdapterEntry& entry, const MemoryFile& memory) {
  Input input;
  input.adapter.folder = input.adapter.name = entry.name;
  input.adapter.config = entry.config;
  input.adapter.weights = memory.file;
  input.model = impl.model;
  input.reading = read(input.adapter, input.model);
  return input;
}

std::unique_ptr<MemoryFile> file_of(const PeftModel::Impl& impl, const AdapterEntry& entry) {
  NamedTensors tensors;
  for (const AdapterTensor& tensor : tensors_of(impl, entry)) {
    tensors.emplace_back(tensor.key, tensor.in_file_form(tensor.tensor));
  }
  return memory_file(tensors);
}

CombineOptions core_options(const WeightedOptions& options) {
  const auto refuse = [](const std::string& key, const std::string& expected, const std::string& got) {
    peft::at({}, key).fail(ErrorCode::USAGE,
                           {.problem = "this is not a way to combine", .expected = expected, .got = got});
  };
  CombineOptions result;
  const auto type = parse_combine_type(options.combination_type);
  if (!type) {
    std::string known;
    for (const auto name : combine_types()) known += (known.empty() ? "" : ", ") + std::string(name);
    refuse("combination_type", known, options.combination_type);
  }
  result.type = *type;
  if (options.majority_sign_method != "total" && options.majority_sign_method != "frequency") {
    refuse("majority_sign_method", "total or frequency", options.majority_sign_method);
  }
  if (!(options.density >= 0 && options.density <= 1)) refuse("density", "0 to 1", fmt::format("{}", options.density));
  if (options.svd_rank < 0) refuse("svd_rank", "0 or more", std::to_string(options.svd_rank));
  result.density = options.density;
  result.svd_rank = options.svd_rank;
  result.majority_by_count = options.majority_sign_method == "frequency";
  result.seed = options.seed;
  result.to = Layout::peft_fused;
  result.threads = at::get_num_threads();
  return result;
}

void check_weights(const std::vector<std::string>& names, const std::vector<double>& weights) {
  const bool finite = std::all_of(weights.begin(), weights.end(), [](double w) { return std::isfinite(w); });
  if (!names.empty() && names.size() == weights.size() && finite) return;
  peft::at({}, "weights")
      .fail(ErrorCode::USAGE, {.problem = "one finite weight for each adapter is needed",
                               .expected = fmt::format("{} weights, at least one", names.size()),
                               .got = std::to_string(weights.size())});
}

}  // namespace

void load_adapter_folder(PeftModel::Impl& impl, const std::string& name, const std::string& folder,
                         const AdapterModelOptions& options) {
  InputOptions input_options;
  input_options.base = impl.base->folder();
  input_options.read = options.read;
  input_options.read.verb = Verb::run;
  const Input input = load(folder, input_options);
  require_language_model(input.adapter.config);
  check_changed_base(input.adapter.config, options.changed_base);
  std::vector<std::string> warnings = input.reading.factors.warnings;
  if (options.is_trainable && config::lora_init(input.adapter.config.init_lora_weights) == config::LoraInit::mica) {
    warnings.emplace_back("init_lora_weights = mica: PEFT trains lora_A alone, here lora_B is trained as well");
  }
  const auto [config, layout] = config_to_save(input, warnings);
  AdapterEntry& added = impl.add_entry(name, config);
  added.layout = layout;
  const int id = added.id;
  try {
    make_token_rows(impl, id, input.adapter.config);
    place_tensors(impl, input, id);
    make_biases(impl, id, config);
    require_complete(impl, input, config, id);
    require_rows_apart(impl);
    input.adapter.weights->check_unchanged();
  } catch (...) {
    impl.forget(id);
    throw;
  }
  if (options.is_trainable) impl.set_gradients(id, true);
  if (options.changed_base == ChangedBase::subtract && config::changes_base(config.init_lora_weights)) {
    subtract_start(impl, id, config.init_lora_weights);
  }
  warn_of_tied(impl, id);
  impl.warnings.insert(impl.warnings.end(), warnings.begin(), warnings.end());
}

void combine_adapters(PeftModel::Impl& impl, const std::vector<std::string>& names, const std::vector<double>& weights,
                      const std::string& name, const WeightedOptions& options) {
  const at::NoGradGuard no_grad;
  check_weights(names, weights);
  std::vector<std::unique_ptr<MemoryFile>> files;
  std::vector<Input> inputs;
  for (const std::string& one : names) {
    const AdapterEntry& entry = impl.entry(one);
    files.push_back(file_of(impl, entry));
    inputs.push_back(opened(impl, entry, *files.back()));
  }
  const LowRankResult result = plan_combine(inputs, weights, core_options(options));
  const auto image = std::move(execute_in_memory(result.plan).front());
  Input made;
  made.adapter.folder = made.adapter.name = name;
  made.adapter.config = AdapterConfig::parse(result.plan.texts.front().second, name);
  made.adapter.weights = TensorFile::parse(image, name);
  made.model = impl.model;
  made.reading = read(made.adapter, made.model);
  const int id = impl.add_entry(name, made.adapter.config).id;
  try {
    place_tensors(impl, made, id);
  } catch (...) {
    impl.forget(id);
    throw;
  }
  impl.warnings.insert(impl.warnings.end(), result.notes.begin(), result.notes.end());
}

}  // namespace peft::nn
