#include "verbs/load.h"

#include <algorithm>
#include <array>
#include <exception>
#include <functional>

#include "base/system.h"
#include "layout/gguf/decode.h"
#include "peft/layout.h"

namespace peft {
namespace {

Adapter open_adapter(const std::string& path, const InputOptions& options) {
  return open(path, {options.adapter_name, options.open});
}

// The model as the adapter's own names and those of `options.further_names` show it.
Model describe_with_names(const Adapter& adapter, const InputOptions& options, const std::string& base) {
  DescribeOptions describe_options{base, options.family, options.families_file, options.num_experts, {}};
  auto& names = describe_options.names = module_names(adapter, options.family);
  if (adapter.form == AdapterForm::gguf && options.family.empty() && base.empty())
    describe_options.family = layout::gguf_names_of(adapter, {}).types.front();
  names.insert(names.end(), options.further_names.begin(), options.further_names.end());
  return describe(describe_options);
}

// Runs both functions, at the same time where there are threads for it. If both fail, the first one's error counts.
void run_both(int threads, const std::function<void()>& first, const std::function<void()>& second) {
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

void read_factors(Input& input, const InputOptions& options) {
  input.adapter.weights = layout::with_rows_in_order(input.adapter, input.model);
  input.reading = read(input.adapter, input.model, options.read);
}

Input read_without_base(Adapter adapter, const InputOptions& options) {
  Input input;
  input.adapter = std::move(adapter);
  input.model = describe_with_names(input.adapter, options, {});
  read_factors(input, options);
  return input;
}

Input read_with_base(Input input, const InputOptions& options, const std::string& base) {
  // A config of a type that the table lacks shows no modules: the adapter's names have to serve.
  if (!input.model.v4 && !input.model.v5) input.model = describe_with_names(input.adapter, options, base);
  read_factors(input, options);
  return input;
}

}  // namespace

std::vector<std::string> module_names(const std::string& path, const InputOptions& options) {
  return module_names(open_adapter(path, options), options.family);
}

Input load(const std::string& path, const InputOptions& options) {
  if (options.base.empty()) return read_without_base(open_adapter(path, options), options);
  Input input;
  std::string base;
  run_both(
      thread_count(options.read.threads), [&] { input.adapter = open_adapter(path, options); },
      [&] {
        base = resolve_path(options.base);
        input.model = describe({base, options.family, options.families_file, options.num_experts, {}});
      });
  return read_with_base(std::move(input), options, base);
}

Input load(Adapter adapter, const InputOptions& options) {
  if (options.base.empty()) return read_without_base(std::move(adapter), options);
  Input input;
  input.adapter = std::move(adapter);
  const std::string base = resolve_path(options.base);
  input.model = describe({base, options.family, options.families_file, options.num_experts, {}});
  return read_with_base(std::move(input), options, base);
}

namespace verbs {

std::vector<Input> load_together(std::span<const AdapterToLoad> adapters) {
  std::vector<Input> inputs;
  if (!std::ranges::all_of(adapters, [](const AdapterToLoad& adapter) { return adapter.options.base.empty(); })) {
    for (const AdapterToLoad& adapter : adapters) inputs.push_back(load(adapter.path, adapter.options));
    return inputs;
  }
  std::vector<Adapter> opened;
  std::vector<std::vector<std::string>> names;
  for (const AdapterToLoad& adapter : adapters) {
    opened.push_back(open_adapter(adapter.path, adapter.options));
    names.push_back(module_names(opened.back(), adapter.options.family));
  }
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    InputOptions options = adapters[i].options;
    for (std::size_t j = 0; j < adapters.size(); ++j) {
      if (j != i) options.further_names.insert(options.further_names.end(), names[j].begin(), names[j].end());
    }
    inputs.push_back(read_without_base(std::move(opened[i]), options));
  }
  return inputs;
}

}  // namespace verbs
}  // namespace peft
