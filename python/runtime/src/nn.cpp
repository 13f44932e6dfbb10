// The extension module peft_cpp_runtime._nn: models that run, with torch's own tensors in and out. Python tensors and
// ours are handles of the same at::Tensor: storage, device and gradients are shared. python/peft_cpp/nn.py is the only
// caller.
#include <ATen/core/Tensor.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <sstream>

#include "../../src/module.h"
#include "peft/error.h"
#include "peft/nn/model.h"
#include "peft/nn/peft_model.h"
#include "peft/version.h"

namespace nanobind::detail {

template <>
struct type_caster<at::Tensor> {
  NB_TYPE_CASTER(at::Tensor, const_name("torch.Tensor"))
  bool from_python(handle source, std::uint8_t, cleanup_list*) noexcept {
    if (!source.is_none() && !THPVariable_Check(source.ptr())) return false;
    value = source.is_none() ? at::Tensor() : THPVariable_Unpack(source.ptr());
    return true;
  }
  static handle from_cpp(const at::Tensor& tensor, rv_policy, cleanup_list*) noexcept {
    return tensor.defined() ? handle(THPVariable_Wrap(tensor)) : none().release();
  }
};

}  // namespace nanobind::detail

namespace peft::python {
namespace {

using nn::CausalLM;
using nn::LoraConfig;
using nn::PeftModel;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;
using Names = std::vector<std::string>;

struct NamedDtype {
  const char* name;
  at::ScalarType dtype;
};
constexpr std::array<NamedDtype, 4> kDtypes = {
    {{"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}, {"float64", at::kDouble}}};

std::optional<at::ScalarType> dtype_of(const std::string& name) {
  if (name.empty()) return std::nullopt;
  for (const NamedDtype& row : kDtypes) {
    if (name == row.name) return row.dtype;
  }
  at({}, "dtype")
      .fail(ErrorCode::USAGE, {.problem = "models do not run in this dtype",
                               .expected = "float32, bfloat16, float16 or float64",
                               .got = name});
}

nn::GenerateOptions generate_options(const std::string& folder, std::optional<std::int64_t> max_new_tokens,
                                     std::optional<double> temperature, std::optional<std::int64_t> top_k,
                                     std::optional<double> top_p, std::uint64_t seed,
                                     const std::optional<std::vector<std::int64_t>>& eos_token_ids) {
  nn::GenerateOptions options;
  if (!folder.empty() && !eos_token_ids) {
    const nn::GenerateOptions defaults = nn::generation_defaults(folder);
    options.eos_token_ids = defaults.eos_token_ids;
    options.pad_token_id = defaults.pad_token_id;
  }
  if (eos_token_ids) options.eos_token_ids = *eos_token_ids;
  options.max_new_tokens = max_new_tokens.value_or(options.max_new_tokens);
  options.temperature = temperature.value_or(0);
  options.top_k = top_k.value_or(0);
  options.top_p = top_p.value_or(1);
  options.seed = seed;
  return options;
}

nn::AdapterModelOptions adapter_options(const std::string& name, bool is_trainable, std::uint64_t seed,
                                        const std::string& changed_base) {
  nn::AdapterModelOptions options;
  options.adapter_name = name;
  options.is_trainable = is_trainable;
  options.seed = seed;
  if (changed_base == "is_residual") options.changed_base = nn::ChangedBase::is_residual;
  if (changed_base == "subtract") options.changed_base = nn::ChangedBase::subtract;
  return options;
}

LoraConfig config_of(const std::string& text) { return LoraConfig::parse(text, "config"); }

using Output = std::pair<at::Tensor, at::Tensor>;
Output pair_of(const nn::ForwardOutput& output) { return {output.logits, output.aux_loss}; }

nn::ForwardInput input_of(const at::Tensor& ids, const at::Tensor& mask, const at::Tensor& positions,
                          std::int64_t logits_to_keep, bool want_aux_loss) {
  return {.ids = ids,
          .mask = mask,
          .positions = positions,
          .logits_to_keep = logits_to_keep,
          .want_aux_loss = want_aux_loss};
}

void add_base(nb::module_& module) {
  nb::class_<CausalLM>(module, "CausalLM")
      .def(
          "forward",
          [](const CausalLM& self, const at::Tensor& ids, const at::Tensor& mask, const at::Tensor& positions,
             std::int64_t logits_to_keep, bool want_aux_loss) {
            return pair_of(self.forward(input_of(ids, mask, positions, logits_to_keep, want_aux_loss)));
          },
          nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), Unlocked())
      .def("logits", &CausalLM::logits, nb::arg(), nb::arg().none(), Unlocked())
      .def(
          "generate",
          [](const CausalLM& self, const at::Tensor& ids, const at::Tensor& mask, const nn::GenerateOptions& options) {
            return nn::generate(self, ids, mask, options);
          },
          nb::arg(), nb::arg().none(), nb::arg(), Unlocked())
      .def("parameters", &CausalLM::parameters)
      .def("parameter_count", &CausalLM::parameter_count)
      .def("warnings", &CausalLM::warnings)
      .def("model_type", &CausalLM::model_type)
      .def("folder", &CausalLM::folder)
      .def("vocab_size", &CausalLM::vocab_size);
  nb::class_<nn::GenerateOptions>(module, "GenerateOptions");
  module.def("generate_options", &generate_options, nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg().none(),
             nb::arg().none(), nb::arg(), nb::arg().none());
  module.def(
      "load_model",
      [](const std::string& folder, const std::string& dtype, const std::string& device, int threads, bool check) {
        return nn::load_model(folder,
                              {.dtype = dtype_of(dtype), .device = device, .threads = threads, .check_finite = check});
      },
      Unlocked());
  module.def(
      "init_model",
      [](const std::string& config, const std::string& dtype, const std::string& device, std::uint64_t seed) {
        return nn::init_model(config, {.dtype = dtype_of(dtype), .device = device, .seed = seed});
      },
      Unlocked());
}

// Adapters are off until end() is called.
class Disabled {
 public:
  explicit Disabled(PeftModel& model) { guard_ = std::make_unique<Guard>(model); }
  void end() { guard_.reset(); }

 private:
  struct Guard {
    explicit Guard(PeftModel& model) : disabled(model) {}
    PeftModel::DisabledAdapters disabled;
  };
  std::unique_ptr<Guard> guard_;
};

void add_adapters(nb::class_<PeftModel>& model) {
  model
      .def(
          "load_adapter",
          [](PeftModel& self, const std::string& folder, const std::string& name, bool is_trainable,
             const std::string& changed) {
            self.load_adapter(folder, name, adapter_options(name, is_trainable, 0, changed));
          },
          Unlocked())
      .def(
          "add_adapter",
          [](PeftModel& self, const std::string& name, const std::string& config, std::uint64_t seed) {
            self.add_adapter(name, config_of(config), adapter_options(name, false, seed, ""));
          },
          Unlocked())
      .def("set_adapter",
           [](PeftModel& self, const Names& names, bool inference) { self.set_adapter(names, inference); })
      .def("set_requires_grad", [](PeftModel& self, const Names& names, bool on) { self.set_requires_grad(names, on); })
      .def("delete_adapter", &PeftModel::delete_adapter)
      .def(
          "add_weighted_adapter",
          [](PeftModel& self, const Names& adapters, const std::vector<double>& weights, const std::string& name,
             const std::string& type, std::int64_t svd_rank, double density, const std::string& sign_method,
             std::uint64_t seed) {
            self.add_weighted_adapter(adapters, weights, name, {type, svd_rank, density, sign_method, seed});
          },
          Unlocked())
      .def(
          "disable_adapter", [](PeftModel& self) { return new Disabled(self); }, nb::rv_policy::take_ownership)
      .def(
          "merge_adapter",
          [](PeftModel& self, bool safe, bool keep, const Names& names) {
            self.merge_adapter({safe, keep, names});
          },
          Unlocked())
      .def("unmerge_adapter", &PeftModel::unmerge_adapter, Unlocked())
      .def(
          "merge_and_unload",
          [](PeftModel& self, bool safe, const Names& names) {
            return self.merge_and_unload({safe, true, names});
          },
          Unlocked())
      .def("unload", &PeftModel::unload)
      .def("adapter_names", &PeftModel::adapter_names)
      .def("active_adapters", &PeftModel::active_adapters)
      .def("peft_config", [](const PeftModel& self, const std::string& name) { return self.peft_config(name).dump(); })
      .def("state_dict", &PeftModel::state_dict)
      .def("trainable_parameters", &PeftModel::trainable_parameters)
      .def("get_delta_weight", &PeftModel::get_delta_weight, Unlocked());
}

void add_lora(nb::module_& module) {
  nb::class_<Disabled>(module, "Disabled").def("end", &Disabled::end);
  nb::class_<PeftModel> model(module, "PeftModel");
  model
      .def(
          "forward",
          [](const PeftModel& self, const at::Tensor& ids, const at::Tensor& mask, const at::Tensor& positions,
             std::int64_t logits_to_keep, bool want_aux_loss, bool training, const Names& adapter_names) {
            return pair_of(
                self.forward(input_of(ids, mask, positions, logits_to_keep, want_aux_loss), {training, adapter_names}));
          },
          nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), Unlocked())
      .def(
          "logits",
          [](const PeftModel& self, const at::Tensor& ids, const at::Tensor& mask, const Names& adapter_names) {
            return self.logits(ids, mask, {false, adapter_names});
          },
          nb::arg(), nb::arg().none(), nb::arg(), Unlocked())
      .def(
          "generate",
          [](const PeftModel& self, const at::Tensor& ids, const at::Tensor& mask, const nn::GenerateOptions& options,
             const Names& adapter_names) {
            return self.generate(ids, mask, options, {false, adapter_names});
          },
          nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), Unlocked())
      .def(
          "save_pretrained",
          [](const PeftModel& self, const std::string& folder, const Names& adapters, const std::string& initial) {
            self.save_pretrained(folder,
                                 {.selected_adapters = adapters, .path_initial_model_for_weight_conversion = initial});
          },
          Unlocked())
      .def("get_nb_trainable_parameters", &PeftModel::get_nb_trainable_parameters)
      .def("trainable_parameters_line", &PeftModel::trainable_parameters_line)
      .def("warnings", &PeftModel::warnings)
      .def("base", &PeftModel::base);
  add_adapters(model);
  module.def(
      "from_pretrained",
      [](std::shared_ptr<CausalLM> base, const std::string& folder, const std::string& name, bool is_trainable,
         const std::string& changed) {
        return std::shared_ptr<PeftModel>(
            PeftModel::from_pretrained(std::move(base), folder, adapter_options(name, is_trainable, 0, changed)));
      },
      Unlocked());
  module.def(
      "get_peft_model",
      [](std::shared_ptr<CausalLM> base, const std::string& config, const std::string& name, std::uint64_t seed) {
        return std::shared_ptr<PeftModel>(
            nn::get_peft_model(std::move(base), config_of(config), adapter_options(name, false, seed, "")));
      },
      Unlocked());
}

}  // namespace
}  // namespace peft::python

NB_MODULE(_nn, module) {
  nanobind::set_leak_warnings(false);
  module.attr("__version__") = PEFT_VERSION;
  peft::python::add_errors(module);
  peft::python::add_base(module);
  peft::python::add_lora(module);
}
