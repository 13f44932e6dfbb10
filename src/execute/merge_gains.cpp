#include "execute/merge_gains.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "execute/value.h"
#include "peft/error.h"

namespace peft::execution {
namespace {

constexpr auto kWidth = static_cast<std::int64_t>(kPanel);

// Sums of squares of one row, in the order of PyTorch's norm (2.13, x86), so that its bits are the same: vectors of
// eight; then what fills no vector, one after the other, the last three at most with fused multiply-adds.
constexpr std::size_t kChains = 8;
template <class T>
struct RowSum {
  T chains[kChains] = {};
  T rest[kChains] = {};
  std::size_t num_rest = 0;

  void add(const T* values, std::size_t count) {  // a multiple of kChains, except for the last call
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
  Measuring(const MergedTensor& tensor, Tiles<T>& tiles, std::int64_t first, std::int64_t count)
      : tensor_(tensor), tiles_(tiles), swapped_(tiles.lattice().swapped), first_(first), count_(count) {
    gains_.first = first;
    gains_.values.assign(tiles.program().gains.size(), std::vector<double>(static_cast<std::size_t>(count)));
    weights_.resize(kTileSize);
    sum_.resize(kTileSize);
  }

  Gains run() {
    std::size_t begin = 0;
    for (const std::size_t end : tiles_.program().passes()) {
      measured_.clear();
      for (std::size_t s = begin; s < end; ++s) {
        if (tiles_.program().steps[s].kind == Step::Kind::measure) measured_.push_back(&tiles_.program().steps[s]);
      }
      if (measured_.empty()) break;  // the last pass is the merge itself
      pass(end);
      begin = end;
    }
    return std::move(gains_);
  }

 private:
  void pass(std::size_t end) {
    const plan::Lattice& lattice = tiles_.lattice();
    const std::int64_t row_end = swapped_ ? lattice.rows.count : first_ + count_;
    row_sums_.assign(measured_.size(), std::vector<RowSum<T>>(kTileRows));
    col_sums_.assign(measured_.size(), std::vector<T>(swapped_ ? static_cast<std::size_t>(count_) : 0));
    for (std::int64_t first = swapped_ ? 0 : first_; first < row_end;) {
      const std::int64_t taken = tiles_.take_rows(first, row_end - first);
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
    const plan::Lattice& lattice = tiles_.lattice();
    load_tile(tensor_, lattice, first + row, rows, panel, weights_.get(), bytes_, scratch_);
    for (std::size_t n = 0; n < tiles_.num_updates(); ++n) tiles_.product(n, row, rows, panel);
    tiles_.run(0, end, tensor_.merge(), row, rows, panel, gains_, weights_.get());
    const auto cols = static_cast<std::size_t>(std::min(kWidth, lattice.cols.count - panel * kWidth));
    for (std::size_t m = 0; m < measured_.size(); ++m) {
      std::copy_n(weights_.get(), rows * kPanel, sum_.get());
      const Step& step = *measured_[m];
      apply_tail({step.tail, kUnrounded, tiles_.update(step.update).scale}, tiles_.tile(step.update), sum_.get(),
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
    const auto magnitude = static_cast<T>(value_at(tensor_.plan(), *tiles_.update(step.update).magnitude, out, 0));
    if (norm == 0) {
      throw Error(ErrorCode::NUM_NONFINITE, {.tensor = tensor_.tensor().name,
                                             .problem = "DoRA divides by the norm of a row that is zero",
                                             .got = std::to_string(out)});
    }
    gains_.values[step.gain][static_cast<std::size_t>(out - gains_.first)] = static_cast<double>(magnitude / norm);
  }

  static constexpr Dtype kUnrounded = sizeof(T) == sizeof(float) ? Dtype::f32 : Dtype::f64;

  const MergedTensor& tensor_;
  Tiles<T>& tiles_;
  bool swapped_;
  std::int64_t first_, count_;
  Gains gains_;
  std::vector<const Step*> measured_;
  std::vector<std::vector<RowSum<T>>> row_sums_;
  std::vector<std::vector<T>> col_sums_;
  LineBuffer<T> weights_, sum_;
  LineBuffer<std::byte> bytes_;
  Scratch scratch_;
};

// Columns of base_dtype, `step` elements apart, side by side.
void gather_columns(const std::byte* from, std::int64_t step, std::size_t cols, std::size_t size, std::byte* to) {
  for (std::size_t j = 0; j < cols; ++j)
    std::memcpy(to + j * size, from + static_cast<std::int64_t>(j * size) * step, size);
}

}  // namespace

template <class T>
void load_tile(const MergedTensor& tensor, const plan::Lattice& lattice, std::int64_t row, std::size_t rows,
               std::int64_t panel, T* tile, LineBuffer<std::byte>& bytes, Scratch& scratch) {
  const Dtype dtype = tensor.merge().base_dtype;
  const std::int64_t size = element_size(dtype), cols = std::min(kWidth, lattice.cols.count - panel * kWidth);
  const std::int64_t width = (cols - 1) * lattice.cols.step + 1;
  std::byte packed[kPanel * sizeof(double)];
  for (std::size_t i = 0; i < rows;) {
    const std::int64_t at = lattice.rows.first + (row + static_cast<std::int64_t>(i)) * lattice.rows.step;
    const std::int64_t together =
        lattice.rows.step == 1 ? std::min(static_cast<std::int64_t>(rows - i), tensor.stretch(at)) : 1;
    const Rectangle area{at, together, lattice.cols.first + panel * kWidth * lattice.cols.step, width};
    const BaseRows base = tensor.base(area, bytes.resize(static_cast<std::size_t>(together * width * size)), scratch);
    for (std::int64_t r = 0; r < together; ++r, ++i) {
      const std::byte* from = base.data + r * base.pitch;
      if (lattice.cols.step != 1) {
        gather_columns(from, lattice.cols.step, static_cast<std::size_t>(cols), static_cast<std::size_t>(size), packed);
        from = packed;
      }
      T* to = tile + i * kPanel;
      load(dtype, from, static_cast<std::size_t>(cols), to);
      std::fill(to + cols, to + kPanel, T{0});
    }
  }
}

template <class T>
Gains measure_gains(const MergedTensor& tensor, Tiles<T>& tiles, std::int64_t first, std::int64_t count) {
  return Measuring<T>(tensor, tiles, first, count).run();
}

template void load_tile(const MergedTensor&, const plan::Lattice&, std::int64_t, std::size_t, std::int64_t, float*,
                        LineBuffer<std::byte>&, Scratch&);
template void load_tile(const MergedTensor&, const plan::Lattice&, std::int64_t, std::size_t, std::int64_t, double*,
                        LineBuffer<std::byte>&, Scratch&);
template Gains measure_gains(const MergedTensor&, Tiles<float>&, std::int64_t, std::int64_t);
template Gains measure_gains(const MergedTensor&, Tiles<double>&, std::int64_t, std::int64_t);

}  // namespace peft::execution
