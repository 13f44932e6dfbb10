#include "execute/merge/dora_row_scales.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "execute/values/element.h"
#include "peft/error.h"

namespace peft::execution {
namespace {

// The norm of a row, summed in the order of PyTorch's norm (2.13, x86), which gives the same bits: vectors of eight;
// then the rest one by one, the last three at most with fused multiply-adds.
constexpr std::size_t kChains = 8;
template <class T>
struct RowSum {
  T chains[kChains] = {};
  T rest[kChains] = {};
  std::size_t num_rest = 0;

  void add(const T* values, std::size_t count) {  // `count` is a multiple of kChains, except in the last call
    const std::size_t whole = count / kChains * kChains;
    for (std::size_t j = 0; j < whole; j += kChains) {
      for (std::size_t c = 0; c < kChains; ++c) chains[c] += values[j + c] * values[j + c];
    }
    for (std::size_t j = whole; j < count; ++j) rest[num_rest++] = values[j];
  }
  T norm() const {
    T sum = chains[0];
    for (std::size_t c = 1; c < kChains; ++c) sum += chains[c];
    for (std::size_t c = 0; c < num_rest; ++c) {
      sum = c < num_rest / 4 * 4 ? sum + rest[c] * rest[c] : std::fma(rest[c], rest[c], sum);
    }
    return std::sqrt(sum);
  }
};

template <class T>
class Measuring {
 public:
  Measuring(const MergedTensor& tensor, UpdateProducts<T>& products, std::int64_t first, std::int64_t count)
      : tensor_(tensor), products_(products), swapped_(products.lattice().swapped), first_(first), count_(count) {
    row_scales_.first = first;
    row_scales_.values.assign(products.program().row_scales.size(),
                              std::vector<double>(static_cast<std::size_t>(count)));
    weights_.resize(kTileSize);
    sum_.resize(kTileSize);
  }

  DoraRowScales run() {
    std::size_t begin = 0;
    for (const std::size_t end : products_.program().passes()) {
      measured_.clear();
      for (std::size_t s = begin; s < end; ++s) {
        if (products_.program().steps[s].kind == Step::Kind::measure)
          measured_.push_back(&products_.program().steps[s]);
      }
      if (measured_.empty()) break;  // the last pass is the merge itself
      pass(end);
      begin = end;
    }
    return std::move(row_scales_);
  }

 private:
  void pass(std::size_t end) {
    const plan::Lattice& lattice = products_.lattice();
    const std::int64_t row_end = swapped_ ? lattice.rows.count : first_ + count_;
    row_sums_.assign(measured_.size(), std::vector<RowSum<T>>(kTileRows));
    col_sums_.assign(measured_.size(), std::vector<T>(swapped_ ? static_cast<std::size_t>(count_) : 0));
    for (std::int64_t first = swapped_ ? 0 : first_; first < row_end;) {
      const std::int64_t taken = products_.take_rows(first, row_end - first);
      for (std::int64_t row = 0; row < taken; row += static_cast<std::int64_t>(kTileRows)) {
        const auto rows = std::min(kTileRows, static_cast<std::size_t>(taken - row));
        for (auto& sums : row_sums_) std::fill(sums.begin(), sums.end(), RowSum<T>{});
        for (std::int64_t panel = 0; panel * kWidth < lattice.cols.count; ++panel) tile(end, first, row, rows, panel);
        if (!swapped_) finish_rows(first + row, rows);
      }
      first += taken;
    }
    if (swapped_) finish_columns();
  }

  void tile(std::size_t end, std::int64_t first, std::int64_t row, std::size_t rows, std::int64_t panel) {
    const plan::Lattice& lattice = products_.lattice();
    load_tile(tensor_, lattice, first + row, rows, panel, weights_.get(), bytes_, scratch_);
    for (std::size_t n = 0; n < products_.num_updates(); ++n) products_.product(n, {row, rows, panel});
    products_.run(end, {row, rows, panel}, row_scales_, weights_.get());
    const auto cols = static_cast<std::size_t>(std::min(kWidth, lattice.cols.count - panel * kWidth));
    for (std::size_t m = 0; m < measured_.size(); ++m) {
      std::copy_n(weights_.get(), rows * kPanel, sum_.get());
      const Step& step = *measured_[m];
      apply_rule({step.rule, kUnrounded, products_.update(step.update).scale}, products_.tile(step.update), sum_.get(),
                 rows * kPanel);
      for (std::size_t i = 0; i < rows; ++i) {
        swapped_ ? add_columns(m, panel, sum_.get() + i * kPanel, cols)
                 : row_sums_[m][i].add(sum_.get() + i * kPanel, cols);
      }
    }
  }

  void add_columns(std::size_t m, std::int64_t panel, const T* values, std::size_t cols) {
    T* sums = &col_sums_[m][static_cast<std::size_t>(panel * kWidth)];
    for (std::size_t j = 0; j < cols; ++j) sums[j] += values[j] * values[j];
  }

  void finish_rows(std::int64_t first, std::size_t rows) {
    for (std::size_t m = 0; m < measured_.size(); ++m) {
      for (std::size_t i = 0; i < rows; ++i) set(m, first + static_cast<std::int64_t>(i), row_sums_[m][i].norm());
    }
  }
  void finish_columns() {
    for (std::size_t m = 0; m < measured_.size(); ++m) {
      for (std::size_t o = 0; o < col_sums_[m].size(); ++o)
        set(m, static_cast<std::int64_t>(o), std::sqrt(col_sums_[m][o]));
    }
  }
  void set(std::size_t m, std::int64_t out, T norm) {
    const Step& step = *measured_[m];
    const auto magnitude = static_cast<T>(value_at(tensor_.plan(), *products_.update(step.update).magnitude, out, 0));
    if (norm == 0) {
      throw Error(ErrorCode::NUM_NONFINITE, {.tensor = tensor_.tensor().name,
                                             .problem = "DoRA divides by the norm of a row that is zero",
                                             .got = std::to_string(out)});
    }
    row_scales_.values[step.row_scale][static_cast<std::size_t>(out - row_scales_.first)] =
        static_cast<double>(magnitude / norm);
  }

  static constexpr Dtype kUnrounded = sizeof(T) == sizeof(float) ? Dtype::f32 : Dtype::f64;

  const MergedTensor& tensor_;
  UpdateProducts<T>& products_;
  bool swapped_;
  std::int64_t first_, count_;
  DoraRowScales row_scales_;
  std::vector<const Step*> measured_;
  std::vector<std::vector<RowSum<T>>> row_sums_;
  std::vector<std::vector<T>> col_sums_;
  LineBuffer<T> weights_, sum_;
  LineBuffer<std::byte> bytes_;
  Scratch scratch_;
};

}  // namespace

template <class T>
DoraRowScales measure_row_scales(const MergedTensor& tensor, UpdateProducts<T>& products, std::int64_t first,
                                 std::int64_t count) {
  return Measuring<T>(tensor, products, first, count).run();
}

template DoraRowScales measure_row_scales(const MergedTensor&, UpdateProducts<float>&, std::int64_t, std::int64_t);
template DoraRowScales measure_row_scales(const MergedTensor&, UpdateProducts<double>&, std::int64_t, std::int64_t);

}  // namespace peft::execution
