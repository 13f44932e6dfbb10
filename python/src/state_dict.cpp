// State dicts in memory: tensors that Python holds are read in place, and the result is memory that Python owns.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "base/system.h"
#include "buffer.h"
#include "cli/flags.h"
#include "cli/output/json.h"
#include "cli/verbs/inspect.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "run.h"
#include "values.h"

namespace peft::python {
namespace {

constexpr const char* kPlace = "state dict";  // what messages call it

// Entries are (name, dtype, shape, address). The caller keeps the memory until the work is done.
std::vector<TensorInMemory> tensors_of(const nb::list& entries) {
  std::vector<TensorInMemory> tensors;
  tensors.reserve(entries.size());
  for (const nb::handle entry : entries) {
    const auto tuple = nb::cast<nb::tuple>(entry);
    TensorInMemory& tensor = tensors.emplace_back();
    tensor.name = to_text(tuple[0], "name");
    const auto dtype = parse_dtype(to_text(tuple[1], "dtype"));
    if (!dtype) {
      at(kPlace, tensor.name)
          .fail(ErrorCode::ST_DTYPE, {.problem = "safetensors has no such dtype", .got = to_text(tuple[1], "dtype")});
    }
    tensor.dtype = *dtype;
    for (const nb::handle dimension : nb::cast<nb::tuple>(tuple[2]))
      tensor.shape.push_back(nb::cast<std::int64_t>(dimension));
    tensor.data = reinterpret_cast<const std::byte*>(nb::cast<std::uintptr_t>(tuple[3]));
  }
  return tensors;
}

struct Request {
  std::vector<TensorInMemory> tensors;
  std::string config;
  cli::InputFlags input;
  ConvertOptions convert;
  int threads = 0;
};

Request request_of(const nb::list& tensors, const nb::str& config, Arguments& arguments) {
  Request request;
  request.tensors = tensors_of(tensors);
  request.config = to_text(config, "config");
  arguments.take(request.input);
  arguments.take("threads", request.threads, 1, 1024);
  return request;
}

Adapter open_in_memory(const Request& request) {
  Adapter adapter;
  adapter.folder = adapter.root = kPlace;
  adapter.name = "default";
  adapter.config = AdapterConfig::parse(request.config, "config");
  adapter.weights = TensorFile::of(request.tensors, kPlace, request.input.open);
  return adapter;
}

InputOptions input_options(const Request& request, Verb verb) {
  InputOptions options = request.input.options();
  options.read.verb = verb;
  options.read.threads = request.threads;
  return options;
}

struct Converted {
  std::shared_ptr<Memory> memory;
  PlannedFile file;
  FileLayout layout;
  std::string config, from;
  Exactness exactness = Exactness::bit_exact;
  std::vector<std::string> steps, notes, unused, warnings;
};

Converted convert(const Request& request, RunState& state) {
  const Input input = load(open_in_memory(request), request.convert.input);
  Plan plan = plan_convert(input, request.convert);
  if (plan.files.size() != 1 || plan.files[0].gguf || plan.texts.size() > 1) {
    at({}, "to").fail(ErrorCode::USAGE, {.problem = "the layout is no state dict with a config",
                                         .got = std::string(info(request.convert.to).name),
                                         .hint = "convert files: peft_cpp.convert"});
  }
  Converted converted;
  converted.from = input.reading.has_experts ? std::string(info(input.reading.layout).name) : "dense";
  converted.layout = layout_file(plan.files.at(0));
  converted.memory = std::make_shared<Memory>(converted.layout.data_bytes);
  ExecuteOptions options = state.with_hooks({.threads = request.threads});
  execute_into(converted.memory->bytes(), plan, 0, options);
  converted.config = plan.texts.empty() ? request.config : plan.texts[0].second;
  converted.exactness = plan.exactness;
  converted.steps = std::move(plan.steps);
  converted.notes = input.reading.anomalies;
  converted.unused = input.reading.unused;
  converted.warnings = std::move(plan.warnings);
  converted.file = std::move(plan.files[0]);
  return converted;
}

// (name, dtype, shape, offset in bytes), in the order of a file.
nb::list entries_of(const Converted& converted) {
  nb::list entries;
  for (const std::size_t t : converted.layout.order) {
    const PlannedTensor& tensor = converted.file.tensors[t];
    nb::list shape;
    for (const std::int64_t dimension : tensor.shape) shape.append(nb::int_(dimension));
    entries.append(nb::make_tuple(to_python(tensor.name), to_python(info(tensor.dtype).name), nb::tuple(shape),
                                  nb::int_(converted.layout.begin[t])));
  }
  return entries;
}

nb::tuple convert_state_dict(const nb::list& tensors, const nb::str& config, nb::dict values, nb::object progress) {
  Arguments arguments(std::move(values));
  std::string to, dtype;
  arguments.take("to", to);
  arguments.take("dtype", dtype);
  Request request = request_of(tensors, config, arguments);
  arguments.take("block_diagonal", request.convert.block_diagonal);
  arguments.finish();
  request.convert.to = cli::parse_layout_flag("--to", to);
  request.convert.dtype = cli::parse_optional_dtype("--dtype", dtype);
  request.convert.input = input_options(request, Verb::convert);
  const auto converted =
      run_for<Converted>(progress, false, [&request](RunState& state) { return convert(request, state); });
  const cli::Json report = {{"from", converted.from},
                            {"to", to},
                            {"tensors_in", request.tensors.size()},
                            {"tensors_out", converted.file.tensors.size()},
                            {"exactness", name(converted.exactness)},
                            {"steps", converted.steps},
                            {"notes", converted.notes},
                            {"unused", converted.unused},
                            {"warnings", converted.warnings},
                            {"bytes_out", converted.layout.data_bytes}};
  return nb::make_tuple(buffer_of(converted.memory), entries_of(converted), to_python(converted.config),
                        json_to_python(report));
}

nb::object detect(const nb::list& tensors, const nb::str& config, nb::dict values) {
  Arguments arguments(std::move(values));
  const Request request = request_of(tensors, config, arguments);
  arguments.finish();
  return json_to_python(run_for<cli::Json>(nb::none(), false, [&request](RunState&) {
    return cli::to_json(inspect(open_in_memory(request), input_options(request, Verb::inspect)));
  }));
}

}  // namespace

void add_state_dicts(nb::module_& module) {
  add_buffers(module);
  module.def("convert_state_dict", &convert_state_dict, nb::arg("tensors"), nb::arg("config"), nb::arg("values"),
             nb::arg("progress").none());
  module.def("detect", &detect);
}

}  // namespace peft::python
