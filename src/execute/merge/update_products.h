// The products B * A of the updates of one target matrix, tile by tile, and the steps that merge them into the weights.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "execute/kernels/pack_factors.h"
#include "execute/merge/inputs/gathered_factors.h"
#include "execute/merge/inputs/merge_program.h"
#include "execute/merge/inputs/merged_tensor.h"

namespace peft::execution {

// Rows and one panel of columns of the opened target matrix.
struct TileRange {
  std::int64_t row = 0;  // counted from the first row that take_rows() took
  std::size_t rows = 0;
  std::int64_t panel = 0;
};

// T is float or double. Not for several threads. The factors stay packed while the same target matrix is open.
template <class T>
class UpdateProducts {
 public:
  void open(const MergedTensor& tensor, std::size_t matrix, GatherStore& factors);
  void forget();  // closes the target matrix and releases its factors
  const MergeProgram& program() const { return program_; }
  const plan::Lattice& lattice() const { return lattice_; }
  const Update& update(std::size_t n) const { return *updates_[n]; }
  std::size_t num_updates() const { return updates_.size(); }
  std::int64_t rows_taken_from() const { return first_row_; }

  // Packs the rows from `first` on that the next tiles need. Returns how many rows fit: at least kTileRows, if there
  // are so many.
  std::int64_t take_rows(std::int64_t first, std::int64_t count);
  // The product of update n for some rows and a panel of columns. Rows are counted from the first row taken, here and
  // below.
  T* product(std::size_t n, const TileRange& tile);
  const T* tile(std::size_t n) const { return packed_[n].tile.get(); }  // the last product
  // The packed factors of the first update for some rows and panels; more than one panel only if keeps_all(). nullopt
  // where a bf16 pair product would treat a number as zero. product() handles these.
  struct Factors {
    bool paired = false;
    std::size_t width = 0;
    const T* left = nullptr;
    const T* right = nullptr;
    const float* left_norms = nullptr;   // of each row
    const float* right_norms = nullptr;  // of each panel
  };
  std::optional<Factors> factors(std::int64_t row, std::int64_t panel, std::int64_t panels);
  // For a single update without row scales: smallest() is this times the norms of a row and of a panel.
  float smallest_of_norms(std::size_t n, Dtype base) const;
  // For each row, a limit: the last place of a result below it may be wrong in fp32.
  void smallest(const TileRange& tile, Dtype base, const DoraRowScales& row_scales, float* out) const;
  // Whether all columns stay packed. If not, the caller should go panel by panel.
  bool keeps_all() const;
  // The merged value of one element, computed in fp64.
  double exact(double weight, std::int64_t row, std::int64_t panel, std::size_t col,
               const DoraRowScales& row_scales) const;
  // Runs the steps before `end` on a tile of weights, with the last products. Skips steps that measure.
  void run(std::size_t end, const TileRange& tile, const DoraRowScales& row_scales, T* weights) const;

 private:
  struct Packed {
    Sides sides;
    FactorSource left_source, right_source;
    LineBuffer<T> left, right, tile;
    std::vector<float> left_norms, right_norms;
    std::vector<bool> is_packed;   // for each panel of `right`
    std::int64_t only_panel = -1;  // the panel in `right`, where there is room for one only
    bool paired = false;           // left and right are words of two elements (bf16_pairs.h)
    bool left_safe = true;
    std::vector<bool> right_safe;  // for each panel
    std::int64_t safe_panels = 0;  // the first `safe_panels` panels are packed and safe

    std::size_t width() const;  // elements of T in a row of `left`; a panel of `right` has kPanel times as many
    double left_at(std::size_t i, std::size_t k) const;
  };
  static double exact_product(const Packed& packed, std::size_t row, const T* right, std::size_t col);
  void multiply_unpaired(Packed& packed, std::int64_t row, std::size_t rows, const T* right);
  const T* right_of(std::size_t n, std::int64_t panel);
  double row_scale_of(const DoraRowScales& row_scales, std::size_t row_scale, std::int64_t row, std::int64_t panel,
                      std::size_t col) const;
  void scale_rows(const Step& step, const TileRange& tile, const DoraRowScales& row_scales, T* weights) const;

  const MergedTensor* tensor_ = nullptr;
  std::size_t matrix_ = 0;
  plan::Lattice lattice_;
  MergeProgram program_;
  std::vector<const Update*> updates_;
  std::vector<Packed> packed_;  // may be more than there are updates
  std::int64_t first_row_ = 0;
  LineBuffer<T> unpaired_;
};

}  // namespace peft::execution
