#include "nn/kernels/grouped_lora.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

// A copy of the loop for machines with AVX2, chosen when the program starts.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define PEFT_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define PEFT_CLONES
#endif

namespace peft::nn {
namespace {

struct RowFactors {
  const float* a;  // [experts, rank, in]
  const float* b;  // [experts, rank, out]
  float scale;
  std::int64_t rank, in, out;
};

constexpr std::int64_t kLanes = 16;

PEFT_CLONES float dot(const float* a, const float* x, std::int64_t n) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t k = 0; k < kLanes; ++k) lanes[k] += a[i + k] * x[i + k];
  }
  float sum = 0;
  for (; i < n; ++i) sum += a[i] * x[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

// y += h0 b0 + h1 b1 + h2 b2 + h3 b3: four rows of B for one pass over y.
PEFT_CLONES void add_four(const float* b, std::int64_t n, const float* h, float* y) {
  const float *b0 = b, *b1 = b + n, *b2 = b + 2 * n, *b3 = b + 3 * n;
  for (std::int64_t i = 0; i < n; ++i) y[i] += (h[0] * b0[i] + h[1] * b1[i]) + (h[2] * b2[i] + h[3] * b3[i]);
}

PEFT_CLONES void add_one(const float* b, std::int64_t n, float h, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += h * b[i];
}

void add_row(const RowFactors& f, std::int64_t expert, const float* x, float* y, float* hidden) {
  const float* a = f.a + expert * f.rank * f.in;
  const float* b = f.b + expert * f.rank * f.out;
  for (std::int64_t k = 0; k < f.rank; ++k) hidden[k] = f.scale * dot(a + k * f.in, x, f.in);
  std::int64_t k = 0;
  for (; k + 4 <= f.rank; k += 4) add_four(b + k * f.out, f.out, hidden + k, y);
  for (; k < f.rank; ++k) add_one(b + k * f.out, f.out, hidden[k], y);
}

// x [rows, in], y [rows, out], dense. Rows begin[i] to begin[i + 1] belong to expert hit[i].
void add_lora_rows(const RowFactors& factors, const float* x, float* y, const RowGroups& groups) {
  const auto& [hit, begin] = groups;
  std::vector<std::int64_t> expert_of;
  for (std::size_t i = 0; i < hit.size(); ++i) {
    expert_of.insert(expert_of.end(), static_cast<std::size_t>(begin[i + 1] - begin[i]), hit[i]);
  }
  const std::int64_t work = factors.rank * (factors.in + factors.out);
  constexpr std::int64_t kWorthAThread = 1 << 17;
  const std::int64_t grain = std::max<std::int64_t>(1, kWorthAThread / std::max<std::int64_t>(1, work));
  at::parallel_for(0, static_cast<std::int64_t>(expert_of.size()), grain, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> hidden(static_cast<std::size_t>(factors.rank));
    for (std::int64_t i = first; i < last; ++i) {
      add_row(factors, expert_of[static_cast<std::size_t>(i)], x + i * factors.in, y + i * factors.out, hidden.data());
    }
  });
}

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

template <class Body>
void for_each_group(const RowGroups& groups, Body&& body) {
  for (std::size_t i = 0; i < groups.hit.size(); ++i) {
    body(groups.hit[i], groups.begin[i], groups.begin[i + 1] - groups.begin[i]);
  }
}

// hidden[rows of e] = x[rows of e] * A_e^T
Tensor project(const Tensor& x, const Tensor& a, const RowGroups& groups) {
  Tensor hidden = at::empty({x.size(0), a.size(1)}, x.options());
  for_each_group(groups, [&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    Tensor part = hidden.narrow(0, first, rows);
    at::mm_out(part, x.narrow(0, first, rows), a.select(0, e).t());
  });
  return hidden;
}

// y[rows of e] += scale * hidden[rows of e] * B_e^T
void expand_into(Tensor& y, const Tensor& hidden, const Tensor& b, double scale, const RowGroups& groups) {
  for_each_group(groups, [&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    y.narrow(0, first, rows).addmm_(hidden.narrow(0, first, rows), b.select(0, e), 1, scale);
  });
}

// The gradient is written out: autograd's gradient of a slice is a whole stack of zeros for each expert.
class GroupedFunction : public torch::autograd::Function<GroupedFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& a, const Tensor& b, double scale,
                        std::vector<std::int64_t> hit, std::vector<std::int64_t> begin) {
    const RowGroups groups{hit, begin};
    const Tensor hidden = project(x, a, groups);
    Tensor delta = at::zeros({x.size(0), b.size(2)}, x.options());
    expand_into(delta, hidden, b, scale, groups);
    context->save_for_backward({x, a, b, hidden});
    context->saved_data["scale"] = scale;
    context->saved_data["hit"] = std::move(hit);
    context->saved_data["begin"] = std::move(begin);
    return delta;
  }

  static tensor_list backward(AutogradContext* context, tensor_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &a = saved[1], &b = saved[2], &hidden = saved[3];
    const double scale = context->saved_data["scale"].toDouble();
    const RowGroups groups{context->saved_data["hit"].toIntVector(), context->saved_data["begin"].toIntVector()};
    const Tensor out = gradients[0].contiguous();
    Tensor to_x, to_a, to_b;
    if (context->needs_input_grad(0)) to_x = at::zeros_like(x);
    if (context->needs_input_grad(1)) to_a = at::zeros_like(a);
    if (context->needs_input_grad(2)) to_b = at::zeros_like(b);
    for_each_group(groups, [&](std::int64_t e, std::int64_t first, std::int64_t rows) {
      const Tensor part = out.narrow(0, first, rows);
      if (to_b.defined()) to_b.select(0, e).addmm_(hidden.narrow(0, first, rows).t(), part, 0, scale);
      if (!to_x.defined() && !to_a.defined()) return;
      const Tensor to_hidden = at::mm(part, b.select(0, e).t()).mul_(scale);
      if (to_a.defined()) to_a.select(0, e).addmm_(to_hidden.t(), x.narrow(0, first, rows), 0, 1);
      if (to_x.defined()) to_x.narrow(0, first, rows).addmm_(to_hidden, a.select(0, e), 0, 1);
    });
    return {to_x, to_a, to_b, Tensor(), Tensor(), Tensor()};
  }
};

bool records(const Tensor& y, const Tensor& x, const FactorStack& stack) {
  return at::GradMode::is_enabled() &&
         (y.requires_grad() || x.requires_grad() || stack.a.requires_grad() || stack.b.requires_grad());
}

// Few rows on a CPU take one pass over the factors in own code: calling a matrix product for each expert costs more
// than computing it.
constexpr std::int64_t kFewRows = 16;
bool is_for_rows(const Tensor& y, const Tensor& x, const FactorStack& stack) {
  return x.size(0) <= kFewRows && x.is_cpu() && stack.a.is_cpu() && stack.a.scalar_type() == at::kFloat &&
         y.scalar_type() == at::kFloat && stack.a.is_contiguous() && stack.b.is_contiguous();
}

void add_rows(Tensor& y, const Tensor& x, const FactorStack& stack, const RowGroups& groups) {
  const Tensor rows = x.to(at::kFloat).contiguous();
  const RowFactors factors{stack.a.const_data_ptr<float>(),
                           stack.b.const_data_ptr<float>(),
                           static_cast<float>(stack.scale),
                           stack.rank(),
                           stack.in(),
                           stack.out()};
  add_lora_rows(factors, rows.const_data_ptr<float>(), y.data_ptr<float>(), groups);
}

}  // namespace

Tensor add_grouped(const Tensor& y, const Tensor& x, const FactorStack& stack, const RowGroups& groups) {
  if (x.size(0) == 0) return y;
  const auto type = stack.a.scalar_type();
  if (records(y, x, stack)) {
    return y + GroupedFunction::apply(x.to(type), stack.a, stack.b, stack.scale, groups.hit, groups.begin);
  }
  const auto wide = at::promote_types(y.scalar_type(), type);
  Tensor sum = y.to(wide).contiguous();
  if (is_for_rows(sum, x, stack)) {
    add_rows(sum, x, stack, groups);
  } else {
    expand_into(sum, project(x.to(type), stack.a, groups).to(wide), stack.b.to(wide), stack.scale, groups);
  }
  return sum;
}

bool can_add_rounded(const Tensor& y, const Tensor& x, const FactorStack& stack) {
  return at::isReducedFloatingType(y.scalar_type()) && y.is_cpu() && stack.a.scalar_type() == at::kFloat &&
         x.size(0) > kFewRows && !records(y, x, stack);
}

Tensor add_rounded(const Tensor& y, const Tensor& x, const FactorStack& stack, const RowGroups& groups) {
  constexpr std::int64_t kBlock = 128;  // rows; a block of usual widths stays in the cache
  const Tensor sum = y.contiguous();
  const Tensor wide_in = at::empty({kBlock, x.size(1)}, stack.a.options()),
               wide_out = at::empty({kBlock, y.size(1)}, stack.a.options());
  for_each_group(groups, [&](std::int64_t e, std::int64_t group, std::int64_t count) {
    const Tensor down = stack.a.select(0, e).t(), up = stack.b.select(0, e);
    for (std::int64_t done = 0; done < count; done += kBlock) {
      const std::int64_t first = group + done, rows = std::min(kBlock, count - done);
      const Tensor in = wide_in.narrow(0, 0, rows), out = wide_out.narrow(0, 0, rows),
                   place = sum.narrow(0, first, rows);
      in.copy_(x.narrow(0, first, rows)), out.copy_(place);
      out.addmm_(at::mm(in, down), up, 1, stack.scale);
      place.copy_(out);
    }
  });
  return sum;
}

}  // namespace peft::nn
