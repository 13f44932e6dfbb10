#include "layout/decode/context.h"

#include <fmt/format.h>

#include "base/text.h"

namespace peft::layout {
namespace {

// Rows are the first dimension, everything else the columns: a convolution's A is [r, in, k, k].
View whole(std::uint32_t index, const TensorInfo& tensor) {
  const std::int64_t rows = tensor.shape.empty() ? 0 : tensor.shape[0];
  std::int64_t cols = tensor.shape.size() < 2 ? 0 : 1;
  for (std::size_t i = 1; i < tensor.shape.size(); ++i) cols *= tensor.shape[i];
  return {0, index, 0, rows, cols, cols, 1};
}

// Of [rows, columns] or [1, rows, columns].
View last_two(std::uint32_t index, const TensorInfo& tensor) {
  if (tensor.shape.size() < 2) return {0, index, 0, 0, 0, 0, 1};
  const std::int64_t rows = tensor.shape[tensor.shape.size() - 2], cols = tensor.shape.back();
  return {0, index, 0, rows, cols, cols, 1};
}

}  // namespace

void Context::leave_out(const Slot& slot, ErrorCode code, const std::string& reason) {
  for (const std::uint32_t part : {slot.a, slot.b, slot.b_bias, slot.magnitude}) {
    if (part != kNoTensor) unused.push_back({std::string(tensor(part).name), code, reason});
  }
}

void require_readable(const Context& context, std::uint32_t index) {
  switch (context.tensor(index).dtype) {
    case Dtype::f64:
    case Dtype::f32:
    case Dtype::bf16:
    case Dtype::f16:
    case Dtype::f8_e4m3:
    case Dtype::f8_e5m2:
      return;
    default:
      context.at(index).fail(ErrorCode::ST_DTYPE, {.problem = "LoRA factors of this dtype cannot be read",
                                                   .expected = "F64, F32, BF16, F16, F8_E4M3 or F8_E5M2",
                                                   .got = std::string(context.tensor(index).dtype_name)});
  }
}

std::pair<AdapterConfig::Version, std::string> writing_version(const Context& context) {
  const std::string& marker = context.adapter.wrapper_layout;
  if (marker.empty()) return context.adapter.config.likely_version();
  const AdapterConfig::Version version =
      marker == "peft-0.18" ? AdapterConfig::Version{0, 18, 1} : AdapterConfig::Version{0, 19, 1};
  return {version, "automodel_peft_config.json says paramwrapper_layout = " + marker};
}

Scale scale_of(const Context& context, std::uint32_t a, std::int64_t rank, const std::string& name) {
  const std::int64_t stated = context.adapter.config.rank_for(name);
  if (stated != rank) {
    context.at(a).fail(ErrorCode::LO_RANK, {.problem = "the rank of the tensor is not the one of the config",
                                            .expected = fmt::format("rank {} for {}", stated, name),
                                            .got = fmt::format("rank {}", rank),
                                            .hint = "does this adapter_config.json belong to this file?"});
  }
  return {rank, context.adapter.config.scale_for(name, rank)};
}

Pair pair_of(const Context& context, const Slot& slot) {
  require_readable(context, slot.a);
  require_readable(context, slot.b);
  const TensorInfo& a = context.tensor(slot.a);
  const TensorInfo& b = context.tensor(slot.b);
  Pair pair{slot.outer ? last_two(slot.a, a) : whole(slot.a, a), slot.outer ? last_two(slot.b, b) : whole(slot.b, b)};
  if (a.shape.size() < 2 || b.shape.size() < 2 || pair.a.rows != pair.b.cols || pair.a.rows == 0 || pair.a.cols == 0 ||
      pair.b.rows == 0) {
    context.at(slot.a).fail(ErrorCode::LO_SHAPE,
                            {.problem = "lora_A and lora_B do not fit each other",
                             .expected = "A [r, in], B [out, r]",
                             .got = fmt::format("A {}, B {}", shape_text(a.shape), shape_text(b.shape))});
  }
  pair.rank = pair.a.rows;
  pair.in = pair.a.cols;
  pair.out = pair.b.rows;
  return pair;
}

}  // namespace peft::layout
