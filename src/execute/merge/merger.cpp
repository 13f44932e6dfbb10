#include "execute/merge/merger.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "base/system.h"
#include "execute/merge/dora_row_scales.h"
#include "execute/values/element.h"
#include "execute/values/nonfinite.h"

namespace peft::execution {
namespace {

constexpr std::size_t kKeptMatrices = 4;  // target matrices that keep their packed factors
// Rows of the base that have to be rendered are rendered so many bytes at a time: they stay in the cache.
constexpr std::int64_t kRenderedBytes = std::int64_t{256} << 10, kRowsTogether = 32;
constexpr auto kNoMatrix = static_cast<std::size_t>(-1);

bool uses_peft_rounding(const Merge& merge) {
  return merge.mode == MergeMode::peft || merge.mode == MergeMode::peft_safe;
}

bool computes_in_fp64(const Merge& merge) {
  return merge.base_dtype == Dtype::f64 || (merge.base_dtype == Dtype::f32 && merge.mode == MergeMode::best);
}

template <class T>
UpdateProducts<T>& products_in(std::list<std::pair<std::size_t, UpdateProducts<T>>>& kept, const MergedTensor& tensor,
                               std::size_t matrix, GatherStore& factors) {
  const auto find = [&](std::size_t wanted) {
    return std::find_if(kept.begin(), kept.end(), [&](const auto& entry) { return entry.first == wanted; });
  };
  auto it = find(matrix);
  if (it == kept.end()) it = find(kNoMatrix);
  if (it == kept.end() && kept.size() < kKeptMatrices) it = kept.emplace(kept.end());
  if (it == kept.end()) it = std::prev(it);  // the least recently used one
  kept.splice(kept.begin(), kept, it);
  kept.front().first = matrix;
  kept.front().second.open(tensor, matrix, factors);
  return kept.front().second;
}

}  // namespace

template <>
UpdateProducts<float>& Merger::products_of(std::size_t matrix) {
  return products_in(products32_, *tensor_, matrix, stores_.factors);
}
template <>
UpdateProducts<double>& Merger::products_of(std::size_t matrix) {
  return products_in(products64_, *tensor_, matrix, stores_.factors);
}

void Merger::open(const Plan& plan, const PlannedTensor& tensor, bool wide) {
  if (opened_ == &tensor) return;
  opened_ = nullptr;
  tensor_ = std::make_unique<MergedTensor>(plan, tensor, wide);
  for (auto& [matrix, products] : products32_) matrix = kNoMatrix, products.forget();
  for (auto& [matrix, products] : products64_) matrix = kNoMatrix, products.forget();
  weights_.resize(kTileSize);
  opened_ = &tensor;
}

void Merger::render(const Plan& plan, const PlannedTensor& tensor, bool wide, const Rectangle& area, std::byte* out) {
  open(plan, tensor, wide);
  const std::int64_t pitch = area.cols * element_size(tensor.dtype);
  const std::int64_t rendered = kRenderedBytes / (area.cols * element_size(tensor.merge->base_dtype) + 1);
  for (std::int64_t row = area.row; row < area.row + area.rows;) {
    std::int64_t rows = std::min(area.row + area.rows - row, tensor_->stretch(row));
    if (!tensor_->is_direct(row))
      rows = std::min(rows, std::max(rendered / kRowsTogether, std::int64_t{1}) * kRowsTogether);
    render_stretch({row, rows, area.col, area.cols}, out + (row - area.row) * pitch);
    row += rows;
  }
}

void Merger::render_stretch(const Rectangle& area, std::byte* out) {
  const Merge& merge = tensor_->merge();
  const Dtype dtype = tensor_->tensor().dtype;
  std::byte* scratch = out;  // rows of the same dtype are rendered where they go
  if (dtype != merge.base_dtype)
    scratch = base_.resize(static_cast<std::size_t>(area.rows * area.cols * element_size(merge.base_dtype)));
  const AreaRows target{area, tensor_->base(area, scratch, scratch_), out, area.cols * element_size(dtype)};
  if (!is_covered(area)) copy_base(target);
  tensor_->index().by_row.find(area.row, area.row + area.rows, [&](std::size_t matrix) {
    computes_in_fp64(merge) ? merge_matrix<double>(matrix, target) : merge_matrix<float>(matrix, target);
  });
}

// Whether updates change every element of the area. Target matrices do not overlap.
bool Merger::is_covered(const Rectangle& area) const {
  std::int64_t covered = 0;
  tensor_->index().by_row.find(area.row, area.row + area.rows, [&](std::size_t matrix) {
    const plan::Lattice& lattice = tensor_->index().matrices[matrix].lattice;
    covered += plan::steps_in(lattice.rows, area.row, area.row + area.rows).count *
               plan::steps_in(lattice.cols, area.col, area.col + area.cols).count;
  });
  return covered == area.rows * area.cols;
}

void Merger::copy_base(const AreaRows& target) {
  const Dtype from = tensor_->merge().base_dtype, to = tensor_->tensor().dtype;
  const auto cols = static_cast<std::size_t>(target.area.cols);
  for (std::int64_t i = 0; i < target.area.rows; ++i) {
    const std::byte* row = target.base.data + i * target.base.pitch;
    std::byte* out = target.out + i * target.out_pitch;
    if (from == to) {
      if (row != out) std::memcpy(out, row, cols * static_cast<std::size_t>(element_size(from)));
    } else if (!convert_row(from, row, cols, 1, to, out)) {
      throw_nonfinite_merge(tensor_->plan(), tensor_->tensor());
    }
  }
}

// Row scales of the given rows; of a matrix stored as [in, out], of all outputs. Mode `best` computes norms in fp64.
template <class T>
std::shared_ptr<const DoraRowScales> Merger::row_scales_of(std::size_t matrix, const plan::StepRange& rows) {
  const plan::Lattice& lattice = tensor_->index().matrices[matrix].lattice;
  const auto measure = [&](std::int64_t first, std::int64_t count) {
    if (uses_peft_rounding(tensor_->merge())) return measure_row_scales(*tensor_, products_of<T>(matrix), first, count);
    return measure_row_scales(*tensor_, products_of<double>(matrix), first, count);
  };
  if (!lattice.swapped) return std::make_shared<const DoraRowScales>(measure(rows.first, rows.count));
  return stores_.row_scales.get({&tensor_->tensor(), matrix}, [&] { return measure(0, lattice.cols.count); });
}

// Takes the fast path where it is exact, else goes tile by tile.
template <class T>
bool Merger::merge_strip_of(UpdateProducts<T>& products, const DoraRowScales& row_scales, const AreaRows& target,
                            const StripArea& strip) {
  if (is_strip(*tensor_, products)) {
    if (const auto finite = strips_.run(*tensor_, products, target, strip, error_)) return *finite;
  }
  bool finite = true;
  for (std::int64_t panel = strip.begin / kWidth; panel * kWidth < strip.end; ++panel) {
    const TileArea tile{strip.first,
                        strip.row,
                        strip.rows,
                        panel,
                        static_cast<std::size_t>(std::max<std::int64_t>(strip.begin - panel * kWidth, 0)),
                        static_cast<std::size_t>(std::min(strip.end - panel * kWidth, kWidth))};
    finite &= merge_tile(*tensor_, products, row_scales, target, tile, reinterpret_cast<T*>(weights_.get()), error_);
  }
  return finite;
}

template <class T>
void Merger::merge_matrix(std::size_t matrix, const AreaRows& target) {
  const Rectangle& area = target.area;
  const plan::Lattice& lattice = tensor_->index().matrices[matrix].lattice;
  const plan::StepRange rows = plan::steps_in(lattice.rows, area.row, area.row + area.rows);
  const plan::StepRange cols = plan::steps_in(lattice.cols, area.col, area.col + area.cols);
  if (rows.count == 0 || cols.count == 0) return;
  std::shared_ptr<const DoraRowScales> row_scales = std::make_shared<const DoraRowScales>();
  if (!products_of<T>(matrix).program().row_scales.empty()) row_scales = row_scales_of<T>(matrix, rows);
  UpdateProducts<T>& products = products_of<T>(matrix);
  bool finite = true;
  for (std::int64_t first = rows.first; first < rows.first + rows.count;) {
    const std::int64_t taken = products.take_rows(first, rows.first + rows.count - first);
    const auto merge_rows = [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
      const std::size_t height = std::min(kTileRows, static_cast<std::size_t>(taken - row));
      finite &= merge_strip_of(products, *row_scales, target, {first, row, height, begin, end});
    };
    constexpr auto kRows = static_cast<std::int64_t>(kTileRows);
    const std::int64_t end = cols.first + cols.count;
    if (products.keeps_all()) {  // reads and writes a few rows at a time, from left to right
      for (std::int64_t row = 0; row < taken; row += kRows) merge_rows(row, cols.first, end);
    } else {
      for (std::int64_t begin = cols.first; begin < end; begin = begin / kWidth * kWidth + kWidth) {
        for (std::int64_t row = 0; row < taken; row += kRows)
          merge_rows(row, begin, std::min(end, begin / kWidth * kWidth + kWidth));
      }
    }
    first += taken;
  }
  if (!finite) throw_nonfinite_merge(tensor_->plan(), tensor_->tensor());
}

namespace {

constexpr std::size_t kLanes = 8;  // independent sums, so that additions do not wait for each other

double sum_of_squares(const double* values, std::size_t count) {
  double sums[kLanes] = {};
  for (std::size_t i = 0; i < count; i += kLanes) {
    for (std::size_t c = 0; c < kLanes; ++c) sums[c] += values[i + c] * values[i + c];
  }
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

// Measures target matrices. Not for several threads.
class Norms {
 public:
  // Fills base_norm and delta_norm of each update of a target matrix.
  void measure(const MergedTensor& tensor, std::size_t matrix, MergedMatrix* results) {
    products_.forget();
    products_.open(tensor, matrix, factors_);
    const plan::Lattice& lattice = products_.lattice();
    const std::size_t count = products_.num_updates();
    const DoraRowScales row_scales = own_row_scales(tensor);
    double base = 0;
    std::vector<double> deltas(count);
    double* weights = weights_.resize(kTileSize);
    double* changed = changed_.resize(kTileSize);
    for (std::int64_t first = 0; first < lattice.rows.count;) {
      const std::int64_t taken =
          std::min(products_.take_rows(first, lattice.rows.count - first), lattice.rows.count - first);
      for (std::int64_t row = 0; row < taken; row += static_cast<std::int64_t>(kTileRows)) {
        const auto rows = std::min(kTileRows, static_cast<std::size_t>(taken - row));
        for (std::int64_t panel = 0; panel * kWidth < lattice.cols.count; ++panel) {
          load_tile(tensor, lattice, first + row, rows, panel, weights, bytes_, scratch_);
          base += sum_of_squares(weights, rows * kPanel);
          for (std::size_t n = 0; n < count; ++n) {
            const double* delta = products_.product(n, {row, rows, panel});
            alone(n, row_scales, row, rows, panel, delta, weights, changed);
            deltas[n] += sum_of_squares(changed, rows * kPanel);
          }
        }
      }
      first += taken;
    }
    for (std::size_t n = 0; n < count; ++n) {
      results[n].base_norm = std::sqrt(base);
      results[n].delta_norm = std::sqrt(deltas[n]);
    }
  }

 private:
  // Every row scale as if its adapter were the only one: mode `best`.
  DoraRowScales own_row_scales(const MergedTensor& tensor) {
    if (products_.program().row_scales.empty()) return {};
    const plan::Lattice& lattice = products_.lattice();
    return measure_row_scales(tensor, products_, 0, lattice.swapped ? lattice.cols.count : lattice.rows.count);
  }

  // changed = what update n alone adds to the weights.
  void alone(std::size_t n, const DoraRowScales& row_scales, std::int64_t row, std::size_t rows, std::int64_t panel,
             const double* delta, const double* weights, double* changed) const {
    const double scale = products_.update(n).scale;
    for (std::size_t i = 0; i < rows * kPanel; ++i) changed[i] = scale * delta[i];
    const auto& measured = products_.program().row_scales;
    const auto row_scale = std::find(measured.begin(), measured.end(), n);
    if (row_scale == measured.end()) return;
    const std::vector<double>& values = row_scales.values[static_cast<std::size_t>(row_scale - measured.begin())];
    for (std::size_t i = 0; i < rows * kPanel; ++i) {
      const std::int64_t out =
          products_.lattice().swapped
              ? std::min(panel * kWidth + static_cast<std::int64_t>(i % kPanel), products_.lattice().cols.count - 1)
              : products_.rows_taken_from() + row + static_cast<std::int64_t>(i / kPanel);
      changed[i] = values[static_cast<std::size_t>(out)] * (weights[i] + changed[i]) - weights[i];
    }
  }

  GatherStore factors_;
  UpdateProducts<double> products_;
  LineBuffer<double> weights_, changed_;
  LineBuffer<std::byte> bytes_;
  Scratch scratch_;
};

struct Task {
  std::size_t file, tensor;
};

}  // namespace

std::vector<MergedMatrix> merged_norms(const Plan& plan, std::span<const std::size_t> files, int threads) {
  std::vector<MergedMatrix> results;
  std::vector<Task> tasks;
  std::vector<std::size_t> first_of;
  for (const std::size_t f : files) {
    for (std::size_t t = 0; t < plan.files[f].tensors.size(); ++t) {
      const auto& merge = plan.files[f].tensors[t].merge;
      if (!merge || merge->updates.empty()) continue;
      tasks.push_back({f, t});
      first_of.push_back(results.size());
      for (std::size_t u = 0; u < merge->updates.size(); ++u) results.push_back({f, t, u, 0, 0});
    }
  }
  std::vector<std::unique_ptr<Norms>> norms(static_cast<std::size_t>(threads));
  parallel_for(tasks.size(), threads, [&](std::size_t i, int worker) {
    auto& mine = norms[static_cast<std::size_t>(worker)];
    if (!mine) mine = std::make_unique<Norms>();
    const PlannedTensor& planned = plan.files[tasks[i].file].tensors[tasks[i].tensor];
    PlannedTensor alike = planned;  // measured as mode `best`, whatever the mode is
    alike.merge->mode = MergeMode::best;
    const MergedTensor tensor(plan, alike, false);
    std::vector<MergedMatrix> found;
    for (std::size_t p = 0; p < tensor.index().matrices.size(); ++p) {
      const std::vector<std::uint32_t>& updates = tensor.index().matrices[p].updates;
      found.assign(updates.size(), {});
      mine->measure(tensor, p, found.data());
      for (std::size_t n = 0; n < updates.size(); ++n) {
        MergedMatrix& result = results[first_of[i] + updates[n]];
        result.base_norm = found[n].base_norm;
        result.delta_norm = found[n].delta_norm;
      }
    }
  });
  return results;
}

}  // namespace peft::execution
