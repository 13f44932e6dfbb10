#include "execute/run/unit.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "execute/merge/inputs/gathered_factors.h"
#include "execute/values/element.h"
#include "gguf/types/ggml_type.h"
#include "plan/update_targets.h"

namespace peft::execution {
namespace {

constexpr std::uint64_t kMaxSlices = 1000;
constexpr std::uint64_t kShortRows = 16;  // a block has at least so many of them
constexpr std::int64_t kCacheLine = 64;
// Members that are neighbours in the source are rendered together, this many bytes of them: no cache line is read
// twice.
constexpr std::int64_t kGroupBytes = 512;
// Staging for members that do not fit whole: less than there is, so that it stays in the cache; but enough for each
// member to make a write worth its call.
constexpr std::int64_t kTileBytes = std::int64_t{4} << 20, kTileMemberBytes = std::int64_t{32} * 1024;

bool is_direct(const Plan& plan, const PlannedTensor& tensor, std::uint64_t bytes, std::uint64_t shortest) {
  if (tensor.packing) return tensor.dtype == Dtype::unknown;
  if (tensor.merge) return false;
  std::int64_t row = 0, parts = 0;
  for (const Block& block : tensor.blocks) {
    const View& view = block.source;
    const bool contiguous =
        (view.cols == 1 || view.col_stride == 1) && (view.rows == 1 || view.row_stride == view.cols);
    if (block.row != row || view.cols != tensor.cols || !contiguous || block.scale != 1 || block.scales ||
        (block.col_step != 1 && view.cols != 1)) {
      return false;
    }
    const auto is_zeros = [](const Origin& origin) { return origin.is_zeros(); };
    if (!block.members.empty() && (block.row_shift != view.rows || std::ranges::any_of(block.members, is_zeros)))
      return false;
    if (plan.sources[view.source]->tensors()[view.tensor].dtype != tensor.dtype) return false;
    row = block.row_end();
    parts += block.num_members();
  }
  return row == tensor.rows && (parts == 1 || bytes >= static_cast<std::uint64_t>(parts) * shortest);
}

// Bytes that a tensor needs in the staging buffer.
std::uint64_t staged_bytes(const FileWork& work, std::size_t t) {
  std::uint64_t bytes = staging_size(work.bytes_of(t));
  if (work.byte_source[t] == ByteSource::member) {
    const ColumnGroup& group = work.column_groups.groups[work.column_groups.group_of_tensor[t]];
    if (group.converts())
      bytes += staging_size(static_cast<std::uint64_t>(group.rows * group.cols * element_size(group.from)));
  }
  return bytes;
}

// Positions [begin, end) in the order of the file.
struct Span {
  std::size_t begin = 0, end = 0;
};

// Where column groups lie in the file. Overlapping spans are joined: gate, up and down experts of a layer.
std::vector<Span> group_spans(const FileWork& work) {
  std::vector<Span> spans;
  std::vector<std::size_t> span_of(work.column_groups.groups.size(), ColumnGroups::kNone);
  for (std::size_t position = 0; position < work.layout.order.size(); ++position) {
    const std::size_t group = work.column_groups.group_of_tensor[work.layout.order[position]];
    if (group == ColumnGroups::kNone) continue;
    if (span_of[group] == ColumnGroups::kNone) {
      span_of[group] = spans.size();
      spans.push_back({position, position + 1});
    }
    spans[span_of[group]].end = position + 1;
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
    for (const Span& span : group_spans(work_)) {
      cut(position, span.begin);
      flush();
      if (!take_whole(span)) cut(span.begin, span.end);
      flush();
      position = span.end;
    }
    cut(position, work_.layout.order.size());
    flush();
    for (std::size_t group : tiled_) tile(group);
  }

 private:
  // One unit for all of a span, if the staging buffer can hold it. Tensors with wide rows need units of their own: a
  // slice of them is a part of one row.
  bool take_whole(const Span& span) {
    std::uint64_t staged = 0;
    bool has_wide_rows = false;
    std::vector<std::size_t> groups;
    for (std::size_t position = span.begin; position < span.end; ++position) {
      const std::size_t t = work_.layout.order[position];
      if (work_.byte_source[t] == ByteSource::member) groups.push_back(work_.column_groups.group_of_tensor[t]);
      if (work_.byte_source[t] != ByteSource::direct) staged += staged_bytes(work_, t);
      const bool by_rows = work_.byte_source[t] == ByteSource::rendered || work_.byte_source[t] == ByteSource::merged;
      has_wide_rows = has_wide_rows || (by_rows && work_.is_wide(t));
    }
    const bool fits = !has_wide_rows && staged <= work_.sizes.staging;
    if (fits) {
      const std::size_t first = work_.layout.order[span.begin], last = work_.layout.order[span.end - 1];
      work_.units.push_back({work_.layout.begin[first], work_.layout.begin[last] + work_.bytes_of(last)});
    } else {
      std::sort(groups.begin(), groups.end());
      groups.erase(std::unique(groups.begin(), groups.end()), groups.end());
      tiled_.insert(tiled_.end(), groups.begin(), groups.end());
    }
    return fits;
  }

  void cut(std::size_t begin, std::size_t end) {
    for (std::size_t position = begin; position < end; ++position) {
      const std::size_t t = work_.layout.order[position];
      if (work_.byte_source[t] == ByteSource::member) {
        flush();  // has units of its own
      } else {
        cut_tensor(t);
      }
    }
  }

  // Units end where blocks of the file end. Short rows are cut there and rendered twice. Long rows stay whole. Rows
  // longer than a block are cut between elements.
  void cut_tensor(std::size_t t) {
    const std::uint64_t size = work_.grain_bytes(t),
                        row = static_cast<std::uint64_t>(work_.tensor(t).cols / work_.grain_elements(t)) * size,
                        block = work_.sizes.block;
    const bool direct = work_.byte_source[t] == ByteSource::direct, wide = !direct && work_.is_wide(t),
               keeps_rows = !direct && !wide && row > block / kShortRows;
    const std::uint64_t step = keeps_rows ? row : size;
    for (std::uint64_t done = 0, bytes = 0; done < work_.bytes_of(t); done += bytes) {
      const std::uint64_t at = work_.layout.head.size() + work_.layout.begin[t] + done;
      std::uint64_t room = block - (keeps_rows ? unit_.end - unit_.begin : at % block);
      if (slices_ >= kMaxSlices || room < step) flush();
      if (keeps_rows) room = block - (unit_.end - unit_.begin);
      bytes = std::min(std::max<std::uint64_t>(room / step, 1) * step, work_.bytes_of(t) - done);
      if (wide) bytes = std::min(bytes, row - done % row);  // a slice is a rectangle
      extend(t, done, bytes);
      if (bytes >= room || (wide && (done + bytes) % row == 0)) flush();
    }
    if (keeps_rows) flush();
  }

  void extend(std::size_t t, std::uint64_t begin, std::uint64_t bytes) {
    if (unit_.begin == unit_.end) unit_.begin = unit_.end = work_.layout.begin[t] + begin;
    unit_.end = work_.layout.begin[t] + begin + bytes;  // with the padding since the tensor before
    ++slices_;
  }

  void flush() {
    if (unit_.begin != unit_.end) work_.units.push_back(unit_);
    unit_ = {};
    slices_ = 0;
  }

  // Takes neighbouring members, kGroupBytes of them at a time, and as many elements as fit the buffer.
  void tile(std::size_t index) {
    const ColumnGroup& group = work_.column_groups.groups[index];
    const std::int64_t from_size = element_size(group.from), to_size = element_size(group.to);
    const auto line_of = [&](std::size_t m) {
      return work_.column_groups.first[group.members[m]] * from_size / kGroupBytes;
    };
    const std::int64_t elements = group.rows * group.cols;
    const auto most_staging = static_cast<std::int64_t>(work_.sizes.staging);
    for (std::size_t begin = 0, end = 0; begin < group.members.size(); begin = end) {
      for (end = begin; end < group.members.size() && line_of(end) == line_of(begin);) ++end;
      end = std::min(end, begin + kMaxSlices);
      const auto members = static_cast<std::int64_t>(end - begin);
      const std::int64_t staging = std::min(most_staging, std::max(kTileBytes, members * kTileMemberBytes));
      const std::int64_t bytes_each = staging / members - 4 * kCacheLine;
      const std::int64_t most = std::max<std::int64_t>(1, bytes_each / (to_size + (group.converts() ? from_size : 0)));
      for (std::int64_t m = 0; m < elements; m += most) {
        work_.units.push_back({0, 0, index, begin, end, m, std::min(m + most, elements)});
      }
    }
  }

  FileWork& work_;
  Unit unit_;
  std::uint64_t slices_ = 0;
  std::vector<std::size_t> tiled_;
};

}  // namespace

CutSizes cut_sizes(int workers) {
  CutSizes sizes;
  sizes.staging = std::min(sizes.staging, kMaxStagingBytes / static_cast<std::uint64_t>(workers));
  return sizes;
}

std::uint64_t staging_size(std::uint64_t bytes) {
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine + kCacheLine;
}

std::uint64_t FileWork::grain_bytes(std::size_t t) const {
  if (tensor(t).packing) return gguf::info(*tensor(t).packing).block_bytes;
  return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(info(tensor(t).dtype).bits) / 8);
}

std::int64_t FileWork::grain_elements(std::size_t t) const {
  return tensor(t).packing ? gguf::info(*tensor(t).packing).block : 1;
}

bool FileWork::is_wide(std::size_t t) const {
  if (tensor(t).packing) return false;
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
  work.column_groups = column_groups_of(plan, file);
  work.byte_source.assign(file.tensors.size(), ByteSource::rendered);
  for (std::size_t t = 0; t < file.tensors.size(); ++t) {
    if (work.column_groups.group_of_tensor[t] != ColumnGroups::kNone) {
      work.byte_source[t] = ByteSource::member;
    } else if (is_direct(plan, file.tensors[t], work.bytes_of(t), sizes.direct_run)) {
      work.byte_source[t] = ByteSource::direct;
    } else if (file.tensors[t].packing) {
      work.byte_source[t] = ByteSource::packed;
    } else if (file.tensors[t].merge) {
      work.byte_source[t] = ByteSource::merged;
    }
  }
  Cutter(work).run();
  order_units(work);
  return work;
}

std::uint64_t bytes_of(const FileWork& work, const Unit& unit) {
  if (unit.group == ColumnGroups::kNone) return unit.end - unit.begin;
  const ColumnGroup& group = work.column_groups.groups[unit.group];
  return static_cast<std::uint64_t>((unit.last_element - unit.first_element) * element_size(group.to)) *
         (unit.last_member - unit.first_member);
}

void for_each_slice(const FileWork& work, const Unit& unit, const std::function<void(const TensorSlice&)>& visit) {
  if (unit.group != ColumnGroups::kNone) {
    const ColumnGroup& group = work.column_groups.groups[unit.group];
    const auto size = static_cast<std::uint64_t>(element_size(group.to));
    for (std::size_t m = unit.first_member; m < unit.last_member; ++m) {
      visit({group.members[m], static_cast<std::uint64_t>(unit.first_element) * size,
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

Rectangle area_of(const FileWork& work, const TensorSlice& slice) {
  const PlannedTensor& tensor = work.tensor(slice.tensor);
  const auto size = static_cast<std::int64_t>(work.grain_bytes(slice.tensor)),
             count = work.grain_elements(slice.tensor);
  const auto first = static_cast<std::int64_t>(slice.begin) / size * count,
             last = static_cast<std::int64_t>(slice.end) / size * count, row = first / tensor.cols;
  if (work.is_wide(slice.tensor)) return {row, 1, first % tensor.cols, last - first};
  return {row, (last + tensor.cols - 1) / tensor.cols - row, 0, tensor.cols};
}

namespace {

// Finds the gather group of a slice. Slices of a tensor follow each other, so the last index is kept.
class GatherGroups {
 public:
  explicit GatherGroups(const FileWork& work) : work_(work) {}

  // The group of the first matrix that the slice changes.
  std::optional<GatherGroup> of(const TensorSlice& slice) {
    if (!work_.tensor(slice.tensor).merge) return std::nullopt;
    open(slice.tensor);
    const Rectangle area = area_of(work_, slice);
    const plan::TargetMatrix* first = nullptr;
    matrices_.by_row.find(area.row, area.row + area.rows, [&](std::size_t matrix) {
      if (first == nullptr) first = &matrices_.matrices[matrix];
    });
    return first == nullptr ? std::nullopt : of(*first);
  }

 private:
  void open(std::size_t t) {
    if (tensor_ == t) return;
    tensor_ = t;
    matrices_ = plan::TargetIndex(work_.tensor(t));
  }
  std::optional<GatherGroup> of(const plan::TargetMatrix& matrix) const {
    const Update& update = work_.tensor(tensor_).merge->updates[matrix.updates.front()];
    const std::size_t in_turn = views_in_turn(matrix.updates.size());
    for (const View* view : {&update.b, &update.a}) {
      if (view->rows == 0 || view->cols == 0) continue;
      if (const auto group = group_of(*work_.plan, *view, in_turn)) return group;
    }
    return std::nullopt;
  }

  const FileWork& work_;
  std::size_t tensor_ = static_cast<std::size_t>(-1);
  plan::TargetIndex matrices_;
};

bool has_column_group(const FileWork& work, const Unit& unit) {
  bool has = false;
  for_each_slice(work, unit,
                 [&](const TensorSlice& slice) { has |= work.byte_source[slice.tensor] == ByteSource::member; });
  return has;
}

}  // namespace

void order_units(FileWork& work) {
  const auto gathers = [](const PlannedTensor& tensor) { return tensor.merge.has_value(); };
  if (std::ranges::none_of(work.file->tensors, gathers)) return;
  GatherGroups groups(work);
  std::map<GatherGroup, std::size_t> place_of;  // where the group's first unit stands
  std::vector<std::pair<std::size_t, Unit>> placed;
  for (const Unit& unit : work.units) {
    std::optional<GatherGroup> group;
    Unit part = unit;
    const auto add = [&] {
      const std::size_t place = placed.size();
      placed.emplace_back(group ? place_of.try_emplace(*group, place).first->second : place, part);
    };
    bool is_first = true;
    if (has_column_group(work, unit)) {  // its members stay together
      add();
      continue;
    }
    for_each_slice(work, unit, [&](const TensorSlice& slice) {
      const auto next = groups.of(slice);
      if (!is_first && next != group) {
        const std::uint64_t begin = work.layout.begin[slice.tensor] + slice.begin;
        part.end = begin;
        add();
        part.begin = begin, part.end = unit.end;
      }
      group = next;
      is_first = false;
    });
    add();
  }
  std::stable_sort(placed.begin(), placed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  work.units.clear();
  for (const auto& [place, unit] : placed) work.units.push_back(unit);
}

}  // namespace peft::execution
