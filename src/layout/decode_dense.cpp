#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "layout/decode.h"
#include "model/index.h"

namespace peft::layout {

std::string shape_text(std::span<const std::int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

void Context::fail(ErrorCode code, std::uint32_t index, std::string problem, std::string expected, std::string got,
                   std::string hint) const {
  throw Error(code, {.file = adapter.weights->path(),
                     .tensor = std::string(tensor(index).name),
                     .problem = std::move(problem),
                     .expected = std::move(expected),
                     .got = std::move(got),
                     .hint = std::move(hint)});
}

Scale scale_of(const Context& context, std::uint32_t a, std::int64_t rank, const std::string& name) {
  const std::int64_t stated = context.adapter.config.rank_for(name);
  if (stated != rank) {
    context.fail(ErrorCode::LO_RANK, a, "the rank of the tensor is not the one of the config",
                 fmt::format("rank {} for {}", stated, name), fmt::format("rank {}", rank),
                 "does this adapter_config.json belong to this file?");
  }
  return {rank, context.adapter.config.scale_for(name, rank)};
}

namespace {

// Rows are the first dimension, everything else the columns: a convolution's A is [r, in, k, k].
View whole(std::uint32_t index, const TensorInfo& tensor) {
  const std::int64_t rows = tensor.shape.empty() ? 0 : tensor.shape[0];
  std::int64_t cols = tensor.shape.size() < 2 ? 0 : 1;
  for (std::size_t i = 1; i < tensor.shape.size(); ++i) cols *= tensor.shape[i];
  return {0, index, 0, rows, cols, cols, 1};
}

void check_dtype(const Context& context, std::uint32_t index) {
  switch (context.tensor(index).dtype) {
    case Dtype::f64:
    case Dtype::f32:
    case Dtype::bf16:
    case Dtype::f16:
    case Dtype::f8_e4m3:
    case Dtype::f8_e5m2:
      return;
    default:
      context.fail(ErrorCode::ST_DTYPE, index, "LoRA factors of this dtype cannot be read",
                   "F64, F32, BF16, F16, F8_E4M3 or F8_E5M2", std::string(context.tensor(index).dtype_name));
  }
}

void check_weight_shape(const Context& context, const Slot& slot, const Pair& pair, Generation g) {
  const auto& tree = context.model.tree(g);
  if (!tree) return;
  const Module* module = tree->find(slot.module);
  if (module == nullptr || module->weight.size() != 2) return;
  const bool in_out = module->kind == ModuleKind::conv1d || module->kind == ModuleKind::embedding;
  const std::int64_t out = module->weight[in_out ? 1 : 0], in = module->weight[in_out ? 0 : 1];
  if (pair.out == out && pair.in == in) return;
  if (module->kind == ModuleKind::embedding && pair.out == out) {
    context.fail(ErrorCode::LO_VOCAB, slot.a, "the embedding of the model has another number of rows",
                 fmt::format("{} tokens", in), fmt::format("{} tokens", pair.in),
                 "resize the model's embedding as it was when the adapter was trained");
  }
  const bool turned = pair.out == in && pair.in == out;
  // Without a row a Conv1D looks like a Linear; fan_in_fan_out says which it is.
  const bool guessed = context.model.index && !context.model.index->family && !context.model.index->dense;
  if (turned && guessed && context.adapter.config.fan_in_fan_out) return;
  context.fail(
      ErrorCode::LO_SHAPE, slot.a, "the pair does not fit the model's weight",
      fmt::format("A [r, {}], B [{}, r]", in, out),
      fmt::format("A {}, B {}", shape_text(context.tensor(slot.a).shape), shape_text(context.tensor(slot.b).shape)),
      turned ? "transposed it would fit: is fan_in_fan_out set wrongly?" : "is this the right base model?");
}

// Whether any target_parameters entry names `parameter` (PEFT's suffix rule).
bool targets_parameter(const AdapterConfig& config, const std::string& parameter) {
  if (!config.target_parameters) return false;
  return std::any_of(
      config.target_parameters->begin(), config.target_parameters->end(),
      [&](const std::string& target) { return parameter == target || parameter.ends_with("." + target); });
}

}  // namespace

Pair pair_of(const Context& context, const Slot& slot) {
  check_dtype(context, slot.a);
  check_dtype(context, slot.b);
  const TensorInfo& a = context.tensor(slot.a);
  const TensorInfo& b = context.tensor(slot.b);
  Pair pair{whole(slot.a, a), whole(slot.b, b)};
  if (a.shape.size() < 2 || b.shape.size() < 2 || pair.a.rows != pair.b.cols || pair.a.rows == 0 || pair.a.cols == 0 ||
      pair.b.rows == 0) {
    context.fail(ErrorCode::LO_SHAPE, slot.a, "lora_A and lora_B do not fit each other", "A [r, in], B [out, r]",
                 fmt::format("A {}, B {}", shape_text(a.shape), shape_text(b.shape)));
  }
  pair.rank = pair.a.rows;
  pair.in = pair.a.cols;
  pair.out = pair.b.rows;
  return pair;
}

namespace {

void add_extras(Context& context, const Slot& slot, const Site& site) {
  if (slot.magnitude != kNoTensor) {
    context.reading.factors.extras.push_back({ExtraKind::magnitude, site, "lora_magnitude_vector", slot.magnitude});
  }
  if (slot.b_bias != kNoTensor) {
    context.reading.factors.extras.push_back({ExtraKind::lora_bias, site, "lora_B.bias", slot.b_bias});
  }
}

}  // namespace

void decode_dense(Context& context, const Slot& slot) {
  const std::string module(slot.module);
  const auto in_v4 = context.model.has(Generation::v4, module), in_v5 = context.model.has(Generation::v5, module);
  const bool v4 = in_v4.value_or(false) || !in_v4, v5 = in_v5.value_or(false) || !in_v5;
  const bool absent = (in_v4 || in_v5) && !in_v4.value_or(false) && !in_v5.value_or(false);
  if (absent || (!v4 && !v5)) {
    for (const std::uint32_t part : {slot.a, slot.b, slot.b_bias, slot.magnitude}) {
      if (part == kNoTensor) continue;
      context.unused.push_back(
          {std::string(context.tensor(part).name), ErrorCode::LO_TARGET, "the model has no module " + module});
    }
    return;
  }
  const Pair pair = pair_of(context, slot);
  const bool parameter = targets_parameter(context.adapter.config, module + ".weight");
  const Scale scale = scale_of(context, slot.a, pair.rank, parameter ? module + ".weight" : module);
  check_weight_shape(context, slot, pair, in_v5.value_or(false) ? Generation::v5 : Generation::v4);
  Factor factor;
  factor.site.module = context.model.rename(module, Generation::v4, Generation::v5);
  factor.kind = slot.embedding ? FactorKind::embedding : FactorKind::linear;
  factor.out = pair.out, factor.in = pair.in, factor.rank = pair.rank;
  factor.scale = scale.scale;
  factor.a = pair.a, factor.b = pair.b;
  add_extras(context, slot, factor.site);
  context.reading.factors.factors.push_back(std::move(factor));
}

void decode_per_expert(Context& context, const Slot& slot, const Model::Located& located) {
  const Pair pair = pair_of(context, slot);
  const Experts& experts = *located.experts;
  const bool down = located.projection == Projection::down;
  const std::int64_t in = down ? experts.intermediate : experts.hidden;
  const std::int64_t out = down ? experts.hidden : experts.intermediate;
  if ((in != 0 && in != pair.in) || (out != 0 && out != pair.out)) {
    context.fail(
        ErrorCode::LO_SHAPE, slot.a, "the pair does not fit the expert's projection",
        fmt::format("A [r, {}], B [{}, r]", in, out),
        fmt::format("A {}, B {}", shape_text(context.tensor(slot.a).shape), shape_text(context.tensor(slot.b).shape)),
        "is this the right base model?");
  }
  Factor factor;
  factor.site = {experts.v5_module.empty() ? experts.v4_module : experts.v5_module, "", located.expert,
                 located.projection};
  factor.out = pair.out, factor.in = pair.in, factor.rank = pair.rank;
  factor.scale = scale_of(context, slot.a, pair.rank, std::string(slot.module)).scale;
  factor.a = pair.a, factor.b = pair.b;
  add_extras(context, slot, factor.site);
  context.reading.factors.factors.push_back(std::move(factor));
}

}  // namespace peft::layout
