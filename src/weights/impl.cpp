#include "weights/impl.h"

#include <algorithm>
#include <functional>

#include "base/checked.h"
#include "model/families/index.h"
#include "model/path.h"
#include "peft/error.h"

namespace peft::weights {
namespace {

const model::Family* family_of(const Model& model) { return model.index ? model.index->family.get() : nullptr; }

bool is_known(const Model& model, const std::string& module) {
  return model.index && model.index->find_known(Generation::v5, module) != nullptr;
}

std::string joined(const std::string& module, const std::string& parameter) {
  return module.empty() ? parameter : module + "." + parameter;
}

}  // namespace

std::size_t TensorNameHash::operator()(const TensorName& name) const {
  const std::hash<std::string_view> text;
  std::size_t hash = text(name.module);
  for (const std::size_t part :
       {text(name.parameter), static_cast<std::size_t>(name.expert + 1), static_cast<std::size_t>(name.projection)}) {
    hash ^= part + 0x9e3779b97f4a7c15 + (hash << 6) + (hash >> 2);
  }
  return hash;
}

TensorNames::TensorNames(const Model& model, const Checkpoint& checkpoint) : model_(model), disk_(family_of(model)) {
  const auto& tensors = checkpoint.tensors();
  names_.reserve(tensors.size());
  by_name_.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    names_.push_back(parse(std::string(tensors[i].tensor->name)));
    add(names_.back(), i);
  }
  // A tensor is also found under its own name, unless another tensor has that name.
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::string_view name = tensors[i].tensor->name;
    add({std::string(model::parent(name)), std::string(model::leaf(name))}, i);
  }
}

// Finds experts in the spelling of either generation; also "….input_linear.weight", another name of all experts
// together.
bool TensorNames::locate(const std::string& module, const std::string& parameter, TensorName& name) const {
  const auto located = model_.locate(module);
  if (!located) return false;
  name = {experts_module(*located->experts), parameter, located->expert, located->projection};
  // A module of one parameter stands for itself: its sibling has a parameter of the same name.
  if (located->expert < 0 && located->fused != nullptr) name.module = module;
  return true;
}

TensorName TensorNames::parse(const std::string& name) const {
  const std::string module(model::parent(name)), parameter(model::leaf(name));
  TensorName result{module, parameter};
  try {
    if (locate(module, parameter, result)) return result;
    if (is_known(model_, module)) return result;
    const std::string renamed = model_.rename(module, Generation::v4, Generation::v5);
    if (renamed != module && is_known(model_, renamed)) return {renamed, parameter};
    const std::string ruled = disk_.to_v5(name);
    if (ruled == name) return {renamed, parameter};
    result = {std::string(model::parent(ruled)), std::string(model::leaf(ruled))};
    TensorName experts;
    if (locate(result.module, result.parameter, experts)) return experts;
    return renamed == module || is_known(model_, result.module) ? result : TensorName{renamed, parameter};
  } catch (const Error&) {
    return {module, parameter};  // an expert that the config does not have: an unexpected tensor, not an error
  }
}

std::optional<std::size_t> TensorNames::find(const TensorName& name) const {
  const auto found = by_name_.find(name);
  if (found != by_name_.end()) return found->second;
  if (name.expert >= 0 && name.projection != Projection::none) return std::nullopt;
  for (const std::string& other : disk_.other_prefixes(joined(name.module, name.parameter))) {
    const auto again = by_name_.find(TensorName{std::string(model::parent(other)), std::string(model::leaf(other))});
    if (again != by_name_.end()) return again->second;
  }
  for (const std::string& other : model::other_names(model_, name.module)) {
    const auto again = by_name_.find(TensorName{other, name.parameter});
    if (again != by_name_.end()) return again->second;
  }
  return std::nullopt;
}

}  // namespace peft::weights

namespace peft {
namespace {

constexpr std::int64_t kGroup = 32;  // values under one scale of mxfp4
constexpr std::int64_t kGroupBytes = 16;

std::int64_t product(std::span<const std::int64_t> shape) {
  std::int64_t result = 1;
  for (const std::int64_t size : shape) result *= size;  // no overflow: the header was checked
  return result;
}

std::int64_t ceil_div(std::int64_t size, std::int64_t part) { return size / part + (size % part != 0 ? 1 : 0); }

// The rows of one of several projections that share a matrix.
View rows_of(const View& view, std::int64_t which, std::int64_t parts, bool interleaved) {
  const std::int64_t rows = view.rows / parts;
  return interleaved ? view.row_range(which, rows, parts) : view.row_range(which * rows, rows);
}

std::int64_t index_of(const std::vector<Projection>& list, Projection projection) {
  return static_cast<std::int64_t>(std::find(list.begin(), list.end(), projection) - list.begin());
}

}  // namespace

using weights::TensorName;

const Experts* Weights::Impl::experts_at(const std::string& module) const {
  const auto find = [&](const std::string& path) -> const Experts* {
    for (const Experts& experts : model.experts) {
      if (experts_module(experts) == path || experts.v4_module == path) return &experts;
    }
    return nullptr;
  };
  if (const Experts* found = find(module)) return found;
  for (const std::string& other : names.disk_names().other_prefixes(module)) {
    if (const Experts* found = find(other)) return found;
  }
  return nullptr;
}

std::optional<WeightPart> Weights::Impl::part_of(const TensorName& name) const {
  const auto index = names.find(name);
  if (!index) return std::nullopt;
  const Checkpoint::Entry& entry = checkpoint.tensors()[*index];
  const auto tensors = checkpoint.files()[entry.file]->tensors();
  WeightPart part;
  part.name = entry.tensor->name;
  part.view.source = entry.file;
  part.view.tensor = static_cast<std::uint32_t>(entry.tensor - tensors.data());
  if (entry.tensor->dtype == Dtype::f8_e4m3 || entry.tensor->dtype == Dtype::f8_e5m2)
    part.scales = block_scales(name, part);
  return part;
}

// One tensor of scales, as a view of it all.
std::optional<View> Weights::Impl::grid(const TensorName& name, std::int64_t cols) const {
  const auto index = names.find(name);
  if (!index) return std::nullopt;
  const Checkpoint::Entry& entry = checkpoint.tensors()[*index];
  const auto number = static_cast<std::uint32_t>(entry.tensor - checkpoint.files()[entry.file]->tensors().data());
  const std::int64_t all = product(entry.tensor->shape);
  if (cols <= 0 || all == 0 || all % cols != 0) return std::nullopt;
  return View{entry.file, number, 0, all / cols, cols, cols, 1};
}

// A grid of scales over the last two dimensions. Where they fit, its cells have weight_block_size and start at the
// corner, and the last ones are cut, as DeepSeek made them and the kernels of transformers read them. Otherwise a cell
// has rows / grid rows by columns / grid columns. transformers 5.24 always divides when it dequantises; that gives
// another model where both rules fit, as with 448 rows in 4 cells of 128.
std::optional<Scales> Weights::Impl::block_scales(const TensorName& name, const WeightPart& part) const {
  TensorName scales_name = name;
  scales_name.parameter += "_scale_inv";
  const auto index = names.find(scales_name);
  if (!index) return std::nullopt;
  const auto shape = tensor(part).shape, cells = checkpoint.tensors()[*index].tensor->shape;
  if (shape.size() < 2 || cells.size() != shape.size()) return std::nullopt;
  const std::size_t last = shape.size() - 1;
  const auto cell = [&](std::size_t dimension) -> std::int64_t {
    const std::int64_t size = shape[dimension], count = cells[dimension],
                       whole = model.fp8_cell[dimension == last ? 1 : 0];
    if (ceil_div(size, whole) == count) {
      // Of stacked matrices all cells of rows are whole: the next matrix has its own.
      const bool fits = size % whole == 0 || count == 1 || dimension == last || last == 1;
      return fits ? std::min(size, whole) : 0;
    }
    return count > 0 && size % count == 0 ? size / count : 0;
  };
  const auto view = grid(scales_name, cells[last]);
  if (!view || !std::equal(shape.begin(), shape.end() - 2, cells.begin()) || cell(last) == 0 || cell(last - 1) == 0) {
    return std::nullopt;
  }
  return Scales{Scales::Kind::fp8, *view, shape[last], cell(last - 1), cell(last)};
}

std::optional<WeightPart> Weights::Impl::whole(const TensorName& name, bool first_dimension_alone) const {
  auto part = part_of(name);
  if (!part) return std::nullopt;
  const auto shape = tensor(*part).shape;
  const std::int64_t all = product(shape);
  const std::int64_t edge = shape.empty() ? 1 : first_dimension_alone ? shape.front() : shape.back();
  const std::int64_t other = edge == 0 ? 0 : all / edge;
  const bool vector = shape.size() < 2;
  part->view.rows = vector ? 1 : first_dimension_alone ? edge : other;
  part->view.cols = vector ? all : first_dimension_alone ? other : edge;
  part->view.row_stride = part->view.cols;
  part->view.col_stride = 1;
  return part;
}

std::optional<Weights::Impl::Stack> Weights::Impl::stack(const std::string& module,
                                                         const std::string& parameter) const {
  if (auto part = part_of({module, parameter})) {
    const auto shape = tensor(*part).shape;
    if (shape.size() != 3) return std::nullopt;
    return Stack{std::move(*part), shape[0], shape[1], shape[2], false};
  }
  auto blocks = part_of({module, parameter + "_blocks"});
  auto scales = part_of({module, parameter + "_scales"});
  if (!blocks || !scales) return std::nullopt;
  const auto shape = tensor(*blocks).shape;
  const auto cells = tensor(*scales).shape;
  const bool fits = shape.size() == 4 && shape[3] == kGroupBytes && tensor(*blocks).dtype == Dtype::u8 &&
                    tensor(*scales).dtype == Dtype::u8 && std::ranges::equal(cells, shape.first(3));
  const auto cols = fits ? checked_mul(shape[2], kGroup) : std::nullopt;
  if (!cols) return std::nullopt;
  const auto view = grid({module, parameter + "_scales"}, shape[2]);
  if (!view) return std::nullopt;
  blocks->scales = Scales{Scales::Kind::mxfp4, *view, *cols, 1, kGroup};
  return Stack{std::move(*blocks), shape[0], shape[1], *cols, true};
}

std::optional<Weight> Weights::Impl::cut(Stack stack, std::int64_t expert, std::int64_t which, std::int64_t parts,
                                         bool interleaved, bool in_out) {
  if (expert >= stack.experts) return std::nullopt;
  View& view = stack.part.view;
  view.offset = expert * stack.rows * stack.cols;
  view.rows = stack.rows, view.cols = stack.cols;
  view.row_stride = stack.cols, view.col_stride = 1;
  if (in_out && !stack.out_in) view = view.transposed();
  if (view.rows % parts != 0) return std::nullopt;
  view = rows_of(view, which, parts, interleaved);
  return Weight::of(std::move(stack.part));
}

std::optional<Weight> Weights::Impl::from_stack(const Experts& experts, Generation g, std::int64_t expert,
                                                Projection projection) const {
  for (const ExpertsForm::Fused& parameter : g == Generation::v4 ? experts.form->v4 : experts.form->v5) {
    const auto& list = parameter.projections;
    const std::int64_t which = index_of(list, projection), parts = static_cast<std::int64_t>(list.size());
    if (experts.module(g).empty() || which == parts) continue;
    const std::string module = experts.fused_module(g, parameter);
    const auto take = [&](const std::string& mark, std::int64_t of, bool interleaved,
                          bool in_out) -> std::optional<Weight> {
      auto found = stack(module, parameter.name + mark);
      return found ? cut(std::move(*found), expert, of == 1 ? 0 : which, of, interleaved, in_out) : std::nullopt;
    };
    if (auto weight = take("", parts, parameter.interleaved, parameter.in_out)) return weight;
    if (auto weight = take("#interleaved", parts, true, parameter.in_out)) return weight;
    if (auto weight = take("#turned", parts, parameter.interleaved, !parameter.in_out)) return weight;
    if (auto weight = take("#" + std::to_string(which), 1, false, parameter.in_out)) return weight;
  }
  return std::nullopt;
}

std::optional<Weight> Weights::Impl::pieces(const TensorName& name) const {
  if (auto turned = whole({name.module, name.parameter + "#turned"}, true)) {
    turned->view = turned->view.transposed();
    return Weight::of(std::move(*turned));
  }
  Weight weight;
  while (auto piece = whole({name.module, name.parameter + "#" + std::to_string(weight.parts.size())}, true)) {
    if (!weight.parts.empty() && piece->view.cols != weight.in) return std::nullopt;
    piece->row = weight.out;
    weight.out += piece->view.rows;
    weight.in = piece->view.cols;
    weight.parts.push_back(std::move(*piece));
  }
  return weight.parts.size() > 1 ? std::optional(std::move(weight)) : std::nullopt;
}

std::optional<Weight> Weights::Impl::expert(const Experts& experts, std::int64_t expert, Projection projection) const {
  if (auto own = whole({experts_module(experts), "weight", expert, projection}, true))
    return Weight::of(std::move(*own));
  const bool v4_first = model.base_is_v4_only;
  for (const Generation g : {v4_first ? Generation::v4 : Generation::v5, v4_first ? Generation::v5 : Generation::v4}) {
    if (auto weight = from_stack(experts, g, expert, projection)) return weight;
  }
  return std::nullopt;
}

std::optional<Weight> Weights::Impl::expert_bias(const Experts& experts, std::int64_t expert,
                                                 Projection projection) const {
  if (auto own = whole({experts_module(experts), "bias", expert, projection}, false))
    return Weight::of(std::move(*own));
  for (const ExpertsForm::Fused& parameter : experts.form->v5) {
    const auto& list = parameter.projections;
    const std::int64_t which = index_of(list, projection), parts = static_cast<std::int64_t>(list.size());
    if (which == parts) continue;
    auto all = whole({experts.fused_module(Generation::v5, parameter), parameter.name + "_bias"}, false);
    if (!all || expert >= all->view.rows) continue;
    all->view = rows_of(all->view.row_range(expert, 1).transposed(), which, parts, parameter.interleaved).transposed();
    return Weight::of(std::move(*all));
  }
  return std::nullopt;
}

std::optional<QuantizedTensor> Weights::Impl::packed(const std::string& module, const std::string& parameter) const {
  auto found = stack(module, parameter);
  if (!found || !found->part.scales || found->part.scales->kind != Scales::Kind::mxfp4) return std::nullopt;
  const std::int64_t rows = found->rows, cols = found->cols;
  View all = found->part.view;
  all.rows = rows * found->experts, all.cols = cols;
  all.row_stride = cols, all.col_stride = 1;
  QuantizedTensor tensor{parameter, {found->experts, cols, rows}, {}, {}, true};
  for (std::int64_t e = 0; e < found->experts; ++e) {
    tensor.blocks.push_back({e * cols, 0, 1, all.row_range(e * rows, rows).transposed(), 1, found->part.scales});
  }
  tensor.codes = std::move(found->part);
  tensor.codes.view = all;
  return tensor;
}

}  // namespace peft
