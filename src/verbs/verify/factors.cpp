#include "verbs/verify/factors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "adapter/factor_math.h"
#include "adapter/view_math.h"
#include "verbs/verify/basis.h"
#include "verbs/verify/rounding.h"

namespace peft::verbs {
namespace {

using adapter::Components;
using adapter::Matrix;
using Role = Matrix Components::*;  // &Components::a or &Components::b: both have a column for each component

constexpr std::int64_t kAllRows = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kTileBytes =
    256 * 1024;                           // of all experts' rows: what they share stays in the second-level cache
constexpr std::int64_t kValueRows = 256;  // rows converted to double at a time
constexpr std::int64_t kProbeRows = 16;   // rows read at a time to find a component's gain

// The components of x and y taken pair by pair, with the scale on one of the two matrices.
struct Pairing {
  std::vector<double> gain;  // of the matrix without the scale: y = gain * x
  Match plain, scaled;       // how the matrix without the scale and the one with it compare
  bool near() const { return plain.near && scaled.near; }
  bool exact() const { return plain.exact && scaled.exact; }
};

struct Work {
  const Factor *factor_x = nullptr, *factor_y = nullptr;
  Components x, y;     // list: the components that are not zero
  bool open = true;    // no verdict yet
  bool bytes = true;   // A and B hold the same bytes, as far as was read
  Pairing by_a, by_b;  // the scale on B, the scale on A
  Verdict verdict;

  void close(Exactness exactness, double relative, std::string what) {
    open = false;
    verdict = {exactness, relative, std::move(what)};
  }
};

// Element (i, j) of the matrices as stored; both are read a block of rows at a time.
std::string first_mismatch(const char* name, const Matrix& x, const Matrix& y) {
  constexpr std::int64_t kRows = 64;
  std::vector<double> vx(static_cast<std::size_t>(kRows * x.cols)), vy(vx.size());
  std::int64_t differing = 0;
  std::string first;
  for (std::int64_t begin = 0; begin < x.rows; begin += kRows) {
    const std::int64_t count = std::min(kRows, x.rows - begin);
    adapter::read(x.row_range(begin, count), vx);
    adapter::read(y.row_range(begin, count), vy);
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t j = 0; j < x.cols; ++j) {
        const double p = vx[j * count + i], q = vy[j * count + i];
        if (p == q) continue;
        if (differing++ == 0) first = fmt::format("{}[{}, {}] is {} and {}", name, begin + i, j, p, q);
      }
    }
  }
  if (differing == 0) return {};
  return fmt::format("{} ({} of {} elements differ)", first, differing, x.rows * x.cols);
}

std::string describe_shapes(const Factor& x, const Factor& y) {
  const auto form = [](const Factor& f) {
    return fmt::format("{} [{}, {}]", f.kind == FactorKind::embedding ? "embedding" : "linear", f.out, f.in);
  };
  return fmt::format("another weight: {} and {}", form(x), form(y));
}

std::string describe_difference(const Factor& x, const TensorFile& file_x, const Factor& y, const TensorFile& file_y) {
  const Matrix xa = adapter::bind(file_x, x.a), xb = adapter::bind(file_x, x.b);
  const Matrix ya = adapter::bind(file_y, y.a), yb = adapter::bind(file_y, y.b);
  if (adapter::equal(xa.transposed(), yb) && adapter::equal(xb, ya.transposed())) {
    return "lora_A and lora_B trade places: the transposed update";
  }
  if (x.rank != y.rank) return fmt::format("rank {} and {}, and not by zero components alone", x.rank, y.rank);
  std::vector<std::string> parts;
  if (x.scale != y.scale) parts.push_back(fmt::format("scale {} and {}", x.scale, y.scale));
  for (const std::string& part : {first_mismatch("lora_A", xa, ya), first_mismatch("lora_B", xb, yb)}) {
    if (!part.empty()) parts.push_back(part);
  }
  return fmt::format("{}", fmt::join(parts, "; "));
}

// Elements that are side by side neither along a row nor along a column share cache lines with other experts'.
bool scattered(const Matrix& m) {
  return m.rows > 1 && m.cols > 1 && std::min(std::abs(m.row_stride), std::abs(m.col_stride)) > 1;
}

// body(index of the work, first row, rows): all rows of the works' matrices of this role, at most `limit` at a time.
// Where views are scattered, the experts of a layer are visited together, a few rows of each in turn.
template <class Body>
void for_tiles(const std::vector<Work*>& works, Role role, std::int64_t limit, Body body) {
  std::int64_t rows = 0, row_bytes = 1;
  bool any_scattered = false;
  for (const Work* work : works) {
    const Matrix &x = work->x.*role, &y = work->y.*role;
    rows = std::max(rows, x.rows);
    row_bytes += (x.cols + y.cols) * std::max(x.width, y.width);
    any_scattered = any_scattered || scattered(x) || scattered(y);
  }
  std::int64_t tile = std::min(limit, rows);
  if (any_scattered) tile = std::clamp<std::int64_t>(kTileBytes / row_bytes, 1, tile);
  for (std::int64_t first = 0; first < rows; first += tile) {
    for (std::size_t i = 0; i < works.size(); ++i) {
      const std::int64_t left = (works[i]->x.*role).rows - first;
      if (left > 0) body(i, first, std::min(tile, left));
    }
  }
}

std::vector<Work*> open_works(std::vector<Work>& works) {
  std::vector<Work*> open;
  for (Work& work : works) {
    if (work.open) open.push_back(&work);
  }
  return open;
}

// A side without the factor becomes a copy of the other without components: the zero update.
void bind(Work& work, const TensorFile& file_x, const TensorFile& file_y) {
  const Factor *x = work.factor_x, *y = work.factor_y;
  if (x != nullptr) work.x = adapter::components(file_x, *x);
  if (y != nullptr) work.y = adapter::components(file_y, *y);
  if (x == nullptr || y == nullptr) {
    Components& missing = x == nullptr ? work.x : work.y;
    missing = x == nullptr ? work.y : work.x;
    missing.list.clear();
    return;
  }
  if (x->out != y->out || x->in != y->in || x->kind != y->kind) {
    work.close(Exactness::lossy, 1, describe_shapes(*x, *y));
    return;
  }
  // A scale read from decimal numbers may be off in its last bit; that is not another function.
  const double ratio = work.x.scale / work.y.scale, nearest = nearest_power_of_two(ratio);
  if (std::abs(ratio - nearest) <= 0x1p-50 * std::abs(nearest)) work.y.scale = work.x.scale / nearest;
}

// Compares A and B as bytes; closes what is the same with the same scale.
void close_same_bytes(const std::vector<Work*>& works, Exactness exactness) {
  for (Work* work : works) work->bytes = work->factor_x != nullptr && work->factor_y != nullptr;
  for (const Role role : {&Components::a, &Components::b}) {
    for_tiles(works, role, kAllRows, [&](std::size_t i, std::int64_t first, std::int64_t count) {
      Work& work = *works[i];
      if (!work.bytes) return;
      work.bytes = adapter::equal((work.x.*role).row_range(first, count), (work.y.*role).row_range(first, count));
    });
  }
  for (Work* work : works) {
    if (!work->bytes) continue;
    if (exactness == Exactness::bit_exact && work->factor_x->scale == work->factor_y->scale)
      work->close(exactness, 0, {});
    if (exactness == Exactness::value_exact && work->x.scale == work->y.scale)
      work->close(exactness, 0, "equal values");
  }
}

// A component counts only if both its row of A and its column of B hold something.
void drop_zero_components(const std::vector<Work*>& works, Components Work::*side) {
  for (const Role role : {&Components::a, &Components::b}) {
    std::vector<std::vector<bool>> nonzero;
    for (Work* work : works) nonzero.emplace_back((work->*side.*role).cols);
    for_tiles(works, role, kAllRows, [&](std::size_t i, std::int64_t first, std::int64_t count) {
      adapter::mark_nonzero_cols((works[i]->*side.*role).row_range(first, count), nonzero[i]);
    });
    for (std::size_t i = 0; i < works.size(); ++i) {
      Components& components = works[i]->*side;
      std::erase_if(components.list, [&](std::int64_t k) { return components.scale == 0 || !nonzero[i][k]; });
    }
  }
}

// Zero updates, and factors that only one side has.
void close_zero(Work& work) {
  const bool both = work.factor_x != nullptr && work.factor_y != nullptr;
  if (work.x.list.empty() && work.y.list.empty()) {
    work.close(Exactness::value_exact, 0, both ? "zero in both" : "zero, and absent in the other adapter");
  } else if (!both) {
    work.close(Exactness::lossy, 1,
               work.factor_y == nullptr ? "only in the first adapter" : "only in the second adapter");
  } else if (work.x.list.size() != work.y.list.size() && work.factor_x->rank == work.factor_y->rank) {
    // A cast can turn a tiny component into zero: pair them all.
    work.x.list = work.y.list = adapter::all_components(work.factor_x->rank);
  }
}

// Component numbers that follow each other, as in block-diagonal factors, become matrices of their own.
void narrow(Components& components) {
  auto& list = components.list;
  const auto count = static_cast<std::int64_t>(list.size());
  if (list.empty() || list.back() - list.front() + 1 != count) return;
  components.a = components.a.col_range(list.front(), count);
  components.b = components.b.col_range(list.front(), count);
  list = adapter::all_components(count);
}

// The power of two that takes a column of x to the one of y, judged by the largest of the first values.
double find_gain(const Matrix& x, const Matrix& y) {
  std::array<double, kProbeRows> vx, vy;
  for (std::int64_t first = 0; first < x.rows; first += kProbeRows) {
    const std::int64_t count = std::min(kProbeRows, x.rows - first);
    adapter::read(x.row_range(first, count), vx);
    adapter::read(y.row_range(first, count), vy);
    std::size_t at = 0;
    for (std::size_t i = 1; i < static_cast<std::size_t>(count); ++i) {
      if (std::abs(vx[i]) > std::abs(vx[at])) at = i;
    }
    if (vx[at] != 0 && vy[at] != 0) return nearest_power_of_two(vy[at] / vx[at]);
  }
  return 1;
}

// One tile of one matrix: column j of x times factor_x against column j of y times factor_y[j].
Match match_tile(const Work& work, Role role, std::int64_t first, std::int64_t count, double factor_x,
                 std::span<const double> factor_y) {
  const Matrix x = (work.x.*role).row_range(first, count), y = (work.y.*role).row_range(first, count);
  const auto &list_x = work.x.list, &list_y = work.y.list;
  std::vector<double> vx(list_x.size() * count), vy(vx.size());
  adapter::read_columns(x, list_x, vx);
  adapter::read_columns(y, list_y, vy);
  Match result;
  for (std::size_t j = 0; j < list_x.size() && result.near; ++j) {
    const auto column = [j, count](const std::vector<double>& values) {
      return std::span(values).subspan(j * count, count);
    };
    result &= match(column(vx), {x.dtype, factor_x}, column(vy), {y.dtype, factor_y[j]});
  }
  return result;
}

// Compares the components pair by pair: y.plain = gain * x.plain, y.scale * gain * y.scaled = x.scale * x.scaled.
void pair_components(const std::vector<Work*>& works, Role plain, Role scaled, Pairing Work::*result) {
  std::vector<std::vector<double>> inverse(works.size()), scale(works.size());
  for (std::size_t i = 0; i < works.size(); ++i) {
    Work& work = *works[i];
    for (std::size_t j = 0; j < work.x.list.size(); ++j) {
      const double gain =
          find_gain((work.x.*plain).col_range(work.x.list[j], 1), (work.y.*plain).col_range(work.y.list[j], 1));
      (work.*result).gain.push_back(gain);
      inverse[i].push_back(1 / gain);
      scale[i].push_back(work.y.scale * gain);
    }
  }
  for_tiles(works, plain, kValueRows, [&](std::size_t i, std::int64_t first, std::int64_t count) {
    Match& found = (works[i]->*result).plain;
    if (found.near) found &= match_tile(*works[i], plain, first, count, 1, inverse[i]);
  });
  for_tiles(works, scaled, kValueRows, [&](std::size_t i, std::int64_t first, std::int64_t count) {
    Match& found = (works[i]->*result).scaled;
    if (found.near) found &= match_tile(*works[i], scaled, first, count, works[i]->x.scale, scale[i]);
  });
  for (Work* work : works) {
    if ((work->*result).exact()) work->close(Exactness::value_exact, 0, "equal values");
  }
}

// Computes how far the updates are apart, and closes.
void measure(Work& work, const TensorFile& file_x, const TensorFile& file_y) {
  const bool paired = work.x.list.size() == work.y.list.size();
  std::vector<double> gain = work.by_a.gain;
  const bool by_a = paired && work.by_a.near(), by_b = paired && !by_a && work.by_b.near();
  if (by_b) {
    gain = work.by_b.gain;
    for (double& g : gain) g = 1 / g;
  }
  if (by_a || by_b) {
    work.close(Exactness::rounded, adapter::delta_difference(work.x, work.y, gain).relative(),
               "equal up to one rounding of each element");
    return;
  }
  work.open = false;
  work.verdict = compare_bases(work.x, work.y);
  if (work.verdict.exactness != Exactness::lossy) return;
  std::string& what = work.verdict.what;
  what += what.empty() ? "" : "; ";
  what += describe_difference(*work.factor_x, file_x, *work.factor_y, file_y);
}

}  // namespace

std::vector<Verdict> compare_factors(std::span<const FactorPair> pairs, const TensorFile& file_x,
                                     const TensorFile& file_y) {
  std::vector<Work> works(pairs.size());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    works[i].factor_x = pairs[i].x, works[i].factor_y = pairs[i].y;
    bind(works[i], file_x, file_y);
  }
  close_same_bytes(open_works(works), Exactness::bit_exact);
  const std::vector<Work*> unequal = open_works(works);
  drop_zero_components(unequal, &Work::x);
  drop_zero_components(unequal, &Work::y);
  for (Work* work : unequal) {
    close_zero(*work);
    narrow(work->x);
    narrow(work->y);
  }
  close_same_bytes(open_works(works), Exactness::value_exact);

  std::vector<Work*> candidates = open_works(works);
  std::erase_if(candidates, [](const Work* work) { return work->x.list.size() != work->y.list.size(); });
  pair_components(candidates, &Components::a, &Components::b, &Work::by_a);
  std::erase_if(candidates, [](const Work* work) { return !work->open || work->by_a.near(); });
  pair_components(candidates, &Components::b, &Components::a, &Work::by_b);
  for (Work* work : open_works(works)) measure(*work, file_x, file_y);

  std::vector<Verdict> verdicts;
  for (Work& work : works) verdicts.push_back(std::move(work.verdict));
  return verdicts;
}

const Factor* find_twin(const Factor& x, const TensorFile& file_x, std::span<const Factor> candidates,
                        const TensorFile& file_y) {
  const Matrix a = adapter::bind(file_x, x.a), b = adapter::bind(file_x, x.b);
  for (const Factor& y : candidates) {
    if (y.site == x.site || y.scale != x.scale) continue;
    if (adapter::equal(a, adapter::bind(file_y, y.a)) && adapter::equal(b, adapter::bind(file_y, y.b))) return &y;
  }
  return nullptr;
}

}  // namespace peft::verbs
