#include "execute/merge/tile_merger.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "execute/copy/copy_ops.h"
#include "execute/values/element.h"

namespace peft::execution {
namespace {

void move_columns(const std::byte* from, std::int64_t from_step, std::byte* to, std::int64_t to_step, std::size_t cols,
                  std::size_t size) {
  for (std::size_t j = 0; j < cols; ++j) {
    std::memcpy(to + static_cast<std::int64_t>(j * size) * to_step,
                from + static_cast<std::int64_t>(j * size) * from_step, size);
  }
}

template <class T>
class Tile {
 public:
  Tile(const MergedTensor& tensor, UpdateProducts<T>& products, const DoraRowScales& row_scales, const AreaRows& target,
       const TileArea& tile)
      : tensor_(tensor),
        products_(products),
        row_scales_(row_scales),
        target_(target),
        tile_(tile),
        lattice_(products.lattice()),
        base_(tensor.merge().base_dtype),
        dtype_(tensor.tensor().dtype) {
    const std::int64_t row = lattice_.rows.first + (tile.first + tile.row) * lattice_.rows.step - target.area.row;
    const std::int64_t col = lattice_.cols.first +
                             (tile.panel * kWidth + static_cast<std::int64_t>(tile.begin)) * lattice_.cols.step -
                             target.area.col;
    from_ = target.base.data + row * target.base.pitch + col * element_size(base_);
    to_ = target.out + row * target.out_pitch + col * element_size(dtype_);
  }

  bool run(T* weights, MergeError& error) {
    for (std::size_t n = 0; n < products_.num_updates(); ++n) products_.product(n, range());
    const bool guarded = sizeof(T) == sizeof(float) && tensor_.merge().mode == MergeMode::best;
    if (guarded) products_.smallest(range(), base_, row_scales_, smallest_);
    // The exact row is computed before the weights are overwritten.
    double exact[kPanel];
    const std::size_t row = first_sampled(tile_.first + tile_.row, tile_.panel);
    const bool sampled = tensor_.merge().mode == MergeMode::fast && row < tile_.rows;
    if (sampled) exact_row(row, exact);
    const bool finite = run_steps(weights, guarded);
    if (sampled) compare_sample({base_, dtype_}, exact, cols(), to(row), lattice_.cols.step, error);
    return finite;
  }

 private:
  const std::byte* from(std::size_t i) const {
    return from_ + static_cast<std::int64_t>(i) * lattice_.rows.step * target_.base.pitch;
  }
  std::byte* to(std::size_t i) const {
    return to_ + static_cast<std::int64_t>(i) * lattice_.rows.step * target_.out_pitch;
  }
  TileRange range() const { return {tile_.row, tile_.rows, tile_.panel}; }
  std::size_t cols() const { return tile_.end - tile_.begin; }

  double exact_at(double weight, std::size_t i, std::size_t j) const {
    return products_.exact(weight, tile_.row + static_cast<std::int64_t>(i), tile_.panel, tile_.begin + j, row_scales_);
  }

  bool run_steps(T* weights, bool guarded) {
    const auto size = static_cast<std::size_t>(element_size(base_));
    std::byte packed[kPanel * sizeof(double)];
    for (std::size_t i = 0; i < tile_.rows; ++i) {
      T* row = weights + i * kPanel;
      std::fill_n(row, kPanel, T{0});
      const std::byte* at = from(i);
      if (lattice_.cols.step != 1) move_columns(from(i), lattice_.cols.step, packed, 1, cols(), size), at = packed;
      load(base_, at, cols(), row + tile_.begin);
    }
    T before[kTileSize];
    if (guarded) std::copy_n(weights, tile_.rows * kPanel, before);
    products_.run(products_.program().steps.size(), range(), row_scales_, weights);
    for (std::size_t i = 0; guarded && i < tile_.rows; ++i) {
      for (std::size_t j = tile_.begin; j < tile_.end; ++j) {
        T& value = weights[i * kPanel + j];
        if (!(std::fabs(value) < static_cast<T>(smallest_[i]))) continue;
        // Rounded here, once. Rounding the result again does not change it.
        std::byte rounded[sizeof(double)];
        store_element(base_, exact_at(static_cast<double>(before[i * kPanel + j]), i, j - tile_.begin), rounded);
        value = static_cast<T>(load_element(base_, rounded));
      }
    }
    return write(weights);
  }

  bool write(T* weights) {
    const auto size = static_cast<std::size_t>(element_size(dtype_));
    if (base_ != dtype_) round_to(base_, weights, tile_.rows * kPanel);
    bool finite = true;
    std::byte packed[kPanel * sizeof(double)];
    for (std::size_t i = 0; i < tile_.rows; ++i) {
      std::byte* at = lattice_.cols.step == 1 ? to(i) : packed;
      finite &= store_row(weights + i * kPanel + tile_.begin, at);
      if (lattice_.cols.step != 1) move_columns(packed, 1, to(i), lattice_.cols.step, cols(), size);
    }
    return finite;
  }

  bool store_row(const T* values, std::byte* at) const {
    const bool by_kernel = sizeof(T) == sizeof(float)
                               ? dtype_ == Dtype::bf16 || dtype_ == Dtype::f16 || dtype_ == Dtype::f32
                               : dtype_ == Dtype::f32 || dtype_ == Dtype::f64;
    if (by_kernel) return store(dtype_, values, cols(), at);
    if (base_ == Dtype::f32 && (dtype_ == Dtype::f16 || dtype_ == Dtype::bf16)) {
      float narrow[kPanel];  // exact: they were rounded to the base's dtype
      std::transform(values, values + cols(), narrow, [](T value) { return static_cast<float>(value); });
      return store(dtype_, narrow, cols(), at);
    }
    bool finite = true;
    for (std::size_t j = 0; j < cols(); ++j) {
      const auto value = static_cast<double>(values[j]);
      finite &= store_element(dtype_, value, at + static_cast<std::int64_t>(j) * element_size(dtype_)) &&
                std::isfinite(value);
    }
    return finite;
  }

  void exact_row(std::size_t i, double* exact) const {
    for (std::size_t j = 0; j < cols(); ++j) {
      exact[j] = exact_at(
          load_element(base_, from(i) + static_cast<std::int64_t>(j) * lattice_.cols.step * element_size(base_)), i, j);
    }
  }

  const MergedTensor& tensor_;
  UpdateProducts<T>& products_;
  const DoraRowScales& row_scales_;
  const AreaRows& target_;
  const TileArea& tile_;
  const plan::Lattice& lattice_;
  Dtype base_, dtype_;
  const std::byte* from_;
  std::byte* to_;
  float smallest_[kTileRows];
};

}  // namespace

template <class T>
bool merge_tile(const MergedTensor& tensor, UpdateProducts<T>& products, const DoraRowScales& row_scales,
                const AreaRows& target, const TileArea& tile, T* weights, MergeError& error) {
  return Tile<T>(tensor, products, row_scales, target, tile).run(weights, error);
}

template bool merge_tile(const MergedTensor&, UpdateProducts<float>&, const DoraRowScales&, const AreaRows&,
                         const TileArea&, float*, MergeError&);
template bool merge_tile(const MergedTensor&, UpdateProducts<double>&, const DoraRowScales&, const AreaRows&,
                         const TileArea&, double*, MergeError&);

namespace {

constexpr std::int64_t kEveryRow = 32, kEveryPanel = 509;

// The distance of two values in last places of the dtype.
double steps_between(Dtype dtype, const std::byte* a, const std::byte* b) {
  const auto ordered = [&](const std::byte* at) {
    std::uint64_t bits = 0;
    const auto size = static_cast<std::size_t>(element_size(dtype));
    std::memcpy(&bits, at, size);
    const std::uint64_t sign = std::uint64_t{1} << (8 * size - 1);
    const auto magnitude = static_cast<double>(bits & (sign - 1));
    return (bits & sign) != 0 ? -magnitude : magnitude;
  };
  return std::fabs(ordered(a) - ordered(b));
}

}  // namespace

std::size_t first_sampled(std::int64_t row, std::int64_t panel) {
  std::int64_t block = (row + kEveryRow - 1) / kEveryRow;
  block += (kEveryPanel - (block + panel) % kEveryPanel) % kEveryPanel;
  return static_cast<std::size_t>(block * kEveryRow - row);
}

void compare_sample(const SampleDtypes& dtypes, const double* exact, std::size_t count, const std::byte* results,
                    std::int64_t step, MergeError& error) {
  for (std::size_t j = 0; j < count; ++j) {
    std::byte right[sizeof(double)], as_base[sizeof(double)];
    store_element(dtypes.base, exact[j], as_base);
    store_element(dtypes.out, load_element(dtypes.base, as_base), right);
    const std::byte* result = results + static_cast<std::int64_t>(j) * step * element_size(dtypes.out);
    const double steps = steps_between(dtypes.out, right, result);
    ++error.sampled;
    if (steps != 0) ++error.different;
    error.max_ulps = std::max(error.max_ulps, steps);
  }
}

}  // namespace peft::execution
