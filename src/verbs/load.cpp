#include <set>

#include "layout/keys.h"
#include "peft/verbs.h"

namespace peft {
namespace {

// Module paths of the file: what a model's layers are found in when there is no base model.
std::vector<std::string> module_paths(const Adapter& adapter) {
  std::set<std::string_view> paths;
  for (const TensorInfo& tensor : adapter.weights->tensors()) paths.insert(layout::parse_key(tensor.name).module);
  return {paths.begin(), paths.end()};
}

}  // namespace

std::vector<std::string> module_names(const std::string& path, const InputOptions& options) {
  return module_paths(open(path, {options.adapter_name, options.open}));
}

Input load(const std::string& path, const InputOptions& options) {
  Input input;
  input.adapter = open(path, {options.adapter_name, options.open});
  DescribeOptions describe_options{options.base, options.family, options.families_file, options.num_experts, {}};
  if (options.base.empty()) {
    describe_options.names = module_paths(input.adapter);
    describe_options.names.insert(describe_options.names.end(), options.further_names.begin(), options.further_names.end());
  }
  else describe_options.base = resolve_path(options.base);
  input.model = describe(describe_options);
  input.reading = read(input.adapter, input.model, options.read);
  return input;
}

}  // namespace peft
