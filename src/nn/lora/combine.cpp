// add_weighted_adapter: the core combines the factors, in fp64 and without PEFT's cross terms and double scales.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "nn/lora/impl.h"
#include "nn/lora/memory_file.h"
#include "nn/lora/place.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "peft/low_rank.h"
#include "peft/reference.h"

namespace peft::nn {
namespace {

// An adapter of the model as one that was opened from PEFT's own file.
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
    throw Error(ErrorCode::USAGE,
                {.tensor = key, .problem = "this is not a way to combine", .expected = expected, .got = got});
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

void check(const std::vector<std::string>& names, const std::vector<double>& weights) {
  const bool finite = std::all_of(weights.begin(), weights.end(), [](double w) { return std::isfinite(w); });
  if (!names.empty() && names.size() == weights.size() && finite) return;
  throw Error(ErrorCode::USAGE, {.tensor = "weights",
                                 .problem = "one finite weight for each adapter is needed",
                                 .expected = fmt::format("{} weights, at least one", names.size()),
                                 .got = std::to_string(weights.size())});
}

}  // namespace

void combine_adapters(PeftModel::Impl& impl, const std::vector<std::string>& names, const std::vector<double>& weights,
                      const std::string& name, const WeightedOptions& options) {
  const at::NoGradGuard no_grad;
  check(names, weights);
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
