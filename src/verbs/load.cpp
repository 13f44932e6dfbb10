#include <array>
#include <exception>
#include <functional>
#include <set>

#include "base/system.h"
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

// Side by side where there are threads for it. If both fail, the first one's error counts.
void both(int threads, const std::function<void()>& first, const std::function<void()>& second) {
  if (threads < 2) return first(), second();
  std::array<std::exception_ptr, 2> errors;
  parallel_for(2, threads, [&](std::size_t i, int) {
    try {
      i == 0 ? first() : second();
    } catch (...) {
      errors[i] = std::current_exception();
    }
  });
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace

std::vector<std::string> module_names(const std::string& path, const InputOptions& options) {
  return module_paths(open(path, {options.adapter_name, options.open}));
}

Input load(const std::string& path, const InputOptions& options) {
  Input input;
  DescribeOptions describe_options{options.base, options.family, options.families_file, options.num_experts, {}};
  const auto open_adapter = [&] { input.adapter = open(path, {options.adapter_name, options.open}); };
  const auto describe_with_names = [&] {
    describe_options.names = module_paths(input.adapter);
    describe_options.names.insert(describe_options.names.end(), options.further_names.begin(),
                                  options.further_names.end());
    input.model = describe(describe_options);
  };
  if (options.base.empty()) {
    open_adapter();
    describe_with_names();
  } else {
    both(thread_count(options.read.threads), open_adapter, [&] {
      describe_options.base = resolve_path(options.base);
      input.model = describe(describe_options);
    });
    // A config of a type that the table lacks shows no modules: the adapter's names have to serve.
    if (!input.model.v4 && !input.model.v5) describe_with_names();
  }
  input.reading = read(input.adapter, input.model, options.read);
  return input;
}

}  // namespace peft
