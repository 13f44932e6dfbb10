#include "execute/merge/update_products.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "execute/kernels/bf16_pairs.h"

namespace peft::execution {
namespace {

// Limits for the packed columns of an update that stay in memory, and for its packed rows.
constexpr std::size_t kRightBytes = std::size_t{2} << 20, kLeftBytes = std::size_t{256} << 10;

template <class T>
std::uint32_t* words(T* memory) {
  return reinterpret_cast<std::uint32_t*>(memory);
}
template <class T>
const std::uint32_t* words(const T* memory) {
  return reinterpret_cast<const std::uint32_t*>(memory);
}

// Element k of a chain in packed factors: at k * step + offset, or in words of two elements.
template <class T>
double element(bool paired, const T* packed, std::size_t k, std::size_t step, std::size_t offset) {
  if (!paired) return static_cast<double>(packed[k * step + offset]);
  std::uint32_t word;
  std::memcpy(&word, reinterpret_cast<const std::byte*>(packed) + (k / 2 * step + offset) * sizeof word, sizeof word);
  return static_cast<double>(k % 2 == 0 ? first_of(word) : second_of(word));
}

std::int64_t panels_of(std::int64_t cols) { return (cols + kWidth - 1) / kWidth; }

}  // namespace

template <class T>
void UpdateProducts<T>::open(const MergedTensor& tensor, std::size_t matrix, GatherStore& factors) {
  if (tensor_ == &tensor && matrix_ == matrix) return;
  tensor_ = nullptr;
  const plan::TargetMatrix& where = tensor.index().matrices[matrix];
  lattice_ = where.lattice;
  program_ = make_program(tensor.merge(), where);
  updates_.clear();
  if (packed_.size() < where.updates.size()) packed_.resize(where.updates.size());
  const std::int64_t panels = panels_of(lattice_.cols.count);
  for (std::size_t n = 0; n < where.updates.size(); ++n) {
    updates_.push_back(&tensor.merge().updates[where.updates[n]]);
    Packed& packed = packed_[n];
    packed.sides = sides_of(*updates_[n], lattice_.swapped);
    const auto source = [&](const View& side) {
      const bool is_ones = side.rows == 0 || side.cols == 0;
      return is_ones ? FactorSource() : factors.open(tensor.plan(), side, views_in_turn(where.updates.size()));
    };
    packed.left_source = source(packed.sides.left);
    packed.right_source = source(packed.sides.right);
    packed.paired = sizeof(T) == sizeof(std::uint32_t) && can_pair(tensor.plan(), packed.sides);
    packed.right_safe.assign(static_cast<std::size_t>(panels), true);
    const std::size_t panel = packed.width() * kPanel;
    const bool all = panel * static_cast<std::size_t>(panels) * sizeof(T) <= kRightBytes / where.updates.size();
    packed.right.resize(all ? panel * static_cast<std::size_t>(panels) : panel);
    packed.tile.resize(kTileSize);
    packed.is_packed.assign(all ? static_cast<std::size_t>(panels) : 0, false);
    packed.right_norms.assign(static_cast<std::size_t>(panels), 0);
    packed.only_panel = -1;
    packed.safe_panels = 0;
  }
  matrix_ = matrix;
  tensor_ = &tensor;
}

template <class T>
void UpdateProducts<T>::forget() {
  tensor_ = nullptr;
  for (Packed& packed : packed_) packed.left_source = packed.right_source = {};
}

template <class T>
std::int64_t UpdateProducts<T>::take_rows(std::int64_t first, std::int64_t count) {
  std::size_t rank = 1;
  for (std::size_t n = 0; n < num_updates(); ++n) rank += static_cast<std::size_t>(packed_[n].sides.rank);
  const std::size_t fit = std::max(kLeftBytes / sizeof(T) / rank / kTileRows * kTileRows, kTileRows);
  const auto rows = std::min(static_cast<std::size_t>(count), fit);
  for (std::size_t n = 0; n < num_updates(); ++n) {
    Packed& packed = packed_[n];
    T* out = packed.left.resize(rows * packed.width());
    packed.left_norms.resize(rows);
    if (packed.paired) {
      pair_left(packed.left_source, packed.sides.rank, first, rows, words(out), packed.left_norms.data(),
                packed.left_safe);
    } else {
      pack_left(packed.left_source, packed.sides.rank, first, rows, out, packed.left_norms.data());
    }
  }
  first_row_ = first;
  return static_cast<std::int64_t>(rows);
}

template <class T>
const T* UpdateProducts<T>::right_of(std::size_t n, std::int64_t panel) {
  Packed& packed = packed_[n];
  const auto p = static_cast<std::size_t>(panel);
  const bool all = !packed.is_packed.empty();
  T* right = packed.right.get() + (all ? p * packed.width() * kPanel : 0);
  if (all ? packed.is_packed[p] : packed.only_panel == panel) return right;
  if (packed.paired) {
    bool safe = true;
    packed.right_norms[p] =
        pair_right(packed.right_source, packed.sides.rank, lattice_.cols.count, panel, words(right), safe);
    packed.right_safe[p] = safe;
  } else {
    packed.right_norms[p] = pack_right(packed.right_source, packed.sides.rank, lattice_.cols.count, panel, right);
  }
  if (all) packed.is_packed[p] = true;
  packed.only_panel = panel;
  return right;
}

template <class T>
T* UpdateProducts<T>::product(std::size_t n, const TileRange& tile) {
  Packed& packed = packed_[n];
  const T* right = right_of(n, tile.panel);
  const T* left = packed.left.get() + static_cast<std::size_t>(tile.row) * packed.width();
  if (!packed.paired) {
    multiply(left, tile.rows, packed.width(), right, packed.tile.get());
  } else if (packed.left_safe && packed.right_safe[static_cast<std::size_t>(tile.panel)]) {
    multiply_pairs(words(left), tile.rows, packed.width(), words(right), reinterpret_cast<float*>(packed.tile.get()));
  } else {
    multiply_unpaired(packed, tile.row, tile.rows, right);
  }
  return packed.tile.get();
}

template <class T>
std::optional<typename UpdateProducts<T>::Factors> UpdateProducts<T>::factors(std::int64_t row, std::int64_t panel,
                                                                              std::int64_t panels) {
  Packed& packed = packed_.front();
  if (panel + panels > packed.safe_panels) {
    bool safe = true;
    for (std::int64_t p = panel; p < panel + panels; ++p) {
      right_of(0, p);
      safe &= packed.right_safe[static_cast<std::size_t>(p)];
    }
    if (packed.paired && !safe) return std::nullopt;
    if (keeps_all() && panel <= packed.safe_panels) packed.safe_panels = panel + panels;
  }
  if (packed.paired && !packed.left_safe) return std::nullopt;
  return Factors{packed.paired,
                 packed.width(),
                 packed.left.get() + static_cast<std::size_t>(row) * packed.width(),
                 right_of(0, panel),
                 &packed.left_norms[static_cast<std::size_t>(row)],
                 &packed.right_norms[static_cast<std::size_t>(panel)]};
}

// For factors with numbers so small that pair products would treat them as zero: unpacks the words and multiplies in
// fp32.
template <class T>
void UpdateProducts<T>::multiply_unpaired(Packed& packed, std::int64_t row, std::size_t rows, const T* right) {
  const auto rank = static_cast<std::size_t>(packed.sides.rank);
  T* left = unpaired_.resize((rows + kPanel) * rank);
  T* panel = left + rows * rank;
  for (std::size_t k = 0; k < rank; ++k) {
    for (std::size_t i = 0; i < rows; ++i)
      left[i * rank + k] = static_cast<T>(packed.left_at(static_cast<std::size_t>(row) + i, k));
    for (std::size_t j = 0; j < kPanel; ++j)
      panel[k * kPanel + j] = static_cast<T>(element(packed.paired, right, k, kPanel, j));
  }
  multiply(left, rows, rank, panel, packed.tile.get());
}

template <class T>
std::size_t UpdateProducts<T>::Packed::width() const {
  return paired ? pairs_of(static_cast<std::size_t>(sides.rank)) : static_cast<std::size_t>(sides.rank);
}

template <class T>
double UpdateProducts<T>::Packed::left_at(std::size_t i, std::size_t k) const {
  return element(paired, left.get() + i * width(), k, 1, 0);
}

template <class T>
double UpdateProducts<T>::row_scale_of(const DoraRowScales& row_scales, std::size_t row_scale, std::int64_t row,
                                       std::int64_t panel, std::size_t col) const {
  const std::int64_t out = lattice_.swapped
                               ? std::min(panel * kWidth + static_cast<std::int64_t>(col), lattice_.cols.count - 1)
                               : first_row_ + row;
  return row_scales.values[row_scale][static_cast<std::size_t>(out - row_scales.first)];
}

// The error of a chain in fp32 is below 2^-22 of the product of the norms for every rank in use; `longer` covers higher
// ranks. Half a last place of a result is 2^-9 of it in bf16 and 2^-12 in fp16.
template <class T>
float UpdateProducts<T>::smallest_of_norms(std::size_t n, Dtype base) const {
  const float longer = std::max(1.0F, std::sqrt(static_cast<float>(packed_[n].sides.rank)) / 8);
  return std::fabs(static_cast<float>(updates_[n]->scale)) * longer * (base == Dtype::bf16 ? 0x1p-13F : 0x1p-10F);
}

template <class T>
void UpdateProducts<T>::smallest(const TileRange& tile, Dtype base, const DoraRowScales& row_scales, float* out) const {
  std::fill_n(out, tile.rows, 0.0F);
  for (std::size_t n = 0; n < num_updates(); ++n) {
    const Packed& packed = packed_[n];
    const float right = packed.right_norms[static_cast<std::size_t>(tile.panel)] * smallest_of_norms(n, base);
    const float* left = &packed.left_norms[static_cast<std::size_t>(tile.row)];
    for (std::size_t i = 0; i < tile.rows; ++i) out[i] += left[i] * right;
  }
  for (std::size_t s = 0; s < program_.row_scales.size(); ++s) {
    for (std::size_t i = 0; i < tile.rows; ++i) {
      const std::int64_t row = tile.row + static_cast<std::int64_t>(i);
      float most = 1;
      for (std::size_t col = 0; col < (lattice_.swapped ? kPanel : 1); ++col)
        most = std::max(most, static_cast<float>(std::fabs(row_scale_of(row_scales, s, row, tile.panel, col))));
      out[i] *= most;
    }
  }
}

template <class T>
bool UpdateProducts<T>::keeps_all() const {
  return std::none_of(packed_.begin(), packed_.begin() + static_cast<std::ptrdiff_t>(num_updates()),
                      [](const Packed& packed) { return packed.is_packed.empty(); });
}

// Products of floats are exact in fp64, so that no fma() is needed. It is a slow function call where the compiler may
// not use the instruction.
template <class T>
double UpdateProducts<T>::exact_product(const Packed& packed, std::size_t row, const T* right, std::size_t col) {
  const std::size_t width = packed.width();
  const T* left = packed.left.get() + row * width;
  double sum = 0;
  if (packed.paired) {
    const std::uint32_t *words_of_row = words(left), *words_of_col = words(right) + col;
    for (std::size_t p = 0; p < width; ++p) {
      const std::uint32_t one = words_of_row[p], other = words_of_col[p * kPanel];
      sum += static_cast<double>(first_of(one)) * static_cast<double>(first_of(other));
      sum += static_cast<double>(second_of(one)) * static_cast<double>(second_of(other));
    }
  } else {
    for (std::size_t k = 0; k < width; ++k) {
      const auto one = static_cast<double>(left[k]), other = static_cast<double>(right[k * kPanel + col]);
      sum = sizeof(T) == sizeof(float) ? sum + one * other : std::fma(one, other, sum);
    }
  }
  return sum;
}

template <class T>
double UpdateProducts<T>::exact(double weight, std::int64_t row, std::int64_t panel, std::size_t col,
                                const DoraRowScales& row_scales) const {
  for (const Step& step : program_.steps) {
    if (step.kind == Step::Kind::measure) continue;
    const Packed& packed = packed_[step.update];
    const T* right =
        packed.right.get() + (packed.is_packed.empty() ? 0 : static_cast<std::size_t>(panel) * packed.width() * kPanel);
    const double sum = exact_product(packed, static_cast<std::size_t>(row), right, col);
    weight = std::fma(updates_[step.update]->scale, sum, weight);
    if (step.kind == Step::Kind::scale) weight *= row_scale_of(row_scales, step.row_scale, row, panel, col);
  }
  return weight;
}

// W = row_scale * (W + scale * d), or the inverse.
template <class T>
void UpdateProducts<T>::scale_rows(const Step& step, const TileRange& tile, const DoraRowScales& row_scales,
                                   T* weights) const {
  const T* d = packed_[step.update].tile.get();
  const auto factor = static_cast<T>(updates_[step.update]->scale);
  const bool takes_out = step.kind == Step::Kind::take_out;
  const Dtype base = tensor_->merge().base_dtype;
  if (step.rule == AddRule::fused)
    apply_rule({AddRule::fused, base, updates_[step.update]->scale}, d, weights, tile.rows * kPanel);
  for (std::size_t i = 0; i < tile.rows; ++i) {
    T row_scale[kPanel];
    for (std::size_t j = 0; j < kPanel; ++j) {
      row_scale[j] = static_cast<T>(
          row_scale_of(row_scales, step.row_scale, tile.row + static_cast<std::int64_t>(i), tile.panel, j));
    }
    T* w = weights + i * kPanel;
    const T* delta = d + i * kPanel;
    for (std::size_t j = 0; j < kPanel; ++j) {
      if (takes_out) {
        w[j] = w[j] / row_scale[j] - delta[j] * factor;
      } else if (step.rule == AddRule::fused) {
        w[j] *= row_scale[j];
      } else {
        w[j] = (w[j] + delta[j] * factor) * row_scale[j];
      }
    }
  }
  if (step.rule != AddRule::fused) round_to(base, weights, tile.rows * kPanel);
}

template <class T>
void UpdateProducts<T>::run(std::size_t end, const TileRange& tile, const DoraRowScales& row_scales, T* weights) const {
  for (std::size_t s = 0; s < end; ++s) {
    const Step& step = program_.steps[s];
    switch (step.kind) {
      case Step::Kind::add:
        apply_rule({step.rule, tensor_->merge().base_dtype, updates_[step.update]->scale},
                   packed_[step.update].tile.get(), weights, tile.rows * kPanel);
        break;
      case Step::Kind::scale:
      case Step::Kind::take_out:
        scale_rows(step, tile, row_scales, weights);
        break;
      case Step::Kind::measure:
        break;
    }
  }
}

template class UpdateProducts<float>;
template class UpdateProducts<double>;

}  // namespace peft::execution
