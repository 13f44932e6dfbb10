#include "peft/c.h"

#include <fmt/format.h>

#include <atomic>
#include <new>
#include <string>
#include <vector>

#include "peft/error.h"
#include "peft/verbs.h"

struct peft_error {
  std::string code, message;
  peft::ErrorDetail detail;
};
struct peft_result {
  std::string exactness;
  std::uint64_t bytes_out = 0;
  std::vector<std::string> warnings;
};
struct peft_inspection {
  peft::InspectReport report;
  std::string layout;
};
struct peft_verification {
  peft::VerifyReport report;
  std::string exactness;
};
struct peft_adapter {
  peft::Input input;
  std::vector<std::string> projections, warnings;
};

namespace {

using peft::Error;
using peft::ErrorCode;

// For the error that says that there is no memory for an error.
peft_error out_of_memory{"OUT_MEMORY", "error[OUT_MEMORY]: out of memory", {}};

void hand_out(peft_error** error, const Error& what) noexcept {
  if (error == nullptr) return;
  try {
    *error = new peft_error{std::string(info(what.code()).name), what.what(), what.detail()};
  } catch (const std::bad_alloc&) {
    *error = &out_of_memory;
  }
}

// Runs `work`; what it throws becomes an exit code and *error.
template <typename Work>
int guarded(peft_error** error, const Work& work) noexcept {
  if (error != nullptr) *error = nullptr;
  try {
    work();
    return 0;
  } catch (const Error& what) {
    hand_out(error, what);
    return info(what.code()).exit_code;
  } catch (const std::bad_alloc&) {
    if (error != nullptr) *error = &out_of_memory;
    return info(ErrorCode::OUT_MEMORY).exit_code;
  } catch (const std::exception& what) {
    try {
      hand_out(error, Error(ErrorCode::INTERNAL, {.problem = what.what(), .hint = "please report this"}));
    } catch (...) {
      if (error != nullptr) *error = &out_of_memory;
    }
    return info(ErrorCode::INTERNAL).exit_code;
  }
}

// An option's text; "" for NULL.
std::string text(const char* value) { return value == nullptr ? "" : value; }

// An argument that has to be given.
std::string required(const char* value, const char* name) {
  if (value == nullptr || *value == '\0')
    peft::at({}, name).fail(ErrorCode::USAGE, {.problem = "the argument is missing"});
  return value;
}

template <typename T>
T& required(T* value, const char* name) {
  if (value == nullptr) peft::at({}, name).fail(ErrorCode::USAGE, {.problem = "the argument is NULL"});
  return *value;
}

[[noreturn]] void unknown_value(const char* option, const std::string& value, std::string expected) {
  peft::at("", option)
      .fail(ErrorCode::USAGE, {.problem = "no such value", .expected = std::move(expected), .got = value});
}

peft::Layout layout_of(const char* option, const std::string& value) {
  if (const auto layout = peft::parse_layout(value)) return *layout;
  std::string names;
  for (const peft::LayoutInfo& row : peft::layouts()) names += (names.empty() ? "" : ", ") + std::string(row.name);
  unknown_value(option, value, "one of " + names);
}

std::optional<peft::Dtype> dtype_of(const char* option, const char* value) {
  using peft::Dtype;
  if (value == nullptr || *value == '\0') return std::nullopt;
  const auto dtype = peft::parse_dtype(value);
  if (dtype != Dtype::f32 && dtype != Dtype::f16 && dtype != Dtype::bf16 && dtype != Dtype::f64)
    unknown_value(option, value, "float32, bfloat16, float16 or float64");
  return dtype;
}

peft::InputOptions input_options(const peft_input& input, peft::Verb verb, int threads) {
  peft::InputOptions options;
  options.base = text(input.base);
  options.family = text(input.family);
  options.families_file = text(input.families_file);
  options.adapter_name = text(input.adapter_name);
  options.num_experts = input.num_experts;
  options.open.follow_symlinks = input.follow_symlinks != 0;
  options.read.verb = verb;
  options.read.threads = threads;
  options.read.ignore_unused = input.ignore_unused != 0;
  if (input.from != nullptr) options.read.layout = layout_of("from", input.from);
  return options;
}

// Keeps what execute() looks at while it runs.
class Run {
 public:
  explicit Run(const peft_output& output) {
    options_.threads = output.threads;
    options_.sync = output.no_sync == 0;
    options_.readback = output.no_readback == 0;
    options_.overwrite = output.overwrite != 0;
    options_.cancel = &cancel_;
    if (output.progress != nullptr) {
      options_.progress = [this, output](std::uint64_t done, std::uint64_t total) {
        if (output.progress(output.user, done, total) != 0) cancel_ = true;
      };
    }
  }
  const peft::ExecuteOptions& options() const { return options_; }

 private:
  peft::ExecuteOptions options_;
  std::atomic<bool> cancel_ = false;
};

void carry_out(const peft::Plan& plan, const std::string& out, const peft_output& output,
               std::vector<std::string> warnings, peft_result** result) {
  const Run run(output);
  const peft::ExecuteReport report = peft::execute(plan, out, run.options());
  warnings.insert(warnings.end(), plan.warnings.begin(), plan.warnings.end());
  warnings.insert(warnings.end(), report.warnings.begin(), report.warnings.end());
  if (result != nullptr) {
    *result = new peft_result{std::string(name(plan.exactness)), report.bytes_out, std::move(warnings)};
  }
}

void convert(const std::string& adapter, const std::string& out, const peft_convert_options& options,
             peft_result** result) {
  peft::ConvertOptions convert;
  convert.input = input_options(options.input, peft::Verb::convert, options.output.threads);
  convert.to = layout_of("to", required(options.to, "to"));
  convert.dtype = dtype_of("dtype", options.dtype);
  convert.block_diagonal = options.block_diagonal != 0;
  const std::vector<std::string> names = peft::adapter_names(peft::resolve_path(adapter));
  if (convert.input.adapter_name.empty() && names.size() > 1) {
    peft::at(adapter, "adapter_name")
        .fail(ErrorCode::USAGE, {.problem = "the folder holds several adapters, and none is named",
                                 .got = fmt::format("{}", fmt::join(names, ", "))});
  }
  const peft::Input input = peft::load(adapter, convert.input);
  std::vector<std::string> warnings = input.reading.anomalies;
  if (const std::string unused = left_out(input.reading); !unused.empty()) warnings.push_back(unused);
  carry_out(plan_convert(input, convert), out, options.output, std::move(warnings), result);
}

void merge(const std::string& base, const std::vector<peft::WeightedAdapter>& adapters, const std::string& out,
           const peft_merge_options& options, peft_result** result) {
  peft::MergeOptions merge;
  merge.base = base;
  merge.adapters = adapters;
  merge.input = input_options(options.input, peft::Verb::merge, options.output.threads);
  if (options.mode != nullptr) {
    const auto mode = peft::parse_merge_mode(options.mode);
    if (!mode) unknown_value("mode", options.mode, "best, peft, peft-safe or fast");
    merge.mode = *mode;
  }
  merge.out_dtype = dtype_of("out_dtype", options.out_dtype);
  if (options.max_shard_size > 0) merge.max_shard_size = options.max_shard_size;
  merge.keep_quantized = options.keep_quantized != 0;
  peft::MergePlan planned = plan_merge(merge);
  carry_out(planned.plan, out, options.output, std::move(planned.unused), result);
}

template <typename List>
const char* element(const List& list, std::size_t index) {
  return index < list.size() ? list[index].c_str() : "";
}

}  // namespace

extern "C" {

const char* peft_version(void) { return PEFT_VERSION; }

const char* peft_error_code(const peft_error* error) { return error->code.c_str(); }
const char* peft_error_message(const peft_error* error) { return error->message.c_str(); }
const char* peft_error_file(const peft_error* error) { return error->detail.file.c_str(); }
const char* peft_error_tensor(const peft_error* error) { return error->detail.tensor.c_str(); }
const char* peft_error_problem(const peft_error* error) { return error->detail.problem.c_str(); }
const char* peft_error_expected(const peft_error* error) { return error->detail.expected.c_str(); }
const char* peft_error_got(const peft_error* error) { return error->detail.got.c_str(); }
const char* peft_error_hint(const peft_error* error) { return error->detail.hint.c_str(); }
void peft_error_free(peft_error* error) {
  if (error != &out_of_memory) delete error;
}

const char* peft_result_exactness(const peft_result* result) { return result->exactness.c_str(); }
uint64_t peft_result_bytes_out(const peft_result* result) { return result->bytes_out; }
size_t peft_result_num_warnings(const peft_result* result) { return result->warnings.size(); }
const char* peft_result_warning(const peft_result* result, size_t index) { return element(result->warnings, index); }
void peft_result_free(peft_result* result) { delete result; }

int peft_inspect(const char* adapter, const peft_input* input, peft_inspection** inspection, peft_error** error) {
  return guarded(error, [&] {
    required(inspection, "inspection") = nullptr;
    const peft_input options = input == nullptr ? peft_input{} : *input;
    peft::InspectReport report =
        peft::inspect(required(adapter, "adapter"), input_options(options, peft::Verb::inspect, 1));
    std::string layout = !report.layout ? "" : report.has_experts ? std::string(info(*report.layout).name) : "dense";
    *inspection = new peft_inspection{std::move(report), std::move(layout)};
  });
}
const char* peft_inspection_layout(const peft_inspection* inspection) { return inspection->layout.c_str(); }
const char* peft_inspection_producer(const peft_inspection* inspection) { return inspection->report.producer.c_str(); }
const char* peft_inspection_model_type(const peft_inspection* inspection) {
  return inspection->report.model_type.c_str();
}
const char* peft_inspection_dtype(const peft_inspection* inspection) { return inspection->report.dtype.c_str(); }
const char* peft_inspection_problem(const peft_inspection* inspection) { return inspection->report.error.c_str(); }
int64_t peft_inspection_num_tensors(const peft_inspection* inspection) { return inspection->report.num_tensors; }
int64_t peft_inspection_num_layers(const peft_inspection* inspection) { return inspection->report.num_layers; }
int64_t peft_inspection_num_experts(const peft_inspection* inspection) { return inspection->report.num_experts; }
uint64_t peft_inspection_parameters(const peft_inspection* inspection) { return inspection->report.parameters; }
size_t peft_inspection_num_consumers(const peft_inspection* inspection) { return inspection->report.consumers.size(); }
const char* peft_inspection_consumer_name(const peft_inspection* inspection, size_t index) {
  const auto& list = inspection->report.consumers;
  return index < list.size() ? list[index].name.c_str() : "";
}
const char* peft_inspection_consumer_verdict(const peft_inspection* inspection, size_t index) {
  const auto& list = inspection->report.consumers;
  return index < list.size() ? name(list[index].outcome).data() : "";
}
const char* peft_inspection_consumer_why(const peft_inspection* inspection, size_t index) {
  const auto& list = inspection->report.consumers;
  return index < list.size() ? list[index].why.c_str() : "";
}
size_t peft_inspection_num_warnings(const peft_inspection* inspection) {
  return inspection->report.anomalies.size() + inspection->report.warnings.size();
}
const char* peft_inspection_warning(const peft_inspection* inspection, size_t index) {
  const auto& first = inspection->report.anomalies;
  return index < first.size() ? first[index].c_str() : element(inspection->report.warnings, index - first.size());
}
void peft_inspection_free(peft_inspection* inspection) { delete inspection; }

int peft_convert(const char* adapter, const char* out, const peft_convert_options* options, peft_result** result,
                 peft_error** error) {
  return guarded(error, [&] {
    if (result != nullptr) *result = nullptr;
    convert(required(adapter, "adapter"), required(out, "out"), required(options, "options"), result);
  });
}

int peft_verify(const char* a, const char* b, const peft_verify_options* options, peft_verification** verification,
                peft_error** error) {
  return guarded(error, [&] {
    required(verification, "verification") = nullptr;
    const peft_verify_options given = options == nullptr ? peft_verify_options{} : *options;
    peft::VerifyOptions verify;
    verify.a = input_options(given.a, peft::Verb::verify, given.threads);
    verify.b = input_options(given.b, peft::Verb::verify, given.threads);
    verify.tolerance_rounded = given.exact == 0;
    verify.threads = given.threads;
    peft::VerifyReport report = peft::verify(required(a, "a"), required(b, "b"), verify);
    std::string exactness(name(report.exactness));
    *verification = new peft_verification{std::move(report), std::move(exactness)};
  });
}
int peft_verification_same(const peft_verification* verification) { return verification->report.same ? 1 : 0; }
const char* peft_verification_exactness(const peft_verification* verification) {
  return verification->exactness.c_str();
}
double peft_verification_largest_relative(const peft_verification* verification) {
  return verification->report.largest_relative;
}
int64_t peft_verification_compared(const peft_verification* verification) { return verification->report.compared; }
int64_t peft_verification_identical(const peft_verification* verification) { return verification->report.identical; }
int64_t peft_verification_num_differences(const peft_verification* verification) {
  return verification->report.num_differences;
}
const char* peft_verification_difference_site(const peft_verification* verification, size_t index) {
  const auto& list = verification->report.differences;
  return index < list.size() ? list[index].name.c_str() : "";
}
const char* peft_verification_difference_what(const peft_verification* verification, size_t index) {
  const auto& list = verification->report.differences;
  return index < list.size() ? list[index].what.c_str() : "";
}
size_t peft_verification_num_left_out(const peft_verification* verification) {
  return verification->report.left_out.size();
}
const char* peft_verification_left_out(const peft_verification* verification, size_t index) {
  return element(verification->report.left_out, index);
}
void peft_verification_free(peft_verification* verification) { delete verification; }

int peft_merge(const char* base, const peft_weighted_adapter* adapters, size_t num_adapters, const char* out,
               const peft_merge_options* options, peft_result** result, peft_error** error) {
  return guarded(error, [&] {
    if (result != nullptr) *result = nullptr;
    std::vector<peft::WeightedAdapter> list;
    for (size_t i = 0; i < num_adapters; ++i) {
      const peft_weighted_adapter& adapter = required(adapters + i, "adapters");
      list.push_back({required(adapter.path, "adapters"), adapter.weight});
    }
    merge(required(base, "base"), list, required(out, "out"), options == nullptr ? peft_merge_options{} : *options,
          result);
  });
}

int peft_adapter_open(const char* path, const peft_input* input, peft_adapter** adapter, peft_error** error) {
  return guarded(error, [&] {
    required(adapter, "adapter") = nullptr;
    const peft_input options = input == nullptr ? peft_input{} : *input;
    // As for merging: fields of the config that make the factors mean something else are refused.
    peft::Input loaded = peft::load(required(path, "path"), input_options(options, peft::Verb::merge, 1));
    std::vector<std::string> projections, warnings = loaded.reading.factors.warnings;
    for (const peft::Factor& factor : loaded.reading.factors.factors)
      projections.emplace_back(name(factor.site.projection));
    if (const std::string unused = left_out(loaded.reading); !unused.empty()) warnings.push_back(unused);
    *adapter = new peft_adapter{std::move(loaded), std::move(projections), std::move(warnings)};
  });
}
size_t peft_adapter_num_factors(const peft_adapter* adapter) { return adapter->projections.size(); }

namespace {

const peft::Factor& factor_at(const peft_adapter& adapter, size_t index) {
  const auto& factors = adapter.input.reading.factors.factors;
  if (index < factors.size()) return factors[index];
  peft::at({}, "index")
      .fail(ErrorCode::USAGE, {.problem = "there is no such factor",
                               .expected = fmt::format("below {}", factors.size()),
                               .got = std::to_string(index)});
}

}  // namespace

int peft_adapter_factor(const peft_adapter* adapter, size_t index, peft_factor* factor, peft_error** error) {
  return guarded(error, [&] {
    const peft::Factor& found = factor_at(*adapter, index);
    required(factor, "factor") = {found.site.module.c_str(),
                                  found.site.parameter.c_str(),
                                  adapter->projections[index].c_str(),
                                  found.site.expert,
                                  found.out,
                                  found.in,
                                  found.rank,
                                  found.scale,
                                  found.kind == peft::FactorKind::embedding ? 1 : 0};
  });
}

int peft_adapter_read(const peft_adapter* adapter, size_t index, peft_side side, float* values, size_t size,
                      peft_error** error) {
  return guarded(error, [&] {
    const peft::Factor& factor = factor_at(*adapter, index);
    const peft::View& view = side == PEFT_LORA_A ? factor.a : factor.b;
    const auto wanted = static_cast<size_t>(view.rows * view.cols);
    if (size != wanted) {
      peft::at({}, "size")
          .fail(ErrorCode::USAGE, {.problem = "the buffer does not have the size of the matrix",
                                   .expected = std::to_string(wanted),
                                   .got = std::to_string(size)});
    }
    required(values, "values");
    const std::vector<double> numbers = peft::to_matrix(*adapter->input.adapter.weights, view);
    for (size_t i = 0; i < wanted; ++i) values[i] = static_cast<float>(numbers[i]);
  });
}
size_t peft_adapter_num_warnings(const peft_adapter* adapter) { return adapter->warnings.size(); }
const char* peft_adapter_warning(const peft_adapter* adapter, size_t index) {
  return element(adapter->warnings, index);
}
void peft_adapter_free(peft_adapter* adapter) { delete adapter; }

}  // extern "C"
