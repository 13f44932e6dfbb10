#include "nn/kernels/grouped.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "nn/kernels/autocast.h"
#include "nn/kernels/cpu.h"

#if !defined(INTRA_OP_PARALLEL) && !defined(PEFT_NO_OPENMP)
#error "at::parallel_for would run on one thread: the build has to give -fopenmp"
#endif

// A copy of the loop for machines with AVX2, chosen when the program starts.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define PEFT_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define PEFT_CLONES
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
         (dtype == at::kFloat || dtype == at::kBFloat16) && weight.stride(-1) == 1 && !is_autocast_on(x.device());
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

// In 16 bits oneDNN compiles a kernel for each number of rows, and keeps them: 0.7 MiB and a third of a millisecond
// each. So an expert's rows are filled up to a multiple of this, by those of the next expert or by zeros.
constexpr std::int64_t kRowsTogether = 8;

// In the dtype of x: under autocast the weights are wider, and one expert's matrix is cast at a time.
Tensor grouped_rows(const Tensor& x, const Tensor& weight, const std::vector<std::int64_t>& hit,
                    const std::vector<std::int64_t>& begin) {
  const bool fills = x.is_cpu() && at::isReducedFloatingType(x.scalar_type());
  const std::int64_t together = fills ? kRowsTogether : 1, end = x.size(0);
  // What an expert writes after its own rows, the next one overwrites.
  Tensor y = at::empty({end + together - 1, weight.size(1)}, x.options());
  for (std::size_t i = 0; i < hit.size(); ++i) {
    const std::int64_t own = begin[i + 1] - begin[i], rows = (own + together - 1) / together * together;
    Tensor in = x.narrow(0, begin[i], std::min(rows, end - begin[i]));
    if (in.size(0) < rows) in = at::constant_pad_nd(in, {0, 0, 0, rows - in.size(0)});
    Tensor part = y.narrow(0, begin[i], rows);
    at::mm_out(part, in, weight.select(0, hit[i]).to(x.scalar_type()).t());
  }
  return y.narrow(0, 0, end);
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
        part.copy_(at::mm(gradient.narrow(0, first, rows).t(), x.narrow(0, first, rows)));
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

// ---- LoRA

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

template <class Body>
void for_each_group(const RowGroups& groups, Body&& body) {
  for (std::size_t i = 0; i < groups.hit.size(); ++i) {
    body(groups.hit[i], groups.begin[i], groups.begin[i + 1] - groups.begin[i]);
  }
}

// hidden[rows of e] = x[rows of e] * A_e^T, in the factors' dtype. Only the rows of one expert are cast at a time.
Tensor project(const Tensor& x, const Tensor& a, const RowGroups& groups) {
  Tensor hidden = at::empty({x.size(0), a.size(1)}, a.options().requires_grad(false));
  for_each_group(groups, [&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    Tensor part = hidden.narrow(0, first, rows);
    at::mm_out(part, x.narrow(0, first, rows).to(a.scalar_type()), a.select(0, e).t());
  });
  return hidden;
}

// y[rows of e] += scale * hidden[rows of e] * B_e^T
void expand_into(Tensor& y, const Tensor& hidden, const Tensor& b, double scale, const RowGroups& groups) {
  for_each_group(groups, [&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    y.narrow(0, first, rows).addmm_(hidden.narrow(0, first, rows), b.select(0, e), 1, scale);
  });
}

// The gradient is written out: autograd's gradient of a slice is a whole stack of zeros for each expert. x is kept in
// its own dtype.
class GroupedLora : public torch::autograd::Function<GroupedLora> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& a, const Tensor& b,
                        double scale, std::vector<std::int64_t> hit, std::vector<std::int64_t> begin) {
    const RowGroups groups{hit, begin};
    const Tensor hidden = project(x, a, groups);
    Tensor delta = at::zeros({x.size(0), b.size(2)}, hidden.options());
    expand_into(delta, hidden, b, scale, groups);
    context->save_for_backward({x, a, b, hidden});
    context->saved_data["scale"] = scale;
    context->saved_data["hit"] = std::move(hit);
    context->saved_data["begin"] = std::move(begin);
    return delta;
  }

  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context, std::vector<Tensor> gradients) {
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
      const Tensor in = x.narrow(0, first, rows).to(a.scalar_type());
      if (to_a.defined()) to_a.select(0, e).addmm_(to_hidden.t(), in, 0, 1);
      if (to_x.defined()) to_x.narrow(0, first, rows).copy_(at::mm(to_hidden, a.select(0, e)));
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
constexpr std::int64_t kFewLoraRows = 16;
bool is_for_rows(const Tensor& y, const Tensor& x, const FactorStack& stack) {
  return x.size(0) <= kFewLoraRows && x.is_cpu() && stack.a.is_cpu() && stack.a.scalar_type() == at::kFloat &&
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

RowGroups one_group(std::int64_t rows) { return {{0}, {0, rows}}; }

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (x.size(0) > kFewRows || !has_kernel(x, weight)) return at::linear(x, weight, bias);
  const Tensor y = few_rows(x, weight, std::vector<std::int64_t>(static_cast<std::size_t>(x.size(0)), 0));
  return bias.defined() ? y + bias : y;
}

ExpertGroups group_by_expert(const Tensor& indices, std::int64_t num_experts) {
  return indices.device().is_cpu() ? group_on_host(indices, num_experts) : group_on_device(indices, num_experts);
}

Tensor grouped_linear(const Tensor& input, const Tensor& weight, const RowGroups& groups) {
  const Tensor x = as_autocast(input);
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

Tensor add_grouped(const Tensor& y, const Tensor& x, const FactorStack& stack, const RowGroups& groups) {
  if (x.size(0) == 0) return y;
  const auto type = stack.a.scalar_type();
  if (records(y, x, stack)) {
    return y + GroupedLora::apply(x, stack.a, stack.b, stack.scale, groups.hit, groups.begin);
  }
  const auto wide = at::promote_types(y.scalar_type(), type);
  Tensor sum = y.to(wide).contiguous();
  if (is_for_rows(sum, x, stack)) {
    add_rows(sum, x, stack, groups);
  } else {
    expand_into(sum, project(x, stack.a, groups).to(wide), stack.b.to(wide), stack.scale, groups);
  }
  return sum;
}

bool can_add_rounded(const Tensor& y, const Tensor& x, const FactorStack& stack) {
  return at::isReducedFloatingType(y.scalar_type()) && y.is_cpu() && !is_autocast_on(y.device()) &&
         stack.a.scalar_type() == at::kFloat && x.size(0) > kFewLoraRows && !records(y, x, stack);
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
