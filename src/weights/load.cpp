#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/float_formats.h"
#include "model/path.h"
#include "peft/error.h"
#include "weights/impl.h"

namespace peft {
namespace {

using weights::TensorName;

std::string shape_text(std::span<const std::int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

class Loader {
 public:
  Loader(const Weights::Impl& weights, Loading& loading) : weights_(weights), loading_(loading) {
    used_.resize(weights.checkpoint.files().size());
  }

  void fill(const WantedParameter& wanted) {
    PlannedTensor planned;
    planned.name = wanted.name;
    planned.dtype = wanted.dtype;
    planned.shape = wanted.shape;
    planned.rows = 1;
    for (std::size_t i = 0; i + 1 < wanted.shape.size(); ++i) planned.rows *= wanted.shape[i];
    planned.cols = wanted.shape.empty() ? 1 : wanted.shape.back();
    if (copy(wanted, planned) || gather(wanted, planned) || join(wanted, planned)) {
      loading_.tensors.push_back(std::move(planned));
    } else {
      loading_.missing.push_back(wanted.name);
    }
  }

  void finish() {
    for (const Checkpoint::Entry& entry : weights_.checkpoint.tensors()) {
      const auto number =
          static_cast<std::uint32_t>(entry.tensor - weights_.checkpoint.files()[entry.file]->tensors().data());
      if (used_[entry.file].contains(number)) continue;
      const std::string name(entry.tensor->name);
      const bool ignored = weights_.names.disk_names().is_ignored(name);
      (ignored ? loading_.ignored : loading_.unexpected).push_back(name);
    }
  }

 private:
  void use(const WeightPart& part) {
    require_values(part);
    used_[part.view.source].insert(part.view.tensor);
    if (part.scales) used_[part.scales->grid.source].insert(part.scales->grid.tensor);
  }

  // Codes without their scales are numbers too, and would load as weights.
  void require_values(const WeightPart& part) const {
    const TensorInfo& tensor = weights_.tensor(part);
    if (part.scales || is_plain_float(tensor.dtype)) return;
    throw Error(ErrorCode::LO_QUANT,
                {.file = weights_.checkpoint.files()[part.view.source]->path(),
                 .tensor = part.name,
                 .problem = "the weight is packed in a form that is not read, or its scales are not there",
                 .expected = "BF16, F16, F32, MXFP4 or block FP8 (weight_scale_inv)",
                 .got = std::string(tensor.dtype_name),
                 .hint = "load the model that it was quantised from"});
  }

  [[noreturn]] void fail(const WeightPart& part, const std::string& expected, const std::string& got) const {
    throw Error(ErrorCode::LO_SHAPE, {.file = weights_.checkpoint.files()[part.view.source]->path(),
                                      .tensor = part.name,
                                      .problem = "the tensor has another shape than the model's parameter",
                                      .expected = expected,
                                      .got = got,
                                      .hint = "do config.json and the weights belong together?"});
  }

  // The parameter as the checkpoint has it, whole.
  bool copy(const WantedParameter& wanted, PlannedTensor& planned) {
    const TensorName name{std::string(model::parent(wanted.name)), std::string(model::leaf(wanted.name))};
    const Experts* experts = weights_.experts_at(name.module);
    const auto part = weights_.whole(name, false);
    if (!part) return false;
    const auto shape = weights_.tensor(*part).shape;
    if (!std::ranges::equal(shape, wanted.shape)) {
      if (experts != nullptr) return false;  // qwen3_vl_moe of transformers 4 lies the other way round
      fail(*part, shape_text(wanted.shape), shape_text(shape));
    }
    const bool turned = experts != nullptr && weights_.model.base_is_v4_only && !experts->form->v4.empty();
    if (turned) return false;
    use(*part);
    planned.blocks.push_back({0, 0, 1, part->view, 1, part->scales});
    return true;
  }

  // A parameter of all experts from one tensor for each, or from one that lies otherwise.
  bool gather(const WantedParameter& wanted, PlannedTensor& planned) {
    const std::string module(model::parent(wanted.name)), name(model::leaf(wanted.name));
    const Experts* experts = weights_.experts_at(module);
    if (experts == nullptr || wanted.shape.size() != 3) return false;
    for (const ExpertsForm::Fused& parameter : experts->form->v5) {
      if (parameter.name == name && !parameter.projections.empty()) return gather(*experts, parameter, planned);
    }
    return false;
  }

  bool gather(const Experts& experts, const ExpertsForm::Fused& parameter, PlannedTensor& planned) {
    const std::int64_t d1 = planned.shape[1], d2 = planned.shape[2];
    const std::int64_t out = parameter.in_out ? d2 : d1, in = parameter.in_out ? d1 : d2;
    const auto parts = static_cast<std::int64_t>(parameter.projections.size());
    std::vector<WeightPart> used;
    for (std::int64_t e = 0; e < planned.shape[0]; ++e) {
      for (std::int64_t p = 0; p < parts; ++p) {
        const auto weight = weights_.expert(experts, e, parameter.projections[static_cast<std::size_t>(p)]);
        if (!weight) return false;
        const WeightPart& part = weight->parts.front();
        if (weight->out * parts != out || weight->in != in) {
          fail(part, fmt::format("[{}, {}] for expert {}", out / parts, in, e),
               fmt::format("[{}, {}]", weight->out, weight->in));
        }
        const std::int64_t first = parameter.interleaved ? p : p * weight->out;
        if (parameter.in_out) {
          planned.blocks.push_back(
              {e * d1, first, parameter.interleaved ? parts : 1, part.view.transposed(), 1, part.scales});
        } else {
          planned.blocks.push_back({e * d1 + first, 0, 1, part.view, 1, part.scales});
        }
        used.push_back(part);
      }
    }
    for (const WeightPart& part : used) use(part);
    return true;
  }

  // A matrix that the checkpoint keeps in pieces, or as its transpose.
  bool join(const WantedParameter& wanted, PlannedTensor& planned) {
    if (wanted.shape.size() != 2) return false;
    const auto weight =
        weights_.pieces({std::string(model::parent(wanted.name)), std::string(model::leaf(wanted.name))});
    if (!weight) return false;
    if (weight->out != planned.rows || weight->in != planned.cols) {
      fail(weight->parts.front(), shape_text(wanted.shape), fmt::format("[{}, {}]", weight->out, weight->in));
    }
    for (const WeightPart& part : weight->parts) {
      planned.blocks.push_back({part.row, 0, 1, part.view, 1, part.scales});
      use(part);
    }
    return true;
  }

  const Weights::Impl& weights_;
  Loading& loading_;
  std::vector<std::set<std::uint32_t>> used_;
};

}  // namespace

Loading Weights::load(std::span<const WantedParameter> wanted) const {
  Loading loading;
  Loader loader(*impl_, loading);
  for (const WantedParameter& parameter : wanted) loader.fill(parameter);
  loader.finish();
  return loading;
}

}  // namespace peft
