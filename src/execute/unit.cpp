#include "execute/unit.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "execute/unit_order.h"

namespace peft::execution {
namespace {

constexpr std::uint64_t kMaxPieces = 1000;
constexpr std::uint64_t kShortRows = 16;  // at least so many are in a block
constexpr std::int64_t kCacheLine = 64;
// Members of this many bytes side by side in the source are taken together, so that no line is read twice and
// neighbouring lines are read together.
constexpr std::int64_t kGroupBytes = 512;
// Staging of members that do not fit it whole: less than there is, as more of it stays in the cache; but for each
// member what a write takes to be worth its call.
constexpr std::int64_t kTileBytes = std::int64_t{4} << 20, kTileMemberBytes = std::int64_t{32} * 1024;

bool is_direct(const Plan& plan, const PlannedTensor& tensor, std::uint64_t bytes, std::uint64_t shortest) {
  if (tensor.merge) return false;
  std::int64_t row = 0;
  for (const Block& block : tensor.blocks) {
    const View& view = block.source;
    const bool contiguous =
        (view.cols == 1 || view.col_stride == 1) && (view.rows == 1 || view.row_stride == view.cols);
    if (block.row != row || view.cols != tensor.cols || !contiguous || block.scale != 1 || block.scales ||
        (block.col_step != 1 && view.cols != 1)) {
      return false;
    }
    if (plan.sources[view.source]->tensors()[view.tensor].dtype != tensor.dtype) return false;
    row += view.rows;
  }
  return row == tensor.rows && (tensor.blocks.size() == 1 || bytes >= tensor.blocks.size() * shortest);
}

// Bytes a member needs in the staging buffer. Odd lines keep the members apart in the cache (see stage()).
std::uint64_t staged_bytes(const FileWork& work, std::size_t t) {
  std::uint64_t bytes = staging_size(work.bytes_of(t));
  if (work.making[t] == Making::member) {
    const Family& family = work.families.families[work.families.family_of[t]];
    if (family.converts())
      bytes += staging_size(static_cast<std::uint64_t>(family.rows * family.cols * element_size(family.from)));
  }
  return bytes;
}

// Positions [begin, end) in the order of the file.
struct Span {
  std::size_t begin = 0, end = 0;
};

// The families' extents in the file, joined where they overlap: a layer's gate, up and down experts.
std::vector<Span> family_spans(const FileWork& work) {
  std::vector<Span> spans;
  std::vector<std::size_t> span_of(work.families.families.size(), Families::kNone);
  for (std::size_t position = 0; position < work.layout.order.size(); ++position) {
    const std::size_t family = work.families.family_of[work.layout.order[position]];
    if (family == Families::kNone) continue;
    if (span_of[family] == Families::kNone) {
      span_of[family] = spans.size();
      spans.push_back({position, position + 1});
    }
    spans[span_of[family]].end = position + 1;
  }
  std::vector<Span> joined;  // `spans` is in order of `begin`
  for (const Span& span : spans) {
    if (!joined.empty() && span.begin < joined.back().end) {
      joined.back().end = std::max(joined.back().end, span.end);
    } else {
      joined.push_back(span);
    }
  }
  return joined;
}

class Cutter {
 public:
  explicit Cutter(FileWork& work) : work_(work) {}

  void run() {
    std::size_t position = 0;
    for (const Span& span : family_spans(work_)) {
      cut(position, span.begin);
      flush();
      if (!take_whole(span)) cut(span.begin, span.end);
      flush();
      position = span.end;
    }
    cut(position, work_.layout.order.size());
    flush();
    for (std::size_t family : tiled_) tile(family);
  }

 private:
  // One unit for all of a span, if the staging buffer can hold it. Tensors with wide rows need units of their own: a
  // piece of them is a part of one row.
  bool take_whole(const Span& span) {
    std::uint64_t staged = 0;
    bool has_wide_rows = false;
    std::vector<std::size_t> families;
    for (std::size_t position = span.begin; position < span.end; ++position) {
      const std::size_t t = work_.layout.order[position];
      if (work_.making[t] == Making::member) families.push_back(work_.families.family_of[t]);
      if (work_.making[t] != Making::direct) staged += staged_bytes(work_, t);
      const bool by_rows = work_.making[t] == Making::rendered || work_.making[t] == Making::merged;
      has_wide_rows = has_wide_rows || (by_rows && work_.is_wide(t));
    }
    const bool fits = !has_wide_rows && staged <= work_.sizes.staging;
    if (fits) {
      const std::size_t first = work_.layout.order[span.begin], last = work_.layout.order[span.end - 1];
      work_.units.push_back({work_.layout.begin[first], work_.layout.begin[last] + work_.bytes_of(last)});
    } else {
      std::sort(families.begin(), families.end());
      families.erase(std::unique(families.begin(), families.end()), families.end());
      tiled_.insert(tiled_.end(), families.begin(), families.end());
    }
    return fits;
  }

  void cut(std::size_t begin, std::size_t end) {
    for (std::size_t position = begin; position < end; ++position) {
      const std::size_t t = work_.layout.order[position];
      if (work_.making[t] == Making::member) {
        flush();  // has units of its own
      } else {
        cut_tensor(t);
      }
    }
  }

  // Units end where blocks of the file do. Rows that are short are cut there and made twice; long ones stay whole, and
  // those that are longer than a block are cut between elements.
  void cut_tensor(std::size_t t) {
    const std::uint64_t size = std::max<std::uint64_t>(
                            1, static_cast<std::uint64_t>(info(work_.tensor(t).dtype).bits) / 8),
                        row = static_cast<std::uint64_t>(work_.tensor(t).cols) * size, block = work_.sizes.block;
    const bool direct = work_.making[t] == Making::direct, wide = !direct && work_.is_wide(t),
               keeps_rows = !direct && !wide && row > block / kShortRows;
    const std::uint64_t step = keeps_rows ? row : size;
    for (std::uint64_t done = 0, bytes = 0; done < work_.bytes_of(t); done += bytes) {
      const std::uint64_t at = work_.layout.head.size() + work_.layout.begin[t] + done;
      std::uint64_t room = block - (keeps_rows ? unit_.end - unit_.begin : at % block);
      if (pieces_ >= kMaxPieces || room < step) flush();
      if (keeps_rows) room = block - (unit_.end - unit_.begin);
      bytes = std::min(std::max<std::uint64_t>(room / step, 1) * step, work_.bytes_of(t) - done);
      if (wide) bytes = std::min(bytes, row - done % row);  // a piece is a rectangle
      extend(t, done, bytes);
      if (bytes >= room || (wide && (done + bytes) % row == 0)) flush();
    }
    if (keeps_rows) flush();
  }

  void extend(std::size_t t, std::uint64_t begin, std::uint64_t bytes) {
    if (unit_.begin == unit_.end) unit_.begin = unit_.end = work_.layout.begin[t] + begin;
    unit_.end += bytes;
    ++pieces_;
  }

  void flush() {
    if (unit_.begin != unit_.end) work_.units.push_back(unit_);
    unit_ = {};
    pieces_ = 0;
  }

  // Members side by side in the source, kGroupBytes of them at a time, and as many elements as fit the buffer.
  void tile(std::size_t index) {
    const Family& family = work_.families.families[index];
    const std::int64_t from_size = element_size(family.from), to_size = element_size(family.to);
    const auto line_of = [&](std::size_t m) {
      return work_.families.first[family.members[m]] * from_size / kGroupBytes;
    };
    const std::int64_t elements = family.rows * family.cols;
    const auto most_staging = static_cast<std::int64_t>(work_.sizes.staging);
    for (std::size_t begin = 0, end = 0; begin < family.members.size(); begin = end) {
      for (end = begin; end < family.members.size() && line_of(end) == line_of(begin);) ++end;
      end = std::min(end, begin + kMaxPieces);
      const auto members = static_cast<std::int64_t>(end - begin);
      const std::int64_t staging = std::min(most_staging, std::max(kTileBytes, members * kTileMemberBytes));
      const std::int64_t bytes_each = staging / members - 4 * kCacheLine;
      const std::int64_t most = std::max<std::int64_t>(1, bytes_each / (to_size + (family.converts() ? from_size : 0)));
      for (std::int64_t m = 0; m < elements; m += most) {
        work_.units.push_back({0, 0, index, begin, end, m, std::min(m + most, elements)});
      }
    }
  }

  FileWork& work_;
  Unit unit_;
  std::uint64_t pieces_ = 0;
  std::vector<std::size_t> tiled_;
};

}  // namespace

CutSizes cut_sizes(int workers) {
  constexpr std::uint64_t kAllStaging = std::uint64_t{48} << 20;
  CutSizes sizes;
  sizes.staging = std::min(sizes.staging, kAllStaging / static_cast<std::uint64_t>(workers));
  return sizes;
}

std::uint64_t staging_size(std::uint64_t bytes) {
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine + kCacheLine;
}

std::uint64_t FileWork::bytes_of(std::size_t t) const {
  return static_cast<std::uint64_t>(tensor(t).rows * tensor(t).cols) *
         static_cast<std::uint64_t>(info(tensor(t).dtype).bits) / 8;
}

bool FileWork::is_wide(std::size_t t) const {
  const auto bits = static_cast<std::uint64_t>(info(tensor(t).dtype).bits);
  return static_cast<std::uint64_t>(tensor(t).cols) * bits / 8 > sizes.block;
}

FileWork make_work(const Plan& plan, const PlannedFile& file, const CutSizes& sizes) {
  return make_work(plan, file, sizes, layout_file(file));
}

FileWork make_work(const Plan& plan, const PlannedFile& file, const CutSizes& sizes, FileLayout layout) {
  static std::atomic<std::uint64_t> works = 0;
  FileWork work;
  work.number = ++works;
  work.plan = &plan;
  work.file = &file;
  work.sizes = sizes;
  work.layout = std::move(layout);
  work.families = find_families(plan, file);
  work.making.assign(file.tensors.size(), Making::rendered);
  for (std::size_t t = 0; t < file.tensors.size(); ++t) {
    if (work.families.family_of[t] != Families::kNone) {
      work.making[t] = Making::member;
    } else if (is_direct(plan, file.tensors[t], work.bytes_of(t), sizes.direct_run)) {
      work.making[t] = Making::direct;
    } else if (file.tensors[t].merge) {
      work.making[t] = Making::merged;
    }
  }
  Cutter(work).run();
  order_units(work);
  return work;
}

std::uint64_t bytes_of(const FileWork& work, const Unit& unit) {
  if (unit.family == Families::kNone) return unit.end - unit.begin;
  const Family& family = work.families.families[unit.family];
  return static_cast<std::uint64_t>((unit.last_element - unit.first_element) * element_size(family.to)) *
         (unit.last_member - unit.first_member);
}

void for_each_piece(const FileWork& work, const Unit& unit, const std::function<void(const Piece&)>& visit) {
  if (unit.family != Families::kNone) {
    const Family& family = work.families.families[unit.family];
    const auto size = static_cast<std::uint64_t>(element_size(family.to));
    for (std::size_t m = unit.first_member; m < unit.last_member; ++m) {
      visit({family.members[m], static_cast<std::uint64_t>(unit.first_element) * size,
             static_cast<std::uint64_t>(unit.last_element) * size});
    }
    return;
  }
  const auto& order = work.layout.order;
  auto it = std::partition_point(order.begin(), order.end(),
                                 [&](std::size_t t) { return work.layout.begin[t] + work.bytes_of(t) <= unit.begin; });
  for (; it != order.end() && work.layout.begin[*it] < unit.end; ++it) {
    const std::uint64_t start = work.layout.begin[*it], stop = start + work.bytes_of(*it);
    if (start == stop) continue;
    visit({*it, std::max(unit.begin, start) - start, std::min(unit.end, stop) - start});
  }
}

Rectangle area_of(const FileWork& work, const Piece& piece) {
  const PlannedTensor& tensor = work.tensor(piece.tensor);
  const std::int64_t size = element_size(tensor.dtype);
  const auto first = static_cast<std::int64_t>(piece.begin) / size, last = static_cast<std::int64_t>(piece.end) / size,
             row = first / tensor.cols;
  if (work.is_wide(piece.tensor)) return {row, 1, first % tensor.cols, last - first};
  return {row, (last + tensor.cols - 1) / tensor.cols - row, 0, tensor.cols};
}

}  // namespace peft::execution
