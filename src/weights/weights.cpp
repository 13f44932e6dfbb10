#include "peft/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <vector>

#include "adapter/view_math.h"
#include "base/float_formats.h"
#include "base/text.h"
#include "model/path.h"
#include "peft/error.h"
#include "weights/impl.h"

namespace peft {
namespace {

using weights::TensorName;

bool is_stored_turned(std::optional<ModuleKind> kind) {
  return kind == ModuleKind::conv1d || kind == ModuleKind::embedding;
}

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

  // Codes without their scales are numbers too. They would load as wrong weights, so they are refused.
  void require_values(const WeightPart& part) const {
    const TensorInfo& tensor = weights_.tensor(part);
    if (part.scales || is_plain_float(tensor.dtype)) return;
    at(weights_.checkpoint.files()[part.view.source]->path(), part.name)
        .fail(ErrorCode::LO_QUANT,
              {.problem = "the weight is packed in a form that is not read, or its scales are not there",
               .expected = "BF16, F16, F32, MXFP4 or block FP8 (weight_scale_inv)",
               .got = std::string(tensor.dtype_name),
               .hint = "load the model that it was quantised from"});
  }

  [[noreturn]] void fail(const WeightPart& part, const std::string& expected, const std::string& got) const {
    at(weights_.checkpoint.files()[part.view.source]->path(), part.name)
        .fail(ErrorCode::LO_SHAPE, {.problem = "the tensor has another shape than the model's parameter",
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
      if (experts != nullptr) return false;  // qwen3_vl_moe of transformers 4 is stored transposed
      fail(*part, shape_text(wanted.shape), shape_text(shape));
    }
    const bool turned = experts != nullptr && weights_.model.base_is_v4_only && !experts->form->v4.empty();
    if (turned) return false;
    use(*part);
    planned.blocks.push_back({0, 0, 1, part->view, 1, part->scales});
    return true;
  }

  // A parameter of all experts, from one tensor for each expert or from one that is stored another way.
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

using adapter::Matrix;

constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;

bool same_rows(const Matrix& x, const Matrix& y) {
  if (x.dtype == y.dtype) return adapter::equal(x, y);
  if (!is_plain_float(x.dtype) || !is_plain_float(y.dtype)) return false;
  std::vector<double> vx(static_cast<std::size_t>(x.rows * x.cols)), vy(vx.size());
  adapter::read(x, vx);
  adapter::read(y, vy);
  return vx == vy;
}

}  // namespace

Weights::Weights(const Model& model, const Checkpoint& checkpoint) : impl_(std::make_unique<Impl>(model, checkpoint)) {}
Weights::~Weights() = default;
Weights::Weights(Weights&&) noexcept = default;

std::optional<Weight> Weights::find(std::string_view module, std::string_view parameter) const {
  auto part = impl_->whole({std::string(module), std::string(parameter)}, false);
  if (!part) return std::nullopt;
  return Weight::of(std::move(*part));
}

std::optional<Weight> Weights::find(const Site& site) const {
  if (site.expert >= 0 && site.projection != Projection::none) {
    const Experts* experts = impl_->experts_at(site.module);
    if (experts == nullptr) return std::nullopt;
    if (site.parameter == "bias") return impl_->expert_bias(*experts, site.expert, site.projection);
    return impl_->expert(*experts, site.expert, site.projection);
  }
  const std::string parameter = site.parameter.empty() ? "weight" : site.parameter;
  auto part = impl_->whole({site.module, parameter}, site.parameter.empty());
  if (!part) return impl_->pieces({site.module, parameter});
  if (site.expert >= 0) {  // one expert of a parameter that is no projection: [E, d1, d2]
    const auto shape = impl_->tensor(*part).shape;
    if (shape.size() != 3 || site.expert >= shape[0]) return std::nullopt;
    part->view = part->view.row_range(site.expert * shape[1], shape[1]);
  }
  if (site.parameter.empty()) {
    auto kind = impl_->model.kind(Generation::v5, site.module);
    if (!kind) {
      kind = impl_->model.kind(Generation::v4, impl_->model.rename(site.module, Generation::v5, Generation::v4));
    }
    if (is_stored_turned(kind)) part->view = part->view.transposed();
  }
  return Weight::of(std::move(*part));
}

std::vector<QuantizedTensor> Weights::quantized() const {
  constexpr std::string_view kBlocks = "_blocks";
  std::vector<QuantizedTensor> found;
  for (std::size_t i = 0; i < impl_->checkpoint.tensors().size(); ++i) {
    const std::string own(impl_->checkpoint.tensors()[i].tensor->name);
    const TensorName& name = impl_->names.name(i);
    if (name.parameter.ends_with(kBlocks)) {
      auto tensor = impl_->packed(name.module, name.parameter.substr(0, name.parameter.size() - kBlocks.size()));
      if (!tensor || tensor->codes.name != own) continue;
      tensor->name = own.substr(0, own.size() - kBlocks.size());
      found.push_back(std::move(*tensor));
    } else if (auto part = impl_->whole(name, false); part && part->scales && part->name == own) {
      const auto shape = impl_->tensor(*part).shape;
      QuantizedTensor tensor{own, {shape.begin(), shape.end()}, {{0, 0, 1, part->view, 1, part->scales}}, {}, false};
      tensor.codes = std::move(*part);
      found.push_back(std::move(tensor));
    }
  }
  return found;
}

std::vector<std::string> Weights::near(const std::string& module) const {
  std::set<std::string> modules;
  for (std::size_t i = 0; i < impl_->checkpoint.tensors().size(); ++i) modules.insert(impl_->names.name(i).module);
  const std::vector<std::string> list(modules.begin(), modules.end());
  return near_names(module, list);
}

Loading Weights::load(std::span<const WantedParameter> wanted) const {
  Loading loading;
  Loader loader(*impl_, loading);
  for (const WantedParameter& parameter : wanted) loader.fill(parameter);
  loader.finish();
  return loading;
}

bool Weights::has_own_output() const {
  const Model& model = impl_->model;
  const Checkpoint& checkpoint = impl_->checkpoint;
  const auto& tree = model.v5 ? model.v5 : model.v4;
  if (!model.tie_word_embeddings || !tree || tree->output_embedding.empty() || tree->input_embedding.empty())
    return false;
  const auto output = find(tree->output_embedding, "weight"), input = find(tree->input_embedding, "weight");
  if (!output || !input) return false;
  if (output->out != input->out || output->in != input->in) return true;
  const WeightPart &of_x = output->parts.front(), &of_y = input->parts.front();
  if (of_x.scales || of_y.scales) return true;
  const TensorFile &file_x = *checkpoint.files()[of_x.view.source], &file_y = *checkpoint.files()[of_y.view.source];
  const Matrix x = adapter::bind(file_x, of_x.view), y = adapter::bind(file_y, of_y.view);
  const auto release = [](const TensorFile& file, const View& view, const Matrix& matrix, std::int64_t end) {
    const TensorInfo& tensor = file.tensors()[view.tensor];
    file.release(tensor.begin, tensor.begin + static_cast<std::uint64_t>(end * matrix.cols * matrix.width));
  };
  const std::int64_t piece = std::max<std::int64_t>(1, kPieceBytes / std::max<std::int64_t>(1, x.cols * 8));
  bool same = true;
  for (std::int64_t first = 0; first < x.rows && same; first += piece) {
    const std::int64_t count = std::min(piece, x.rows - first);
    same = same_rows(x.row_range(first, count), y.row_range(first, count));
    release(file_x, of_x.view, x, first + count);  // the pages that were read are not needed any more
    release(file_y, of_y.view, y, first + count);
  }
  return !same;
}

std::string own_output_text(const std::string& config) {
  return config +
         " says tie_word_embeddings = true, and the output embedding in the file has other values "
         "than the input embedding: both are used, as transformers 5 does (transformers 4 would tie them)";
}

}  // namespace peft
