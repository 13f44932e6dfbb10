#include "execute/run/unit_renderer.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <new>
#include <string>

#include "execute/values/element.h"
#include "execute/values/nonfinite.h"
#include "gguf/header.h"
#include "gguf/types/block_formats.h"
#include "peft/error.h"

namespace peft::execution {
namespace {

constexpr std::uint64_t kCacheLine = 64;
// Elements that are rendered before they are quantised. They stay in the cache.
constexpr std::int64_t kPackedElements = 1 << 15;

[[noreturn]] void overflow(const FileWork& work, std::size_t t) {
  const PlannedTensor& tensor = work.tensor(t);
  throw Error(ErrorCode::NUM_OVERFLOW,
              {.file = work.file->name,
               .tensor = tensor.name,
               .problem = "a finite value does not fit the output dtype",
               .got = std::string(tensor.packing ? gguf::info(*tensor.packing).name : info(tensor.dtype).name),
               .hint = "choose a dtype with a larger range: bfloat16 or float32"});
}

}  // namespace

void UnitRenderer::Unmap::operator()(std::byte* memory) const { munmap(memory, bytes); }

UnitRenderer::UnitRenderer(std::uint64_t bytes, MergeStores& stores) : size_(bytes), merger_(stores) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = {static_cast<std::byte*>(memory), Unmap{bytes}};
  madvise(memory, bytes, MADV_HUGEPAGE);  // a hint: fewer first touches
}

std::span<const FileExtent> UnitRenderer::make(const FileWork& work, const Unit& unit) {
  used_ = num_extents_ = 0;
  fills_gaps_ = unit.group == ColumnGroups::kNone;
  waiting_.clear();
  made_.clear();
  for_each_slice(work, unit, [&](const TensorSlice& slice) {
    switch (work.byte_source[slice.tensor]) {
      case ByteSource::direct:
        return append_direct(work, slice);
      case ByteSource::member:
        return waiting_.push_back({slice, append_staged(work, slice, slice)});
      case ByteSource::packed:
        return pack_slice(work, slice);
      case ByteSource::rendered:
      case ByteSource::merged:
        return render_slice(work, slice);
    }
  });
  const auto group = [&](const Waiting& waiting) { return work.column_groups.group_of_tensor[waiting.slice.tensor]; };
  std::stable_sort(waiting_.begin(), waiting_.end(), [&](const auto& a, const auto& b) { return group(a) < group(b); });
  for (std::size_t begin = 0, end = 0; begin < waiting_.size(); begin = end) {
    while (end < waiting_.size() && group(waiting_[end]) == group(waiting_[begin])) ++end;
    render_column_group(work, std::span(waiting_).subspan(begin, end - begin));
  }
  for (const Made& made : made_) {
    const PlannedTensor& tensor = work.tensor(made.tensor);
    if (!all_finite({made.data, made.bytes}, tensor.dtype)) throw_nonfinite(*work.plan, tensor);
  }
  return std::span(extents_).first(num_extents_);
}

// The memory starts at byte `phase` of a cache line.
std::byte* UnitRenderer::allocate(std::uint64_t bytes, std::uint64_t phase) {
  const std::uint64_t size = staging_size(bytes);  // a line more than `bytes` needs
  if (size > size_ - used_)
    throw Error(ErrorCode::INTERNAL, {.problem = "a unit of work is larger than the staging buffer"});
  std::byte* memory = memory_.get() + used_ + phase;
  used_ += size;
  return memory;
}

// Joins parts that follow each other in the file and in memory.
void UnitRenderer::append(const FileWork& work, std::size_t t, std::uint64_t offset, const std::byte* data,
                          std::uint64_t bytes) {
  if (work.tensor(t).must_be_finite && !work.tensor(t).packing) made_.push_back({t, data, bytes});
  if (fills_gaps_ && num_extents_ != 0 && end_ != offset) append_zeros(offset - end_);
  if (num_extents_ == 0 || end_ != offset) {
    if (num_extents_ == extents_.size()) extents_.emplace_back();
    extents_[num_extents_].offset = offset;
    extents_[num_extents_].parts.clear();
    ++num_extents_;
  }
  std::vector<iovec>& parts = extents_[num_extents_ - 1].parts;
  end_ = offset + bytes;
  if (!parts.empty() && static_cast<const std::byte*>(parts.back().iov_base) + parts.back().iov_len == data) {
    parts.back().iov_len += bytes;
  } else {
    parts.push_back({const_cast<std::byte*>(data), bytes});
  }
}

// The padding between two tensors of a unit. It is written and hashed with them.
void UnitRenderer::append_zeros(std::uint64_t bytes) {
  static std::array<std::byte, gguf::kMaxAlignment> zeros{};
  end_ += bytes;
  for (; bytes > 0; bytes -= std::min<std::uint64_t>(bytes, zeros.size()))
    extents_[num_extents_ - 1].parts.push_back({zeros.data(), std::min<std::uint64_t>(bytes, zeros.size())});
}

// Appends the source's own bytes, block after block.
void UnitRenderer::append_direct(const FileWork& work, const TensorSlice& slice) {
  const PlannedTensor& tensor = work.tensor(slice.tensor);
  const std::uint64_t offset = work.layout.begin[slice.tensor];
  if (tensor.blocks.size() == 1 && tensor.blocks[0].members.empty()) {
    return append(work, slice.tensor, offset + slice.begin,
                  first_byte(*work.plan, tensor.blocks[0].source) + slice.begin, slice.bytes());
  }
  const std::uint64_t row_bytes = static_cast<std::uint64_t>(tensor.cols * element_size(tensor.dtype));
  const auto byte_of = [&](std::int64_t row) { return static_cast<std::uint64_t>(row) * row_bytes; };
  auto block = std::partition_point(tensor.blocks.begin(), tensor.blocks.end(),
                                    [&](const Block& b) { return byte_of(b.row_end()) <= slice.begin; });
  for (; block != tensor.blocks.end() && byte_of(block->row) < slice.end; ++block) {
    block->for_each_member([&](const Block& member) {
      const std::uint64_t first = byte_of(member.row), begin = std::max(slice.begin, first),
                          end = std::min(slice.end, byte_of(member.row_end()));
      if (begin < end)
        append(work, slice.tensor, offset + begin, first_byte(*work.plan, member.source) + (begin - first),
               end - begin);
    });
  }
}

// Allocates memory for `made`, which contains `slice`. Merged bytes have the same position in a cache line as in the
// file: otherwise copying them to the file takes 1.4 times as long. For transposed bytes the gain would be lost, as
// rows would cross cache lines.
std::byte* UnitRenderer::append_staged(const FileWork& work, const TensorSlice& slice, const TensorSlice& made) {
  const std::uint64_t position = work.layout.head.size() + work.layout.begin[slice.tensor] + made.begin;
  const bool as_file = work.tensor(slice.tensor).merge && position % sizeof(double) == 0;
  std::byte* out = allocate(made.bytes(), as_file ? position % kCacheLine : 0);
  append(work, slice.tensor, work.layout.begin[slice.tensor] + slice.begin, out + (slice.begin - made.begin),
         slice.bytes());
  return out;
}

const TensorOps& UnitRenderer::ops_of(const FileWork& work, std::size_t tensor) {
  if (ops_work_ != work.number || ops_tensor_ != tensor) {
    ops_work_ = 0;
    ops_ = make_ops(*work.plan, work.tensor(tensor), work.is_wide(tensor));
    ops_work_ = work.number;
    ops_tensor_ = tensor;
  }
  return ops_;
}

void UnitRenderer::render_slice(const FileWork& work, const TensorSlice& slice) {
  const PlannedTensor& tensor = work.tensor(slice.tensor);
  const Rectangle area = area_of(work, slice);
  const std::int64_t size = element_size(tensor.dtype), begin = (area.row * tensor.cols + area.col) * size;
  std::byte* out = append_staged(work, slice,
                                 {slice.tensor, static_cast<std::uint64_t>(begin),
                                  static_cast<std::uint64_t>(begin + area.rows * area.cols * size)});
  if (tensor.merge) return merger_.render(*work.plan, tensor, work.is_wide(slice.tensor), area, out);
  if (!render(ops_of(work, slice.tensor), tensor.dtype, area, out, scratch_)) overflow(work, slice.tensor);
}

// The values of some rows in F32, merged where that is planned.
void UnitRenderer::render_values(const FileWork& work, std::size_t t, const Rectangle& area) {
  const PlannedTensor& tensor = work.tensor(t);
  unpacked_.resize(static_cast<std::size_t>(area.rows * tensor.cols));
  auto* values = reinterpret_cast<std::byte*>(unpacked_.data());
  if (tensor.merge) return merger_.render(*work.plan, tensor, false, area, values);
  if (!render(ops_of(work, t), tensor.dtype, area, values, scratch_)) overflow(work, t);
  if (tensor.must_be_finite && !all_finite(std::as_bytes(std::span(unpacked_)), tensor.dtype))
    throw_nonfinite(*work.plan, tensor);
}

// Adds what packing these rows has cost. A row that two slices share belongs to the one that has its first byte.
void UnitRenderer::measure(const FileWork& work, const TensorSlice& slice, Rectangle area, const std::byte* packed) {
  const PlannedTensor& tensor = work.tensor(slice.tensor);
  if (!tensor.merge || tensor.merge->updates.empty() || tensor.merge->base_dtype != Dtype::f32) return;
  const std::uint64_t row_bytes = work.bytes_of(slice.tensor) / static_cast<std::uint64_t>(tensor.rows);
  const auto cols = static_cast<std::size_t>(tensor.cols);
  std::span<const float> merged = unpacked_;
  if (static_cast<std::uint64_t>(area.row) * row_bytes < slice.begin)
    ++area.row, --area.rows, merged = merged.subspan(cols), packed += row_bytes;
  if (area.rows == 0) return;
  before_.resize(merged.size()), stored_.resize(merged.size());
  if (!render(ops_of(work, slice.tensor), Dtype::f32, area, reinterpret_cast<std::byte*>(before_.data()), scratch_))
    overflow(work, slice.tensor);
  gguf::unpack_blocks(*tensor.packing, {packed, static_cast<std::size_t>(area.rows) * row_bytes}, stored_.data());
  packing_loss_.add(slice.tensor, {before_, merged, stored_}, cols);
}

// Renders some rows at a time in F32 and quantises them.
void UnitRenderer::pack_slice(const FileWork& work, const TensorSlice& slice) {
  const PlannedTensor& tensor = work.tensor(slice.tensor);
  Rectangle area = area_of(work, slice);
  const std::uint64_t row_bytes =
      static_cast<std::uint64_t>(tensor.cols / work.grain_elements(slice.tensor)) * work.grain_bytes(slice.tensor);
  const std::uint64_t begin = static_cast<std::uint64_t>(area.row) * row_bytes;
  std::byte* out =
      append_staged(work, slice, {slice.tensor, begin, begin + static_cast<std::uint64_t>(area.rows) * row_bytes});
  const std::int64_t end = area.row + area.rows, step = std::max<std::int64_t>(1, kPackedElements / tensor.cols);
  for (; area.row < end; area.row += step, out += static_cast<std::uint64_t>(area.rows) * row_bytes) {
    area.rows = std::min(step, end - area.row);
    render_values(work, slice.tensor, area);
    if (!gguf::pack_blocks(*tensor.packing, unpacked_, out)) overflow(work, slice.tensor);
    measure(work, slice, area, out);
  }
}

void UnitRenderer::render_column_group(const FileWork& work, std::span<Waiting> waiting) {
  const ColumnGroup& group =
      work.column_groups.groups[work.column_groups.group_of_tensor[waiting.front().slice.tensor]];
  const std::int64_t from_size = element_size(group.from), to_size = element_size(group.to);
  // All members of a unit have the same elements in it.
  const auto begin = static_cast<std::int64_t>(waiting.front().slice.begin) / to_size;
  const auto end = static_cast<std::int64_t>(waiting.front().slice.end) / to_size;
  const auto count = static_cast<std::uint64_t>(end - begin);
  destinations_.clear();
  std::vector<std::byte*> raw;
  for (const Waiting& member : waiting) {
    std::byte* out = member.out;
    if (group.converts()) raw.push_back(out = allocate(count * static_cast<std::uint64_t>(from_size), 0));
    destinations_.push_back({work.column_groups.first[member.slice.tensor], out});
  }
  render_members(group, begin, end, destinations_, scratch_);
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (!convert_row(group.from, raw[i], count, group.scale, group.to, waiting[i].out))
      overflow(work, waiting[i].slice.tensor);
  }
}

}  // namespace peft::execution
