#include "execute/merge_target.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "execute/element.h"

namespace peft::execution {
namespace {

constexpr auto kWidth = static_cast<std::int64_t>(kPanel);

void move_columns(const std::byte* from, std::int64_t from_step, std::byte* to, std::int64_t to_step, std::size_t cols,
                  std::size_t size) {
  for (std::size_t j = 0; j < cols; ++j) {
    std::memcpy(to + static_cast<std::int64_t>(j * size) * to_step, from + static_cast<std::int64_t>(j * size) * from_step, size);
  }
}

// How many representable values lie between two of the same dtype.
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

template <class T>
class Tile {
 public:
  Tile(const MergedTensor& tensor, Tiles<T>& tiles, const Gains& gains, const MergeTarget& target, const TilePlace& place)
      : tensor_(tensor), tiles_(tiles), gains_(gains), target_(target), place_(place), lattice_(tiles.lattice()),
        base_(tensor.merge().base_dtype), dtype_(tensor.tensor().dtype) {
    const std::int64_t row = lattice_.rows.first + (place.first + place.row) * lattice_.rows.step - target.area.row;
    const std::int64_t col = lattice_.cols.first +
                             (place.panel * kWidth + static_cast<std::int64_t>(place.begin)) * lattice_.cols.step - target.area.col;
    from_ = target.base.data + row * target.base.pitch + col * element_size(base_);
    to_ = target.out + row * target.out_pitch + col * element_size(dtype_);
  }

  bool run(T* weights, MergeError& error) {
    for (std::size_t n = 0; n < tiles_.num_updates(); ++n) tiles_.product(n, place_.row, place_.rows, place_.panel);
    const bool guarded = sizeof(T) == sizeof(float) && tensor_.merge().mode == MergeMode::best;
    if (guarded) tiles_.smallest(place_.row, place_.rows, place_.panel, base_, gains_, smallest_);
    const bool sampled = tensor_.merge().mode == MergeMode::fast && is_sampled();
    double exact[kPanel];
    if (sampled) exact_row(sample_row(), exact);
    const bool finite = is_simple() ? run_simple(guarded) : run_steps(weights, guarded);
    if (sampled) compare(sample_row(), exact, error);
    return finite;
  }

 private:
  const std::byte* from(std::size_t i) const { return from_ + static_cast<std::int64_t>(i) * lattice_.rows.step * target_.base.pitch; }
  std::byte* to(std::size_t i) const { return to_ + static_cast<std::int64_t>(i) * lattice_.rows.step * target_.out_pitch; }
  std::size_t cols() const { return place_.end - place_.begin; }

  bool is_simple() const {
    return sizeof(T) == sizeof(float) && tiles_.program().steps.size() == 1 && base_ == dtype_ && lattice_.cols.step == 1;
  }

  // A single update of a dense matrix: everything in one go.
  bool run_simple(bool guarded) {
    if constexpr (sizeof(T) == sizeof(float)) {
      std::uint64_t suspects[kTileRows];
      const TileRows where{from_, lattice_.rows.step * target_.base.pitch, to_, lattice_.rows.step * target_.out_pitch,
                           place_.rows, cols()};
      // The weights are kept where they are about to be overwritten by themselves: suspects are computed from them.
      const bool in_place = guarded && from_ == to_;
      if (in_place) keep_weights();
      const Step& step = tiles_.program().steps.front();
      const bool finite = finish({step.tail, base_, tiles_.update(0).scale}, tiles_.tile(0) + place_.begin, where,
                                 guarded ? smallest_ : nullptr, suspects);
      for (std::size_t i = 0; guarded && i < place_.rows; ++i) {
        for (std::uint64_t left = suspects[i]; left != 0; left &= left - 1) {
          const auto j = static_cast<std::size_t>(std::countr_zero(left));
          const std::byte* weight = in_place ? &kept_[(i * kPanel + j) * sizeof(std::uint16_t)] : from(i) + j * sizeof(std::uint16_t);
          store_element(dtype_, exact_at(load_element(base_, weight), i, j), to(i) + j * sizeof(std::uint16_t));
        }
      }
      return finite;
    }
    return false;
  }

  void keep_weights() {
    for (std::size_t i = 0; i < place_.rows; ++i)
      std::memcpy(&kept_[i * kPanel * sizeof(std::uint16_t)], from(i), cols() * sizeof(std::uint16_t));
  }

  double exact_at(double weight, std::size_t i, std::size_t j) const {
    return tiles_.exact(weight, place_.row + static_cast<std::int64_t>(i), place_.panel, place_.begin + j, gains_);
  }

  bool run_steps(T* weights, bool guarded) {
    const auto size = static_cast<std::size_t>(element_size(base_));
    std::byte packed[kPanel * sizeof(double)];
    for (std::size_t i = 0; i < place_.rows; ++i) {
      T* row = weights + i * kPanel;
      std::fill_n(row, kPanel, T{0});
      const std::byte* at = from(i);
      if (lattice_.cols.step != 1) move_columns(from(i), lattice_.cols.step, packed, 1, cols(), size), at = packed;
      load(base_, at, cols(), row + place_.begin);
    }
    T before[kTileSize];
    if (guarded) std::copy_n(weights, place_.rows * kPanel, before);
    tiles_.run(0, tiles_.program().steps.size(), tensor_.merge(), place_.row, place_.rows, place_.panel, gains_, weights);
    for (std::size_t i = 0; guarded && i < place_.rows; ++i) {
      for (std::size_t j = place_.begin; j < place_.end; ++j) {
        T& value = weights[i * kPanel + j];
        if (!(std::fabs(value) < static_cast<T>(smallest_[i]))) continue;
        // Rounded here, once, to a value that rounding again does not change.
        std::byte rounded[sizeof(double)];
        store_element(base_, exact_at(static_cast<double>(before[i * kPanel + j]), i, j - place_.begin), rounded);
        value = static_cast<T>(load_element(base_, rounded));
      }
    }
    return write(weights);
  }

  bool write(T* weights) {
    const auto size = static_cast<std::size_t>(element_size(dtype_));
    if (base_ != dtype_) round_to(base_, weights, place_.rows * kPanel);
    bool finite = true;
    std::byte packed[kPanel * sizeof(double)];
    for (std::size_t i = 0; i < place_.rows; ++i) {
      std::byte* at = lattice_.cols.step == 1 ? to(i) : packed;
      finite &= store_row(weights + i * kPanel + place_.begin, at);
      if (lattice_.cols.step != 1) move_columns(packed, 1, to(i), lattice_.cols.step, cols(), size);
    }
    return finite;
  }

  bool store_row(const T* values, std::byte* at) const {
    const bool by_kernel = sizeof(T) == sizeof(float) ? dtype_ == Dtype::bf16 || dtype_ == Dtype::f16 || dtype_ == Dtype::f32
                                                      : dtype_ == Dtype::f32 || dtype_ == Dtype::f64;
    if (by_kernel) return store(dtype_, values, cols(), at);
    bool finite = true;
    for (std::size_t j = 0; j < cols(); ++j) {
      const auto value = static_cast<double>(values[j]);
      finite &= store_element(dtype_, value, at + static_cast<std::int64_t>(j) * element_size(dtype_)) && std::isfinite(value);
    }
    return finite;
  }

  // One row of some tiles, chosen by their place in the matrix, whatever the units are.
  std::int64_t matrix_row() const { return place_.first + place_.row; }
  std::size_t sample_row() const {
    constexpr auto kRows = static_cast<std::int64_t>(kTileRows);
    return static_cast<std::size_t>((matrix_row() + kRows - 1) / kRows * kRows - matrix_row());
  }
  bool is_sampled() const {
    constexpr std::int64_t kEvery = 509;
    const std::size_t row = sample_row();
    const std::int64_t block = (matrix_row() + static_cast<std::int64_t>(row)) / static_cast<std::int64_t>(kTileRows);
    return row < place_.rows && (block + place_.panel) % kEvery == 0;
  }
  void exact_row(std::size_t i, double* exact) const {
    for (std::size_t j = 0; j < cols(); ++j) {
      exact[j] = exact_at(load_element(base_, from(i) + static_cast<std::int64_t>(j) * lattice_.cols.step * element_size(base_)), i, j);
    }
  }
  void compare(std::size_t i, const double* exact, MergeError& error) const {
    for (std::size_t j = 0; j < cols(); ++j) {
      std::byte right[sizeof(double)], as_base[sizeof(double)];
      store_element(base_, exact[j], as_base);
      store_element(dtype_, load_element(base_, as_base), right);
      const double steps =
          steps_between(dtype_, right, to(i) + static_cast<std::int64_t>(j) * lattice_.cols.step * element_size(dtype_));
      ++error.sampled;
      if (steps != 0) ++error.different;
      error.max_ulps = std::max(error.max_ulps, steps);
    }
  }

  const MergedTensor& tensor_;
  Tiles<T>& tiles_;
  const Gains& gains_;
  const MergeTarget& target_;
  const TilePlace& place_;
  const plan::Lattice& lattice_;
  Dtype base_, dtype_;
  const std::byte* from_;
  std::byte* to_;
  float smallest_[kTileRows];
  std::byte kept_[kTileSize * sizeof(std::uint16_t)];
};

}  // namespace

template <class T>
bool merge_tile(const MergedTensor& tensor, Tiles<T>& tiles, const Gains& gains, const MergeTarget& target,
                const TilePlace& place, T* weights, MergeError& error) {
  return Tile<T>(tensor, tiles, gains, target, place).run(weights, error);
}

template bool merge_tile(const MergedTensor&, Tiles<float>&, const Gains&, const MergeTarget&, const TilePlace&, float*, MergeError&);
template bool merge_tile(const MergedTensor&, Tiles<double>&, const Gains&, const MergeTarget&, const TilePlace&, double*, MergeError&);

}  // namespace peft::execution
