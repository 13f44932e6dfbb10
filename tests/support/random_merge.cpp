#include "support/random_merge.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>

#include "execute/values/element.h"
#include "plan/check.h"

namespace peft::execution {
namespace {

struct Sizes {
  std::int64_t experts, out, in, rank;
};
Sizes sizes(PlanBuilder& b, std::int64_t size) {
  const std::int64_t ranks[] = {1, 2, 3, 4, 8, 16, 33};
  return {b.pick(1, 5), b.pick(1, size), b.pick(1, size), ranks[b.pick(0, std::ssize(ranks) - 1)]};
}

// A pair of factors, stored in one of the ways that layouts store them.
std::pair<View, View> factors(PlanBuilder& b, const MergeCase& c, std::int64_t out, std::int64_t in,
                              std::int64_t rank) {
  const double sigma = std::sqrt(c.base_sigma * c.delta_size / std::sqrt(static_cast<double>(rank)));
  View a, bb;
  switch (b.pick(0, 2)) {
    case 0:
      a = b.normal(c.adapter, rank, in, sigma);
      bb = b.normal(c.adapter, out, rank, sigma);
      break;
    case 1:  // one expert of three in a fused pair
      a = b.normal(c.adapter, rank * 3, in, sigma).row_range(rank, rank);
      bb = b.normal(c.adapter, out, rank * 3, sigma).col_range(1, rank, 3);
      break;
    default:  // reversed: A is made of columns
      a = b.normal(c.adapter, in, rank, sigma).transposed();
      bb = b.normal(c.adapter, rank, out, sigma).transposed();
      break;
  }
  return {a, bb};
}

void add_updates(PlanBuilder& b, const MergeCase& c, Merge& merge, const View& target, std::int64_t rank) {
  for (int n = 0; n < c.adapters; ++n) {
    Update update;
    update.target = target;
    std::tie(update.a, update.b) = factors(b, c, target.rows, target.cols, rank);
    update.scale = 0.25 * static_cast<double>(b.pick(1, 9)) * (n % 2 == 0 ? 1 : -0.7);
    update.delta_is_rounded = c.delta_is_rounded;
    update.adapter = static_cast<std::uint32_t>(n);
    // Near what the norms are, as trained ones.
    if (c.dora) {
      const View of =
          b.normal(c.adapter, target.rows, 1, 0.3 * c.base_sigma * std::sqrt(static_cast<double>(target.cols)));
      update.magnitude = of;
    }
    merge.updates.push_back(update);
  }
}

PlannedTensor& tensor_of(PlanBuilder& b, const MergeCase& c, const std::string& name, std::int64_t rows,
                         std::int64_t cols) {
  PlannedTensor& tensor = b.output(name, c.out, rows, cols);
  std::int64_t row = 0;
  while (row < rows) {  // sometimes in several blocks, one of them transposed
    const std::int64_t some = b.chance(60) ? rows - row : b.pick(1, rows - row);
    const View view = b.chance(80) ? b.normal(c.source, some, cols, c.base_sigma)
                                   : b.normal(c.source, cols, some, c.base_sigma).transposed();
    tensor.blocks.push_back({row, 0, 1, view, b.chance(90) ? 1.0 : 1.5});
    row += some;
  }
  tensor.merge = Merge{c.mode, c.base, {}};
  return tensor;
}

// [out, in]; or stored the other way round: Conv1D, Embedding.
void single(PlanBuilder& b, const std::string& name, std::int64_t size, const MergeCase& c, bool swapped) {
  const auto [experts, out, in, rank] = sizes(b, size);
  PlannedTensor& tensor = swapped ? tensor_of(b, c, name, in, out) : tensor_of(b, c, name, out, in);
  const View target = swapped ? View{0, 0, 0, out, in, 1, out} : View{0, 0, 0, out, in, in, 1};
  add_updates(b, c, *tensor.merge, target, rank);
}

// [E, 2 * out, in]: gate above up, or gate and up in turn. Some are missing.
void fused(PlanBuilder& b, const std::string& name, std::int64_t size, const MergeCase& c, bool interleaved) {
  const auto [experts, out, in, rank] = sizes(b, size);
  PlannedTensor& tensor = tensor_of(b, c, name, experts * 2 * out, in);
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::int64_t up = 0; up < 2; ++up) {
      if (b.chance(20)) continue;
      const std::int64_t offset = e * 2 * out * in + up * (interleaved ? in : out * in);
      add_updates(b, c, *tensor.merge, View{0, 0, offset, out, in, interleaved ? 2 * in : in, 1}, rank);
    }
  }
}

// [E, in, 2 * out]: gate beside up, or gate and up in turn.
void fused_swapped(PlanBuilder& b, const std::string& name, std::int64_t size, const MergeCase& c, bool interleaved) {
  const auto [experts, out, in, rank] = sizes(b, size);
  PlannedTensor& tensor = tensor_of(b, c, name, experts * in, 2 * out);
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::int64_t up = 0; up < 2; ++up) {
      if (b.chance(20)) continue;
      const std::int64_t offset = e * 2 * out * in + up * (interleaved ? 1 : out);
      add_updates(b, c, *tensor.merge, View{0, 0, offset, out, in, interleaved ? 2 : 1, 2 * out}, rank);
    }
  }
}

// A vector with another one added to it; not DoRA.
void bias(PlanBuilder& b, const std::string& name, std::int64_t size, const MergeCase& c, bool) {
  const std::int64_t count = b.pick(1, 10 * size);
  PlannedTensor& tensor = tensor_of(b, c, name, 1, count);
  for (int n = 0; n < c.adapters; ++n) {
    Update update;
    update.target = View{0, 0, 0, 1, count, count, 1};
    update.a = b.normal(c.adapter, 1, count, c.base_sigma * c.delta_size);
    update.scale = 1.5;
    tensor.merge->updates.push_back(update);
  }
}

struct Shape {
  void (*add)(PlanBuilder&, const std::string&, std::int64_t, const MergeCase&, bool);
  bool flag;
};
constexpr Shape kShapes[] = {{single, false},        {single, true},        {fused, false}, {fused, true},
                             {fused_swapped, false}, {fused_swapped, true}, {bias, false}};

double rounded(Dtype dtype, double value) {
  std::byte bytes[8];
  store_element(dtype, value, bytes);
  return load_element(dtype, bytes);
}

double at(const Plan& plan, const View& view, std::int64_t i, std::int64_t j) {
  const TensorFile& file = *plan.sources[view.source];
  const TensorInfo& tensor = file.tensors()[view.tensor];
  const std::int64_t index = view.offset + i * view.row_stride + j * view.col_stride;
  return load_element(tensor.dtype, file.bytes(tensor).data() + index * info(tensor.dtype).bits / 8);
}

// One target of a tensor and its updates, as dense matrices [out, in].
struct Matrix {
  View target;
  std::vector<const Update*> updates;
  std::vector<double> weights;
  double& w(std::int64_t i, std::int64_t j) { return weights[static_cast<std::size_t>(i * target.cols + j)]; }
};

// PEFT's delta in fp32: a chain over the rank, then the scale.
float delta32(const Plan& plan, const Update& u, std::int64_t i, std::int64_t j) {
  float sum = 0;
  for (std::int64_t k = 0; k < u.a.rows; ++k) {
    const auto left = u.b.rows == 0 ? 1.0F : static_cast<float>(at(plan, u.b, i, k));
    sum = std::fma(left, static_cast<float>(at(plan, u.a, k, j)), sum);
  }
  return sum * static_cast<float>(u.scale);
}

double delta64(const Plan& plan, const Update& u, std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::int64_t k = 0; k < u.a.rows; ++k) sum += (u.b.rows == 0 ? 1 : at(plan, u.b, i, k)) * at(plan, u.a, k, j);
  return sum * u.scale;
}

void exact_sum(const Plan& plan, Matrix& m) {
  const std::vector<double> before = m.weights;
  for (const Update* u : m.updates) {
    for (std::int64_t i = 0; i < m.target.rows; ++i) {
      double norm = 0;
      for (std::int64_t j = 0; j < m.target.cols; ++j) {
        const double value = before[static_cast<std::size_t>(i * m.target.cols + j)] + delta64(plan, *u, i, j);
        norm += value * value;
      }
      const double row_scale = u->magnitude ? at(plan, *u->magnitude, i, 0) / std::sqrt(norm) : 1;
      for (std::int64_t j = 0; j < m.target.cols; ++j) m.w(i, j) = row_scale * (m.w(i, j) + delta64(plan, *u, i, j));
    }
  }
}

// merge_and_unload: what the three statements of PEFT's merge do to a matrix.
class LikePeft {
 public:
  LikePeft(const Plan& plan, const Merge& merge, Matrix& m)
      : plan_(plan), merge_(merge), m_(m), norms_(m.updates.size()) {}
  void run() {
    for (std::size_t n = 0; n < m_.updates.size(); ++n) {
      if (m_.updates[n]->magnitude) {
        for (std::size_t k = n; k-- > 0;) take_out(k);
        for (std::size_t k = 0; k <= n; ++k) measure(k);
        for (std::size_t k = 0; k < n; ++k) put_in(k);
      }
      put_in(n);
    }
  }

 private:
  double base(float value) const { return rounded(merge_.base_dtype, static_cast<double>(value)); }
  float row_scale(std::size_t n, std::int64_t i) const {
    return static_cast<float>(at(plan_, *m_.updates[n]->magnitude, i, 0)) / norms_[n][static_cast<std::size_t>(i)];
  }
  template <class Step>
  void each(std::size_t n, const Step& step) {
    for (std::int64_t i = 0; i < m_.target.rows; ++i) {
      for (std::int64_t j = 0; j < m_.target.cols; ++j)
        m_.w(i, j) = step(i, static_cast<float>(m_.w(i, j)), delta32(plan_, *m_.updates[n], i, j));
    }
  }
  void put_in(std::size_t n) {
    const Update& u = *m_.updates[n];
    const bool safe = (merge_.mode == MergeMode::peft_safe && u.b.rows != 0) || u.delta_is_rounded;
    each(n, [&](std::int64_t i, float w, float d) {
      if (u.magnitude) return base(row_scale(n, i) * (w + d));
      return base(safe ? w + static_cast<float>(base(d)) : w + d);
    });
  }
  void take_out(std::size_t n) {
    const Update& u = *m_.updates[n];
    each(n, [&](std::int64_t i, float w, float d) {
      return u.magnitude ? base(w / row_scale(n, i) - d) : base(w - static_cast<float>(base(d)));
    });
  }
  void measure(std::size_t n) {
    if (!m_.updates[n]->magnitude) return;
    norms_[n].clear();
    for (std::int64_t i = 0; i < m_.target.rows; ++i) {
      double sum = 0;
      for (std::int64_t j = 0; j < m_.target.cols; ++j) {
        const float value = static_cast<float>(m_.w(i, j)) + delta32(plan_, *m_.updates[n], i, j);
        sum += static_cast<double>(value) * static_cast<double>(value);
      }
      norms_[n].push_back(static_cast<float>(std::sqrt(sum)));
    }
  }

  const Plan& plan_;
  const Merge& merge_;
  Matrix& m_;
  std::vector<std::vector<float>> norms_;
};

std::vector<double> base_values(const Plan& plan, const PlannedTensor& tensor) {
  std::vector<double> values(static_cast<std::size_t>(tensor.rows * tensor.cols));
  for (const Block& block : tensor.blocks) {
    for (std::int64_t i = 0; i < block.source.rows; ++i) {
      for (std::int64_t j = 0; j < block.source.cols; ++j) {
        values[static_cast<std::size_t>((block.row + i) * tensor.cols + block.col + j * block.col_step)] =
            rounded(tensor.merge->base_dtype, at(plan, block.source, i, j) * block.scale);
      }
    }
  }
  return values;
}

}  // namespace

int num_merge_shapes() { return static_cast<int>(std::size(kShapes)); }

void add_merge(PlanBuilder& builder, int shape, const std::string& name, std::int64_t size,
               const MergeCase& merge_case) {
  kShapes[shape].add(builder, name, size, merge_case, kShapes[shape].flag);
}

std::vector<double> oracle(const Plan& plan, const PlannedTensor& tensor, bool exact) {
  std::vector<double> values = base_values(plan, tensor);
  std::vector<Matrix> matrices;
  for (const Update& update : tensor.merge->updates) {
    const auto same = [&](const Matrix& m) { return m.target == update.target; };
    auto it = std::find_if(matrices.begin(), matrices.end(), same);
    if (it == matrices.end()) it = matrices.insert(it, Matrix{update.target, {}, {}});
    it->updates.push_back(&update);
  }
  for (Matrix& m : matrices) {
    const auto place = [&](std::int64_t i, std::int64_t j) -> double& {
      return values[static_cast<std::size_t>(m.target.offset + i * m.target.row_stride + j * m.target.col_stride)];
    };
    for (std::int64_t i = 0; i < m.target.rows; ++i) {
      for (std::int64_t j = 0; j < m.target.cols; ++j) m.weights.push_back(place(i, j));
    }
    exact ? exact_sum(plan, m) : LikePeft(plan, *tensor.merge, m).run();
    for (std::int64_t i = 0; i < m.target.rows; ++i) {
      for (std::int64_t j = 0; j < m.target.cols; ++j) place(i, j) = m.w(i, j);
    }
  }
  return values;
}

}  // namespace peft::execution
