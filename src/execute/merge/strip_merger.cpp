#include "execute/merge/strip_merger.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "execute/merge/tile_merger.h"
#include "execute/values/element.h"

namespace peft::execution {
namespace {

const DoraRowScales kNoRowScales;

// The merged value of column j of the strip's row i, computed in fp64.
double exact_at(const UpdateProducts<float>& products, const Strip& strip, const StripArea& area, Dtype dtype,
                std::size_t i, std::size_t j) {
  const std::byte* weight = strip.base + static_cast<std::int64_t>(i) * strip.base_pitch +
                            static_cast<std::int64_t>(j - strip.begin) * element_size(dtype);
  return products.exact(load_element(dtype, weight), area.row + static_cast<std::int64_t>(i),
                        area.begin / kWidth + static_cast<std::int64_t>(j / kPanel), j % kPanel, kNoRowScales);
}

// Copies elements that are `step` apart to elements without gaps, or (kBack) the other way.
template <class Word, bool kBack>
void move_row(const std::byte* from, std::byte* to, std::size_t count, std::size_t step) {
  for (std::size_t j = 0; j < count; ++j) {
    const std::size_t apart = j * step * sizeof(Word), dense = j * sizeof(Word);
    Word word;
    std::memcpy(&word, from + (kBack ? dense : apart), sizeof word);
    std::memcpy(to + (kBack ? apart : dense), &word, sizeof word);
  }
}
template <bool kBack>
void move_columns(const std::byte* from, std::byte* to, std::size_t count, std::int64_t step, Dtype dtype) {
  const auto wide = static_cast<std::size_t>(step);
  if (wide == 1) return void(std::memcpy(to, from, count * static_cast<std::size_t>(element_size(dtype))));
  if (element_size(dtype) == 4) return move_row<std::uint32_t, kBack>(from, to, count, wide);
  if (wide != 2) return move_row<std::uint16_t, kBack>(from, to, count, wide);
  move_row<std::uint16_t, kBack>(from, to, count,
                                 2);  // interleaved gate and up: a constant step, which the compiler vectorises
}

}  // namespace

template <class T>
bool is_strip(const MergedTensor& tensor, const UpdateProducts<T>& products) {
  const MergeProgram& program = products.program();
  if (program.steps.size() != 1 || program.steps.front().kind != Step::Kind::add) return false;
  const Dtype base = tensor.merge().base_dtype, dtype = tensor.tensor().dtype;
  if constexpr (sizeof(T) == sizeof(float)) return base == dtype;
  return base == Dtype::f32 && program.steps.front().rule == AddRule::fused &&
         (dtype == Dtype::f32 || dtype == Dtype::f16 || dtype == Dtype::bf16);
}

template <class T>
std::optional<bool> StripMerger::run(const MergedTensor& tensor, UpdateProducts<T>& products, const AreaRows& target,
                                     const StripArea& area, MergeError& error) {
  const Dtype base = tensor.merge().base_dtype, dtype = tensor.tensor().dtype;
  const std::int64_t panel = area.begin / kWidth, panels = (area.end + kWidth - 1) / kWidth - panel;
  const auto factors = products.factors(area.row, panel, panels);
  if (!factors) return std::nullopt;
  const plan::Lattice& lattice = products.lattice();
  const std::int64_t row = lattice.rows.first + (area.first + area.row) * lattice.rows.step - target.area.row;
  const std::int64_t step = lattice.cols.step;
  const std::int64_t col = lattice.cols.first + area.begin * step - target.area.col;
  Strip strip{.paired = factors->paired,
              .width = factors->width,
              .left = factors->left,
              .right = factors->right,
              .rows = area.rows,
              .begin = static_cast<std::size_t>(area.begin - panel * kWidth),
              .end = static_cast<std::size_t>(area.end - panel * kWidth),
              .base = target.base.data + row * target.base.pitch + col * element_size(base),
              .base_pitch = lattice.rows.step * target.base.pitch,
              .out = target.out + row * target.out_pitch + col * element_size(dtype),
              .out_pitch = lattice.rows.step * target.out_pitch};
  // The kernels need columns without gaps. What may be recomputed needs weights that the result does not overwrite.
  constexpr bool kRecomputes = sizeof(T) == sizeof(float);
  const auto cols = static_cast<std::size_t>(area.end - area.begin);
  std::byte* const out = strip.out;
  const std::int64_t out_pitch = strip.out_pitch;
  if (step != 1 || (kRecomputes && strip.base == strip.out)) {
    const std::size_t bytes = cols * static_cast<std::size_t>(element_size(base));
    std::byte* kept = kept_.resize(area.rows * bytes);
    for (std::size_t i = 0; i < area.rows; ++i) {
      move_columns<false>(strip.base + static_cast<std::int64_t>(i) * strip.base_pitch, kept + i * bytes, cols, step,
                          base);
    }
    strip.base = kept;
    strip.base_pitch = static_cast<std::int64_t>(bytes);
  }
  if (step != 1) {
    strip.out_pitch = static_cast<std::int64_t>(cols) * element_size(dtype);
    strip.out = made_.resize(area.rows * static_cast<std::size_t>(strip.out_pitch));
  }
  bool finite;
  if constexpr (kRecomputes) {
    finite = run_in_fp32(tensor, products, *factors, strip, area, error);
  } else {
    finite = merge_strip_in_fp64(products.update(0).scale, dtype, strip).finite;
  }
  for (std::size_t i = 0; step != 1 && i < area.rows; ++i) {
    const auto at = static_cast<std::int64_t>(i);
    move_columns<true>(strip.out + at * strip.out_pitch, out + at * out_pitch, cols, step, dtype);
  }
  return finite;
}

bool StripMerger::run_in_fp32(const MergedTensor& tensor, const UpdateProducts<float>& products,
                              const UpdateProducts<float>::Factors& factors, Strip& strip, const StripArea& area,
                              MergeError& error) {
  const Merge& merge = tensor.merge();
  const Dtype dtype = merge.base_dtype;
  if (merge.mode == MergeMode::best) {
    limits_.resize(strip.panels());
    cancelled_.resize(strip.panels() * kTileRows);
    const float smallest = products.smallest_of_norms(0, dtype);
    for (std::size_t p = 0; p < limits_.size(); ++p) limits_[p] = factors.right_norms[p] * smallest;
    strip.row_limits = factors.left_norms;
    strip.panel_limits = limits_.data();
    strip.cancelled = cancelled_.data();
  }
  const StripResult result =
      merge_strip({products.program().steps.front().rule, dtype, products.update(0).scale}, strip);
  if (result.marked) recompute_exact(strip, dtype, area, products);
  if (merge.mode == MergeMode::fast) sample(strip, dtype, area, products, error);
  return result.finite;
}

void StripMerger::recompute_exact(const Strip& strip, Dtype dtype, const StripArea& area,
                                  const UpdateProducts<float>& products) const {
  for (std::size_t p = 0; p < strip.panels(); ++p) {
    for (std::size_t i = 0; i < strip.rows; ++i) {
      for (std::uint64_t left = strip.cancelled[p * kTileRows + i]; left != 0; left &= left - 1) {
        const std::size_t j = p * kPanel + static_cast<std::size_t>(std::countr_zero(left));
        store_element(dtype, exact_at(products, strip, area, dtype, i, j),
                      strip.out + static_cast<std::int64_t>(i) * strip.out_pitch +
                          static_cast<std::int64_t>(j - strip.begin) * element_size(dtype));
      }
    }
  }
}

void StripMerger::sample(const Strip& strip, Dtype dtype, const StripArea& area, const UpdateProducts<float>& products,
                         MergeError& error) const {
  for (std::size_t p = 0; p < strip.panels(); ++p) {
    const std::size_t i = first_sampled(area.first + area.row, area.begin / kWidth + static_cast<std::int64_t>(p));
    if (i >= strip.rows) continue;
    const std::size_t begin = std::max(strip.begin, p * kPanel), end = std::min(strip.end, (p + 1) * kPanel);
    double exact[kPanel];
    for (std::size_t j = begin; j < end; ++j) exact[j - begin] = exact_at(products, strip, area, dtype, i, j);
    compare_sample({dtype, dtype}, exact, end - begin,
                   strip.out + static_cast<std::int64_t>(i) * strip.out_pitch +
                       static_cast<std::int64_t>(begin - strip.begin) * element_size(dtype),
                   1, error);
  }
}

template bool is_strip(const MergedTensor&, const UpdateProducts<float>&);
template bool is_strip(const MergedTensor&, const UpdateProducts<double>&);
template std::optional<bool> StripMerger::run(const MergedTensor&, UpdateProducts<float>&, const AreaRows&,
                                              const StripArea&, MergeError&);
template std::optional<bool> StripMerger::run(const MergedTensor&, UpdateProducts<double>&, const AreaRows&,
                                              const StripArea&, MergeError&);

}  // namespace peft::execution
