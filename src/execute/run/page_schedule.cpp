#include "execute/run/page_schedule.h"

#include <algorithm>
#include <limits>

#include "execute/values/element.h"
#include "gguf/types/ggml_type.h"
#include "plan/update_targets.h"

namespace peft::execution {
namespace {

constexpr std::uint64_t kWindow = std::uint64_t{512} << 10;
constexpr std::uint32_t kNever = std::numeric_limits<std::uint32_t>::max();

std::uint64_t data_bytes(const TensorFile& file) { return file.file_size() - file.data_offset(); }

// The source bytes of a block's rows [begin, end), as one range of the data section.
std::pair<std::uint64_t, std::uint64_t> bytes_of(const Plan& plan, const View& view, std::int64_t begin,
                                                 std::int64_t end, bool packed = false) {
  const TensorInfo& tensor = plan.sources[view.source]->tensors()[view.tensor];
  const auto type = tensor.dtype == Dtype::unknown ? gguf::parse_ggml_type(tensor.dtype_name) : std::nullopt;
  // `codes` elements take `size` bytes: blocks of GGUF's quantised types; two codes of 4 bits.
  const std::int64_t size =
      type ? static_cast<std::int64_t>(gguf::info(*type).block_bytes) : element_size(tensor.dtype);
  if (size == 0) return {tensor.begin, tensor.end};  // dtypes below a byte are always copied whole
  const std::int64_t codes = type ? gguf::info(*type).block : packed ? 2 : 1;
  const std::int64_t start = view.offset + begin * view.row_stride;
  const std::int64_t down = (end - begin - 1) * view.row_stride, across = (view.cols - 1) * view.col_stride;
  const std::int64_t low = start + std::min<std::int64_t>(down, 0) + std::min<std::int64_t>(across, 0);
  const std::int64_t high = start + std::max<std::int64_t>(down, 0) + std::max<std::int64_t>(across, 0) + 1;
  return {tensor.begin + static_cast<std::uint64_t>(low / codes * size),
          tensor.begin + static_cast<std::uint64_t>((high + codes - 1) / codes * size)};
}

// Finds the blocks and updates of a tensor by row. Slices of a tensor follow each other, so the last index is kept.
class Readers {
 public:
  explicit Readers(const FileWork& work) : work_(work) {}

  // Calls visit(source, begin, end) for the bytes that a slice reads.
  template <class Visit>
  void for_each_range(const TensorSlice& slice, const Visit& visit) {
    open(slice.tensor);
    const PlannedTensor& tensor = work_.tensor(slice.tensor);
    // Of dtypes below a byte a tensor is copied whole.
    const bool below_byte = info(tensor.dtype).bits < 8 && !tensor.packing;
    const Rectangle area = below_byte ? Rectangle{0, tensor.rows, 0, tensor.cols} : area_of(work_, slice);
    const std::int64_t row = area.row, row_end = area.row + area.rows;
    const auto visit_view = [&](const View& view, std::int64_t begin, std::int64_t end, bool packed = false) {
      const auto [first, last] = bytes_of(*work_.plan, view, begin, end, packed);
      visit(view.source, first, last);
    };
    blocks_.find(row, row_end, [&](std::size_t b) {
      tensor.blocks[b].for_each_member([&](const Block& block) {
        const std::int64_t begin = std::max(row, block.row), end = std::min(row_end, block.row_end());
        if (begin >= end) return;
        visit_view(block.source, begin - block.row, end - block.row,
                   block.scales && block.scales->kind == Scales::Kind::mxfp4);
        if (block.scales && block.scales->kind != Scales::Kind::ggml)
          visit_view(block.scales->grid, 0, block.scales->grid.rows);
      });
    });
    merges_.by_row.find(row, row_end, [&](std::size_t p) {
      for (const std::uint32_t u : merges_.matrices[p].updates) {
        const Update& update = tensor.merge->updates[u];
        visit_view(update.a, 0, update.a.rows);
        if (update.b.rows != 0) visit_view(update.b, 0, update.b.rows);
        if (update.magnitude) visit_view(*update.magnitude, 0, update.magnitude->rows);
      }
    });
  }

 private:
  void open(std::size_t t) {
    if (tensor_ == t) return;
    tensor_ = t;
    const PlannedTensor& tensor = work_.tensor(t);
    blocks_ = plan::RowIndex(
        tensor.blocks.size(), [&](std::size_t b) { return tensor.blocks[b].row; },
        [&](std::size_t b) { return tensor.blocks[b].row_end(); });
    merges_ = tensor.merge ? plan::TargetIndex(tensor) : plan::TargetIndex();
  }

  const FileWork& work_;
  std::size_t tensor_ = static_cast<std::size_t>(-1);
  plan::RowIndex blocks_;
  plan::TargetIndex merges_;
};

}  // namespace

PageSchedule::PageSchedule(const FileWork& work) : plan_(*work.plan) {
  std::vector<std::vector<std::uint32_t>> first(plan_.sources.size()), last(plan_.sources.size());
  Readers readers(work);
  for (std::size_t u = 0; u < work.units.size(); ++u) {
    const auto unit = static_cast<std::uint32_t>(u);
    for_each_slice(work, work.units[u], [&](const TensorSlice& slice) {
      readers.for_each_range(slice, [&](std::uint32_t source, std::uint64_t begin, std::uint64_t end) {
        // Tensors in memory lie anywhere, also beyond the size of all of them; they have no pages to map.
        if (end > data_bytes(*plan_.sources[source])) return;
        if (first[source].empty()) {  // a file uses few of a large model's shards
          first[source].assign(static_cast<std::size_t>(data_bytes(*plan_.sources[source]) / kWindow + 1), kNever);
          last[source] = first[source];
        }
        for (std::uint64_t window = begin / kWindow; window <= (end - 1) / kWindow; ++window) {
          if (first[source][window] == kNever) first[source][window] = unit;
          last[source][window] = unit;
        }
      });
    });
  }
  first_ = by_unit(plan_, first, work.units.size());
  last_ = by_unit(plan_, last, work.units.size());
}

PageSchedule::Windows PageSchedule::by_unit(const Plan& plan,
                                            const std::vector<std::vector<std::uint32_t>>& unit_of_window,
                                            std::size_t num_units) {
  Windows result;
  const auto for_each_window = [&](const auto& visit) {
    for (std::size_t s = 0; s < unit_of_window.size(); ++s) {
      const std::vector<std::uint32_t>& units = unit_of_window[s];
      for (std::size_t w = 0, end = 0; w < units.size(); w = end) {
        for (end = w; end < units.size() && units[end] == units[w];) ++end;
        if (units[w] == kNever) continue;
        visit(units[w], Window{static_cast<std::uint32_t>(s), w * kWindow,
                               std::min(end * kWindow, data_bytes(*plan.sources[s]))});
      }
    }
  };
  result.starts.assign(num_units + 1, 0);
  for_each_window([&](std::uint32_t unit, const Window&) { ++result.starts[unit + 1]; });
  for (std::size_t u = 0; u < num_units; ++u) result.starts[u + 1] += result.starts[u];
  result.windows.resize(result.starts.back());
  std::vector<std::size_t> next(result.starts.begin(), result.starts.end() - 1);
  for_each_window([&](std::uint32_t unit, const Window& window) { result.windows[next[unit]++] = window; });
  return result;
}

void PageSchedule::prefetch(std::size_t unit) const {
  if (unit + 1 >= first_.starts.size()) return;
  for (std::size_t i = first_.starts[unit]; i < first_.starts[unit + 1]; ++i) {
    const Window& window = first_.windows[i];
    plan_.sources[window.source]->prefetch(window.begin, window.end);
  }
}

void PageSchedule::release(std::size_t unit) const {
  if (unit + 1 >= last_.starts.size()) return;
  for (std::size_t i = last_.starts[unit]; i < last_.starts[unit + 1]; ++i) {
    const Window& window = last_.windows[i];
    plan_.sources[window.source]->release(window.begin, window.end);
  }
}

}  // namespace peft::execution
