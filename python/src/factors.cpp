// The factors of an adapter on disk: where each lies in the file, and the update it stands for.
#include <algorithm>
#include <functional>

#include "buffer.h"
#include "cli/flags.h"
#include "peft/adapter.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "run.h"
#include "values.h"

namespace peft::python {
namespace {

// An open adapter. Its file stays mapped while views of it live.
class FactorList {
 public:
  explicit FactorList(Input input) : input_(std::move(input)), data_(data_of(*input_.adapter.weights)) {}
  std::size_t size() const { return factors().size(); }

  // (site, scale, A, B); A and B are (dtype, bytes that hold them, offset, shape, strides), the last three in bytes.
  nb::tuple at(std::size_t index) {
    const Factor& factor = factor_at(index);
    return nb::make_tuple(site(index), factor.scale, place(factor.a), place(factor.b));
  }

  nb::str site(std::size_t index) const { return to_python(describe(factor_at(index).site)); }

  // (module, parameter, expert, projection, kind)
  nb::tuple parts(std::size_t index) const {
    const Factor& factor = factor_at(index);
    const Site& site = factor.site;
    return nb::make_tuple(to_python(site.module), to_python(site.parameter), site.expert,
                          to_python(name(site.projection)),
                          to_python(factor.kind == FactorKind::embedding ? "embedding" : "linear"));
  }

  nb::list warnings() const {
    nb::list list;
    for (const std::string& text : input_.reading.factors.warnings) list.append(to_python(text));
    if (const std::string text = left_out(input_.reading); !text.empty()) list.append(to_python(text));
    return list;
  }

  nb::str layout() const {
    return to_python(input_.reading.has_experts ? info(input_.reading.layout).name : std::string_view("dense"));
  }

  // scale * B * A in float64, row after row.
  nb::tuple delta(std::size_t index) const {
    const Factor& factor = factor_at(index);
    std::shared_ptr<Memory> memory;
    {
      const nb::gil_scoped_release unlocked;
      const std::vector<double> values = to_delta(*input_.adapter.weights, factor);
      memory = std::make_shared<Memory>(values.size() * sizeof(double));
      const auto bytes = std::as_bytes(std::span(values));
      std::copy(bytes.begin(), bytes.end(), memory->bytes().begin());
    }
    return nb::make_tuple(buffer_of(std::move(memory)), nb::make_tuple(factor.out, factor.in));
  }

 private:
  const std::vector<Factor>& factors() const { return input_.reading.factors.factors; }
  const Factor& factor_at(std::size_t index) const {
    if (index >= size()) throw nb::index_error("there is no such factor");
    return factors()[index];
  }

  // All tensors of a file that is one mapping; nothing of one that has shards.
  static std::span<const std::byte> data_of(const TensorFile& file) {
    const std::byte *begin = nullptr, *end = nullptr;
    for (const TensorInfo& tensor : file.tensors()) {
      const std::span<const std::byte> bytes = file.bytes(tensor);
      if (bytes.empty()) continue;
      if (begin == nullptr || std::less<>()(bytes.data(), begin)) begin = bytes.data();
      if (end == nullptr || std::less<>()(end, bytes.data() + bytes.size())) end = bytes.data() + bytes.size();
    }
    const auto size = static_cast<std::size_t>(end - begin);
    return size <= file.file_size() ? std::span(begin, size) : std::span<const std::byte>();
  }

  nb::tuple place(const View& view) {
    const auto& file = input_.adapter.weights;
    const TensorInfo& tensor = file->tensors()[view.tensor];
    const std::int64_t bits = info(tensor.dtype).bits;
    if (bits == 0 || bits % 8 != 0) {
      peft::at(file->path(), std::string(tensor.name))
          .fail(ErrorCode::ST_DTYPE, {.problem = "numbers of this type are no array",
                                      .got = std::string(tensor.dtype_name),
                                      .hint = "convert the adapter with dtype=\"F32\" first"});
    }
    const std::int64_t width = bits / 8;
    const std::span<const std::byte> bytes = file->bytes(tensor);
    const bool shared = !data_.empty() && !bytes.empty();  // one object for all views, not one for each
    if (shared && !buffer_.is_valid()) buffer_ = read_only_buffer(data_, file);
    return nb::make_tuple(to_python(tensor.dtype_name), shared ? buffer_ : read_only_buffer(bytes, file),
                          (shared ? bytes.data() - data_.data() : 0) + view.offset * width,
                          nb::make_tuple(view.rows, view.cols),
                          nb::make_tuple(view.row_stride * width, view.col_stride * width));
  }

  Input input_;
  std::span<const std::byte> data_;
  nb::object buffer_;
};

FactorList read_factors(nb::dict values) {
  Arguments arguments(std::move(values));
  std::string path;
  cli::InputFlags input;
  int threads = 0;
  arguments.take("path", path);
  arguments.take(input);
  arguments.take("threads", threads, 1, 1024);
  arguments.finish();
  return run_for<FactorList>(nb::none(), true, [path, input, threads](RunState&) {
    InputOptions options = input.options();
    options.read.verb = Verb::merge;  // fields of the config that make the factors mean something else are refused
    options.read.threads = threads;
    return FactorList(load(path, options));
  });
}

}  // namespace

void add_factors(nb::module_& module) {
  nb::class_<FactorList>(module, "FactorList")
      .def("__len__", &FactorList::size)
      .def("at", &FactorList::at)
      .def("site", &FactorList::site)
      .def("parts", &FactorList::parts)
      .def("delta", &FactorList::delta)
      .def("warnings", &FactorList::warnings)
      .def("layout", &FactorList::layout);
  module.def("read_factors", &read_factors);
}

}  // namespace peft::python
