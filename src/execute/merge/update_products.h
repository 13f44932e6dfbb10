// The tiles of one place: products of its updates' factors, and the steps that turn weights into merged weights.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "execute/merge/inputs/gathered_factors.h"
#include "execute/merge/inputs/merged_tensor.h"
#include "execute/kernels/pack_factors.h"
#include "execute/merge/inputs/merge_program.h"

namespace peft::execution {

// gains[g][o]: of the program's gain g, for the matrix's output o minus `first`.
struct DoraRowScales {
  std::int64_t first = 0;
  std::vector<std::vector<double>> values;
};

// T is float or double. One thread's; the factors stay packed while it works on the same place.
template <class T>
class UpdateProducts {
 public:
  void open(const MergedTensor& tensor, std::size_t place, GatherStore& factors);
  void forget();  // and lets go of the factors
  const MergeProgram& program() const { return program_; }
  const plan::Lattice& lattice() const { return lattice_; }
  const Update& update(std::size_t n) const { return *updates_[n]; }
  std::size_t num_updates() const { return updates_.size(); }
  std::int64_t rows_taken_from() const { return first_row_; }

  // Rows of the place whose tiles follow; as many as fit are taken, and told. At least kTileRows, if there are.
  std::int64_t take_rows(std::int64_t first, std::int64_t count);
  // The product of update n for some of these rows, counted from the first taken, and a panel of columns.
  T* product(std::size_t n, std::int64_t row, std::size_t rows, std::int64_t panel);
  const T* tile(std::size_t n) const { return packed_[n].tile.get(); }  // the product made last
  // What the first update has for some rows, counted from the first taken, and panels: one panel, unless keeps_all().
  // Nothing where a pair product would take a number for zero: then product() does it.
  struct Factors {
    bool paired = false;
    std::size_t width = 0;
    const T* left = nullptr;
    const T* right = nullptr;
    const float* left_norms = nullptr;   // of each row
    const float* right_norms = nullptr;  // of each panel
  };
  std::optional<Factors> factors(std::int64_t row, std::int64_t panel, std::int64_t panels);
  // smallest() is this times the norms of a row and a panel, for one update without gains.
  float smallest_of_norms(std::size_t n, Dtype base) const;
  // For each row: below this magnitude fp32 may have lost the last place of a result.
  void smallest(std::int64_t row, std::size_t rows, std::int64_t panel, Dtype base, const DoraRowScales& row_scales,
                float* out) const;
  // Whether all columns stay packed: if not, they are best taken panel by panel.
  bool keeps_all() const;
  // The exact sum for one element, in fp64.
  double exact(double weight, std::int64_t row, std::int64_t panel, std::size_t col, const DoraRowScales& row_scales) const;
  // Runs steps [begin, end) on a tile of weights; measuring is the caller's. Uses the products made last.
  void run(std::size_t begin, std::size_t end, const Merge& merge, std::int64_t row, std::size_t rows,
           std::int64_t panel, const DoraRowScales& row_scales, T* weights) const;

 private:
  struct Packed {
    Sides sides;
    FactorSource left_source, right_source;
    LineBuffer<T> left, right, tile;
    std::vector<float> left_norms, right_norms;
    std::vector<bool> is_packed;   // each panel of `right`
    std::int64_t only_panel = -1;  // where `right` holds one panel, as all are too much
    bool paired = false;           // left and right are words of two elements (merge_pairs.h)
    bool left_safe = true;
    std::vector<bool> right_safe;  // each panel
    std::int64_t safe_panels = 0;  // so many, from the first on, are known to be packed and safe

    std::size_t width() const;  // elements of T of a row of `left`; kPanel times as many of a panel of `right`
    double left_at(std::size_t i, std::size_t k) const;
  };
  static double exact_product(const Packed& packed, std::size_t row, const T* right, std::size_t col);
  void multiply_unpaired(Packed& packed, std::int64_t row, std::size_t rows, const T* right);
  const T* right_of(std::size_t n, std::int64_t panel);
  double row_scale_of(const DoraRowScales& row_scales, std::size_t row_scale, std::int64_t row, std::int64_t panel, std::size_t col) const;
  void scale_rows(const Step& step, const Merge& merge, std::int64_t row, std::size_t rows, std::int64_t panel,
                  const DoraRowScales& row_scales, T* weights) const;

  const MergedTensor* tensor_ = nullptr;
  std::size_t place_ = 0;
  plan::Lattice lattice_;
  MergeProgram program_;
  std::vector<const Update*> updates_;
  std::vector<Packed> packed_;  // may be more than there are updates
  std::int64_t first_row_ = 0;
  LineBuffer<T> unpaired_;
};

}  // namespace peft::execution
