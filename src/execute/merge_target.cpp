#include "execute/merge_target.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "execute/element.h"
#include "execute/merge_sample.h"

namespace peft::execution {
namespace {

constexpr auto kWidth = static_cast<std::int64_t>(kPanel);

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
  Tile(const MergedTensor& tensor, Tiles<T>& tiles, const Gains& gains, const MergeTarget& target,
       const TilePlace& place)
      : tensor_(tensor),
        tiles_(tiles),
        gains_(gains),
        target_(target),
        place_(place),
        lattice_(tiles.lattice()),
        base_(tensor.merge().base_dtype),
        dtype_(tensor.tensor().dtype) {
    const std::int64_t row = lattice_.rows.first + (place.first + place.row) * lattice_.rows.step - target.area.row;
    const std::int64_t col = lattice_.cols.first +
                             (place.panel * kWidth + static_cast<std::int64_t>(place.begin)) * lattice_.cols.step -
                             target.area.col;
    from_ = target.base.data + row * target.base.pitch + col * element_size(base_);
    to_ = target.out + row * target.out_pitch + col * element_size(dtype_);
  }

  bool run(T* weights, MergeError& error) {
    for (std::size_t n = 0; n < tiles_.num_updates(); ++n) tiles_.product(n, place_.row, place_.rows, place_.panel);
    const bool guarded = sizeof(T) == sizeof(float) && tensor_.merge().mode == MergeMode::best;
    if (guarded) tiles_.smallest(place_.row, place_.rows, place_.panel, base_, gains_, smallest_);
    // A row is looked at before it is overwritten.
    double exact[kPanel];
    const std::size_t row = first_sampled(place_.first + place_.row, place_.panel);
    const bool sampled = tensor_.merge().mode == MergeMode::fast && row < place_.rows;
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
  std::size_t cols() const { return place_.end - place_.begin; }

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
    tiles_.run(0, tiles_.program().steps.size(), tensor_.merge(), place_.row, place_.rows, place_.panel, gains_,
               weights);
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
    const bool by_kernel = sizeof(T) == sizeof(float)
                               ? dtype_ == Dtype::bf16 || dtype_ == Dtype::f16 || dtype_ == Dtype::f32
                               : dtype_ == Dtype::f32 || dtype_ == Dtype::f64;
    if (by_kernel) return store(dtype_, values, cols(), at);
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
  Tiles<T>& tiles_;
  const Gains& gains_;
  const MergeTarget& target_;
  const TilePlace& place_;
  const plan::Lattice& lattice_;
  Dtype base_, dtype_;
  const std::byte* from_;
  std::byte* to_;
  float smallest_[kTileRows];
};

}  // namespace

template <class T>
bool merge_tile(const MergedTensor& tensor, Tiles<T>& tiles, const Gains& gains, const MergeTarget& target,
                const TilePlace& place, T* weights, MergeError& error) {
  return Tile<T>(tensor, tiles, gains, target, place).run(weights, error);
}

template bool merge_tile(const MergedTensor&, Tiles<float>&, const Gains&, const MergeTarget&, const TilePlace&, float*,
                         MergeError&);
template bool merge_tile(const MergedTensor&, Tiles<double>&, const Gains&, const MergeTarget&, const TilePlace&,
                         double*, MergeError&);

}  // namespace peft::execution
