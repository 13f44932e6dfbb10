// An adapter folder in any layout, as factors on the model's modules.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "config/peft_rules.h"
#include "nn/lora/impl.h"
#include "nn/lora/init.h"
#include "nn/lora/place.h"
#include "peft/error.h"
#include "peft/targets.h"
#include "peft/verbs.h"

namespace peft::nn {
namespace {

// Targets of the config without tensors in the file: PEFT would leave them as they started, with a warning at most.
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
  throw Error(ErrorCode::LO_MISSING,
              {.file = input.adapter.weights->path(),
               .tensor = missing.front(),
               .problem = "targets of the config have no tensors in the file",
               .expected = fmt::format("lora_A and lora_B of {} targets", resolved.targets.size()),
               .got = fmt::format("{} without: {}", missing.size(), fmt::join(first, ", ")),
               .hint = "is the file complete, and is this the right base model?"});
}

// What save_pretrained writes: the config as it is, or as it becomes in PEFT's own form.
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

// PiSSA and OLoRA: the same start is taken out of the weights again, as PEFT does.
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
  throw Error(
      ErrorCode::CF_UNSUP,
      {.file = config.file,
       .tensor = "init_lora_weights",
       .problem = "this initialisation changed the base model, so the factors do not belong to the original one",
       .expected = "a base that is known to be the changed one (is_residual), or PiSSA and OLoRA to be taken out "
                   "of this one again (subtract)",
       .got = init,
       .hint = "save such adapters with PEFT's path_initial_model_for_weight_conversion, or say that the base is the "
               "changed one (--base-is-residual)"});
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

}  // namespace peft::nn
