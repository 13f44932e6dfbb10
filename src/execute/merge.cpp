#include "execute/merge.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "execute/element.h"
#include "execute/merge_blame.h"

namespace peft::execution {
namespace {

constexpr auto kWidth = static_cast<std::int64_t>(kPanel);
constexpr std::size_t kPlaces = 4;  // that keep their packed factors
constexpr auto kNoPlace = static_cast<std::size_t>(-1);

bool like_peft(const Merge& merge) { return merge.mode == MergeMode::peft || merge.mode == MergeMode::peft_safe; }

bool computes_in_fp64(const Merge& merge) {
  return merge.base_dtype == Dtype::f64 || (merge.base_dtype == Dtype::f32 && merge.mode == MergeMode::best);
}

template <class T>
Tiles<T>& tiles_in(std::list<std::pair<std::size_t, Tiles<T>>>& kept, const MergedTensor& tensor, std::size_t place,
                   GatherStore& factors) {
  const auto find = [&](std::size_t wanted) {
    return std::find_if(kept.begin(), kept.end(), [&](const auto& entry) { return entry.first == wanted; });
  };
  auto it = find(place);
  if (it == kept.end()) it = find(kNoPlace);
  if (it == kept.end() && kept.size() < kPlaces) it = kept.emplace(kept.end());
  if (it == kept.end()) it = std::prev(it);  // the one not used for the longest time
  kept.splice(kept.begin(), kept, it);
  kept.front().first = place;
  kept.front().second.open(tensor, place, factors);
  return kept.front().second;
}

}  // namespace

template <>
Tiles<float>& Merger::tiles_of(std::size_t place) {
  return tiles_in(tiles32_, *tensor_, place, stores_.factors);
}
template <>
Tiles<double>& Merger::tiles_of(std::size_t place) {
  return tiles_in(tiles64_, *tensor_, place, stores_.factors);
}

void Merger::open(const Plan& plan, const PlannedTensor& tensor, bool wide) {
  if (opened_ == &tensor) return;
  opened_ = nullptr;
  tensor_ = std::make_unique<MergedTensor>(plan, tensor, wide);
  for (auto& [place, tiles] : tiles32_) place = kNoPlace, tiles.forget();
  for (auto& [place, tiles] : tiles64_) place = kNoPlace, tiles.forget();
  weights_.resize(kTileSize);
  opened_ = &tensor;
}

void Merger::render(const Plan& plan, const PlannedTensor& tensor, bool wide, const Rectangle& area, std::byte* out) {
  open(plan, tensor, wide);
  const std::int64_t pitch = area.cols * element_size(tensor.dtype);
  for (std::int64_t row = area.row; row < area.row + area.rows;) {
    const std::int64_t rows = std::min(area.row + area.rows - row, tensor_->stretch(row));
    render_stretch({row, rows, area.col, area.cols}, out + (row - area.row) * pitch);
    row += rows;
  }
}

void Merger::render_stretch(const Rectangle& area, std::byte* out) {
  const Merge& merge = tensor_->merge();
  const Dtype dtype = tensor_->tensor().dtype;
  std::byte* scratch = out;  // rows are made where they go, if they have the right size there
  if (dtype != merge.base_dtype)
    scratch = base_.resize(static_cast<std::size_t>(area.rows * area.cols * element_size(merge.base_dtype)));
  const MergeTarget target{area, tensor_->base(area, scratch, scratch_), out, area.cols * element_size(dtype)};
  if (!is_covered(area)) copy_base(target);
  tensor_->index().by_row.find(area.row, area.row + area.rows, [&](std::size_t place) {
    computes_in_fp64(merge) ? render_place<double>(place, target) : render_place<float>(place, target);
  });
}

// Whether updates change every element of the area: places do not overlap.
bool Merger::is_covered(const Rectangle& area) const {
  std::int64_t covered = 0;
  tensor_->index().by_row.find(area.row, area.row + area.rows, [&](std::size_t place) {
    const plan::Lattice& lattice = tensor_->index().places[place].lattice;
    covered += steps_in(lattice.rows, area.row, area.row + area.rows).count *
               steps_in(lattice.cols, area.col, area.col + area.cols).count;
  });
  return covered == area.rows * area.cols;
}

void Merger::copy_base(const MergeTarget& target) {
  const Dtype from = tensor_->merge().base_dtype, to = tensor_->tensor().dtype;
  const auto cols = static_cast<std::size_t>(target.area.cols);
  for (std::int64_t i = 0; i < target.area.rows; ++i) {
    const std::byte* row = target.base.data + i * target.base.pitch;
    std::byte* out = target.out + i * target.out_pitch;
    if (from == to) {
      if (row != out) std::memcpy(out, row, cols * static_cast<std::size_t>(element_size(from)));
    } else if (!convert_row(from, row, cols, 1, to, out)) {
      blame_merge(tensor_->plan(), tensor_->tensor());
    }
  }
}

// Of the rows, or for a swapped matrix of all columns. The norms of `best` are computed in fp64.
template <class T>
std::shared_ptr<const Gains> Merger::gains_of(std::size_t place, const StepRange& rows) {
  const plan::Lattice& lattice = tensor_->index().places[place].lattice;
  const auto measure = [&](std::int64_t first, std::int64_t count) {
    if (like_peft(tensor_->merge())) return measure_gains(*tensor_, tiles_of<T>(place), first, count);
    return measure_gains(*tensor_, tiles_of<double>(place), first, count);
  };
  if (!lattice.swapped) return std::make_shared<const Gains>(measure(rows.first, rows.count));
  return stores_.gains.get({&tensor_->tensor(), place}, [&] { return measure(0, lattice.cols.count); });
}

// In one go where that can be, else tile by tile.
template <class T>
bool Merger::merge_strip_of(Tiles<T>& tiles, const Gains& gains, const MergeTarget& target, const StripPlace& place) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (is_strip(*tensor_, tiles)) {
      if (const auto finite = strips_.run(*tensor_, tiles, target, place, error_)) return *finite;
    }
  }
  bool finite = true;
  for (std::int64_t panel = place.begin / kWidth; panel * kWidth < place.end; ++panel) {
    const TilePlace tile{place.first,
                         place.row,
                         place.rows,
                         panel,
                         static_cast<std::size_t>(std::max<std::int64_t>(place.begin - panel * kWidth, 0)),
                         static_cast<std::size_t>(std::min(place.end - panel * kWidth, kWidth))};
    finite &= merge_tile(*tensor_, tiles, gains, target, tile, reinterpret_cast<T*>(weights_.get()), error_);
  }
  return finite;
}

template <class T>
void Merger::render_place(std::size_t place, const MergeTarget& target) {
  const Rectangle& area = target.area;
  const plan::Lattice& lattice = tensor_->index().places[place].lattice;
  const StepRange rows = steps_in(lattice.rows, area.row, area.row + area.rows);
  const StepRange cols = steps_in(lattice.cols, area.col, area.col + area.cols);
  if (rows.count == 0 || cols.count == 0) return;
  std::shared_ptr<const Gains> gains = std::make_shared<const Gains>();
  if (!tiles_of<T>(place).program().gains.empty()) gains = gains_of<T>(place, rows);
  Tiles<T>& tiles = tiles_of<T>(place);
  bool finite = true;
  for (std::int64_t first = rows.first; first < rows.first + rows.count;) {
    const std::int64_t taken = tiles.take_rows(first, rows.first + rows.count - first);
    const auto strip = [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
      const std::size_t height = std::min(kTileRows, static_cast<std::size_t>(taken - row));
      finite &= merge_strip_of(tiles, *gains, target, {first, row, height, begin, end});
    };
    constexpr auto kRows = static_cast<std::int64_t>(kTileRows);
    const std::int64_t end = cols.first + cols.count;
    if (tiles.keeps_all()) {  // a few rows at a time are read and written from left to right
      for (std::int64_t row = 0; row < taken; row += kRows) strip(row, cols.first, end);
    } else {
      for (std::int64_t begin = cols.first; begin < end; begin = begin / kWidth * kWidth + kWidth) {
        for (std::int64_t row = 0; row < taken; row += kRows)
          strip(row, begin, std::min(end, begin / kWidth * kWidth + kWidth));
      }
    }
    first += taken;
  }
  if (!finite) blame_merge(tensor_->plan(), tensor_->tensor());
}

}  // namespace peft::execution
