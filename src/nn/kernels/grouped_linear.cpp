#include "nn/kernels/grouped_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "nn/kernels/cpu.h"

#if !defined(INTRA_OP_PARALLEL) && !defined(PEFT_NO_OPENMP)
#error "at::parallel_for would run on one thread: the build has to give -fopenmp"
#endif

namespace peft::nn {
namespace {

// Up to this many rows, reading the weights takes the time: own loops beat a matrix product.
constexpr std::int64_t kFewRows = 4;
// A second thread pays off from this many elements of a weight on.
constexpr std::int64_t kGrain = 1 << 15;

// The kernels take fp32, or bfloat16 weights with activations that are widened first.
bool has_kernel(const Tensor& x, const Tensor& weight) {
  const at::ScalarType dtype = weight.scalar_type();
  return !at::GradMode::is_enabled() && weight.device().is_cpu() && x.scalar_type() == dtype &&
         (dtype == at::kFloat || dtype == at::kBFloat16) && weight.stride(-1) == 1;
}

struct Matvec {
  const Tensor& weight;  // its last two dimensions are [out, in]
  std::int64_t out, in, stride;
  explicit Matvec(const Tensor& w) : weight(w), out(w.size(-2)), in(w.size(-1)), stride(w.stride(-2)) {}

  // Rows [first, first + count) of the matrix at `offset` elements.
  void run(std::int64_t offset, std::int64_t first, std::int64_t count, const float* x, float* y) const {
    const std::int64_t at = offset + first * stride;
    if (weight.scalar_type() == at::kFloat) {
      kernels::matvec(weight.const_data_ptr<float>() + at, stride, count, in, x, y);
    } else {
      const void* data = weight.const_data_ptr<at::BFloat16>() + at;
      kernels::matvec_bf16(static_cast<const std::uint16_t*>(data), stride, count, in, x, y);
    }
  }
};

// y[j] = matrix of row j times x[j], for few rows; offsets[j] says where that matrix begins.
Tensor few_rows(const Tensor& x, const Tensor& weight, const std::vector<std::int64_t>& offsets) {
  const Matvec matvec(weight);
  const auto rows = static_cast<std::int64_t>(offsets.size());
  const Tensor wide = x.to(at::kFloat), in = wide.stride(1) == 1 ? wide : wide.contiguous();
  const std::int64_t x_stride = in.stride(0);  // 0 where all rows are the same
  Tensor y = at::empty({rows, matvec.out}, in.options());
  const float* from = in.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, matvec.in));
  at::parallel_for(0, rows * matvec.out, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end;) {
      const std::int64_t row = i / matvec.out, first = i % matvec.out, count = std::min(end - i, matvec.out - first);
      matvec.run(offsets[static_cast<std::size_t>(row)], first, count, from + row * x_stride, to + i);
      i += count;
    }
  });
  return y.to(x.scalar_type());
}

Tensor grouped_rows(const Tensor& x, const Tensor& weight, const std::vector<std::int64_t>& hit,
                    const std::vector<std::int64_t>& begin) {
  Tensor y = at::empty({x.size(0), weight.size(1)}, x.options());
  for (std::size_t i = 0; i < hit.size(); ++i) {
    const std::int64_t rows = begin[i + 1] - begin[i];
    Tensor part = y.narrow(0, begin[i], rows);
    at::mm_out(part, x.narrow(0, begin[i], rows), weight.select(0, hit[i]).t());
  }
  return y;
}

class GroupedLinear : public torch::autograd::Function<GroupedLinear> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const std::vector<std::int64_t>& hit, const std::vector<std::int64_t>& begin) {
    context->save_for_backward({x, weight});
    context->saved_data["hit"] = hit, context->saved_data["begin"] = begin;
    return grouped_rows(x, weight, hit, begin);
  }

  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context, std::vector<Tensor> gradients) {
    const std::vector<Tensor> saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &gradient = gradients[0];
    const auto hit = context->saved_data["hit"].toIntVector(), begin = context->saved_data["begin"].toIntVector();
    Tensor for_x, for_weight;
    if (context->needs_input_grad(0)) for_x = grouped_rows(gradient, weight.transpose(1, 2), hit, begin);
    if (context->needs_input_grad(1)) {
      for_weight = at::zeros(weight.sizes(), weight.options());
      for (std::size_t i = 0; i < hit.size(); ++i) {
        const std::int64_t first = begin[i], rows = begin[i + 1] - begin[i];
        Tensor part = for_weight.select(0, hit[i]);
        at::mm_out(part, gradient.narrow(0, first, rows).t(), x.narrow(0, first, rows));
      }
    }
    return {for_x, for_weight, {}, {}};
  }
};

// On the CPU: one pass that counts.
ExpertGroups group_on_host(const Tensor& indices, std::int64_t num_experts) {
  ExpertGroups groups;
  groups.tokens = indices.size(0), groups.top_k = indices.size(1);
  const Tensor flat = indices.contiguous();
  const std::int64_t* chosen = flat.const_data_ptr<std::int64_t>();
  const std::int64_t rows = flat.numel();
  std::vector<std::int64_t> next(static_cast<std::size_t>(num_experts) + 1, 0);
  for (std::int64_t i = 0; i < rows; ++i) ++next[static_cast<std::size_t>(chosen[i]) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (std::int64_t e = 0; e < num_experts; ++e) {
    if (next[static_cast<std::size_t>(e)] == next[static_cast<std::size_t>(e) + 1]) continue;
    groups.hit.push_back(e), groups.begin.push_back(next[static_cast<std::size_t>(e)]);
  }
  groups.begin.push_back(rows);
  Tensor all = at::empty({4, rows}, flat.options());
  std::int64_t* token = all.mutable_data_ptr<std::int64_t>();
  std::int64_t *expert = token + rows, *choice = expert + rows, *inverse = choice + rows;
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t row = next[static_cast<std::size_t>(chosen[i])]++;
    token[row] = i / groups.top_k, expert[row] = chosen[i], choice[row] = i, inverse[i] = row;
  }
  groups.token = all.select(0, 0), groups.expert = all.select(0, 1);
  groups.choice = all.select(0, 2), groups.inverse = all.select(0, 3);
  return groups;
}

ExpertGroups group_on_device(const Tensor& indices, std::int64_t num_experts) {
  ExpertGroups groups;
  groups.tokens = indices.size(0), groups.top_k = indices.size(1);
  const Tensor flat = indices.reshape({-1});
  std::tie(groups.expert, groups.choice) = flat.sort(true, 0, false);
  groups.inverse = at::empty_like(groups.choice);
  groups.inverse.scatter_(0, groups.choice, at::arange(flat.size(0), flat.options()));
  groups.token = groups.choice.floor_divide(groups.top_k);
  const Tensor ends = at::bincount(flat, {}, num_experts).cumsum(0).cpu();  // the one wait for the device
  std::int64_t before = 0;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    const std::int64_t end = ends.const_data_ptr<std::int64_t>()[e];
    if (end != before) groups.hit.push_back(e), groups.begin.push_back(before);
    before = end;
  }
  groups.begin.push_back(before);
  return groups;
}

}  // namespace

RowGroups one_group(std::int64_t rows) { return {{0}, {0, rows}}; }

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (x.size(0) > kFewRows || !has_kernel(x, weight)) return at::linear(x, weight, bias);
  const Tensor y = few_rows(x, weight, std::vector<std::int64_t>(static_cast<std::size_t>(x.size(0)), 0));
  return bias.defined() ? y + bias : y;
}

ExpertGroups group_by_expert(const Tensor& indices, std::int64_t num_experts) {
  return indices.device().is_cpu() ? group_on_host(indices, num_experts) : group_on_device(indices, num_experts);
}

Tensor grouped_linear(const Tensor& x, const Tensor& weight, const RowGroups& groups) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad())) {
    return GroupedLinear::apply(x, weight, groups.hit, groups.begin);
  }
  const std::int64_t rows = groups.rows();
  if (!has_kernel(x, weight) || rows > kFewRows * static_cast<std::int64_t>(groups.hit.size())) {
    return grouped_rows(x, weight, groups.hit, groups.begin);
  }
  std::vector<std::int64_t> offsets;
  for (std::size_t i = 0; i < groups.hit.size(); ++i) {
    offsets.insert(offsets.end(), static_cast<std::size_t>(groups.begin[i + 1] - groups.begin[i]),
                   groups.hit[i] * weight.stride(0));
  }
  return few_rows(x, weight, offsets);
}

}  // namespace peft::nn
