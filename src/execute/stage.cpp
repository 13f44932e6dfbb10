#include "execute/stage.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <string>

#include "execute/element.h"
#include "execute/finite.h"
#include "peft/error.h"

namespace peft::execution {
namespace {

constexpr std::uint64_t kCacheLine = 64;

[[noreturn]] void overflow(const FileWork& work, std::size_t t) {
  const PlannedTensor& tensor = work.tensor(t);
  throw Error(ErrorCode::NUM_OVERFLOW, {.file = work.file->name,
                                        .tensor = tensor.name,
                                        .problem = "a finite value does not fit the output dtype",
                                        .got = std::string(info(tensor.dtype).name),
                                        .hint = "choose a dtype with a larger range: --dtype bfloat16 or float32"});
}

}  // namespace

void Stage::Unmap::operator()(std::byte* memory) const { munmap(memory, bytes); }

Stage::Stage(std::uint64_t bytes, MergeStores& stores) : size_(bytes), merger_(stores) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = {static_cast<std::byte*>(memory), Unmap{bytes}};
  madvise(memory, bytes, MADV_HUGEPAGE);  // a hint: fewer first touches
}

std::span<const Run> Stage::make(const FileWork& work, const Unit& unit) {
  used_ = num_runs_ = 0;
  waiting_.clear();
  made_.clear();
  for_each_piece(work, unit, [&](const Piece& piece) {
    switch (work.making[piece.tensor]) {
      case Making::direct:
        return append_direct(work, piece);
      case Making::member:
        return waiting_.push_back({piece, append_staged(work, piece, piece)});
      case Making::rendered:
      case Making::merged:
        return render_piece(work, piece);
    }
  });
  const auto family = [&](const Waiting& waiting) { return work.families.family_of[waiting.piece.tensor]; };
  std::stable_sort(waiting_.begin(), waiting_.end(),
                   [&](const auto& a, const auto& b) { return family(a) < family(b); });
  for (std::size_t begin = 0, end = 0; begin < waiting_.size(); begin = end) {
    while (end < waiting_.size() && family(waiting_[end]) == family(waiting_[begin])) ++end;
    render_family(work, std::span(waiting_).subspan(begin, end - begin));
  }
  for (const Made& made : made_) {
    const PlannedTensor& tensor = work.tensor(made.tensor);
    if (!all_finite({made.data, made.bytes}, tensor.dtype)) blame_nonfinite(*work.plan, tensor);
  }
  return std::span(runs_).first(num_runs_);
}

// In its cache line the memory starts at byte `phase`.
std::byte* Stage::allocate(std::uint64_t bytes, std::uint64_t phase) {
  const std::uint64_t size = staging_size(bytes);  // has a line more than there are bytes
  if (size > size_ - used_)
    throw Error(ErrorCode::INTERNAL, {.problem = "a unit of work is larger than the staging buffer"});
  std::byte* memory = memory_.get() + used_ + phase;
  used_ += size;
  return memory;
}

// Joins what follows in the file, and what follows in memory too.
void Stage::append(const FileWork& work, std::size_t t, std::uint64_t offset, const std::byte* data,
                   std::uint64_t bytes) {
  if (work.tensor(t).must_be_finite) made_.push_back({t, data, bytes});
  if (num_runs_ == 0 || end_ != offset) {
    if (num_runs_ == runs_.size()) runs_.emplace_back();
    runs_[num_runs_].offset = offset;
    runs_[num_runs_].parts.clear();
    ++num_runs_;
  }
  std::vector<iovec>& parts = runs_[num_runs_ - 1].parts;
  end_ = offset + bytes;
  if (!parts.empty() && static_cast<const std::byte*>(parts.back().iov_base) + parts.back().iov_len == data) {
    parts.back().iov_len += bytes;
  } else {
    parts.push_back({const_cast<std::byte*>(data), bytes});
  }
}

// The sources' own bytes, block after block.
void Stage::append_direct(const FileWork& work, const Piece& piece) {
  const PlannedTensor& tensor = work.tensor(piece.tensor);
  const std::uint64_t offset = work.layout.begin[piece.tensor];
  if (tensor.blocks.size() == 1) {
    return append(work, piece.tensor, offset + piece.begin,
                  first_byte(*work.plan, tensor.blocks[0].source) + piece.begin, piece.bytes());
  }
  const std::uint64_t row_bytes = static_cast<std::uint64_t>(tensor.cols * element_size(tensor.dtype));
  const auto begin_of = [&](const Block& block) { return static_cast<std::uint64_t>(block.row) * row_bytes; };
  const auto end_of = [&](const Block& block) {
    return static_cast<std::uint64_t>(block.row + block.source.rows) * row_bytes;
  };
  auto block = std::partition_point(tensor.blocks.begin(), tensor.blocks.end(),
                                    [&](const Block& b) { return end_of(b) <= piece.begin; });
  for (; block != tensor.blocks.end() && begin_of(*block) < piece.end; ++block) {
    const std::uint64_t begin = std::max(piece.begin, begin_of(*block)), end = std::min(piece.end, end_of(*block));
    append(work, piece.tensor, offset + begin, first_byte(*work.plan, block->source) + (begin - begin_of(*block)),
           end - begin);
  }
}

// Memory for `made`, which the piece is a part of. What is merged lies in cache lines as the file does: copying to
// pages of the file takes 1.4 times as long otherwise. Transposing would lose as much by rows that cross lines.
std::byte* Stage::append_staged(const FileWork& work, const Piece& piece, const Piece& made) {
  const std::uint64_t position = work.layout.head.size() + work.layout.begin[piece.tensor] + made.begin;
  const bool as_file = work.tensor(piece.tensor).merge && position % sizeof(double) == 0;
  std::byte* out = allocate(made.bytes(), as_file ? position % kCacheLine : 0);
  append(work, piece.tensor, work.layout.begin[piece.tensor] + piece.begin, out + (piece.begin - made.begin),
         piece.bytes());
  return out;
}

const TensorOps& Stage::ops_of(const FileWork& work, std::size_t tensor) {
  if (ops_work_ != work.number || ops_tensor_ != tensor) {
    ops_work_ = 0;
    ops_ = make_ops(*work.plan, work.tensor(tensor), work.is_wide(tensor));
    ops_work_ = work.number;
    ops_tensor_ = tensor;
  }
  return ops_;
}

void Stage::render_piece(const FileWork& work, const Piece& piece) {
  const PlannedTensor& tensor = work.tensor(piece.tensor);
  const Rectangle area = area_of(work, piece);
  const std::int64_t size = element_size(tensor.dtype), begin = (area.row * tensor.cols + area.col) * size;
  std::byte* out = append_staged(work, piece,
                                 {piece.tensor, static_cast<std::uint64_t>(begin),
                                  static_cast<std::uint64_t>(begin + area.rows * area.cols * size)});
  if (tensor.merge) return merger_.render(*work.plan, tensor, work.is_wide(piece.tensor), area, out);
  if (!render(ops_of(work, piece.tensor), tensor.dtype, area, out, scratch_)) overflow(work, piece.tensor);
}

void Stage::render_family(const FileWork& work, std::span<Waiting> waiting) {
  const Family& family = work.families.families[work.families.family_of[waiting.front().piece.tensor]];
  const std::int64_t from_size = element_size(family.from), to_size = element_size(family.to);
  // All members of a unit are there with the same elements.
  const auto begin = static_cast<std::int64_t>(waiting.front().piece.begin) / to_size;
  const auto end = static_cast<std::int64_t>(waiting.front().piece.end) / to_size;
  const auto count = static_cast<std::uint64_t>(end - begin);
  destinations_.clear();
  std::vector<std::byte*> raw;
  for (const Waiting& member : waiting) {
    std::byte* out = member.out;
    if (family.converts()) raw.push_back(out = allocate(count * static_cast<std::uint64_t>(from_size), 0));
    destinations_.push_back({work.families.first[member.piece.tensor], out});
  }
  render_members(family, begin, end, destinations_, scratch_);
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (!convert_row(family.from, raw[i], count, family.scale, family.to, waiting[i].out))
      overflow(work, waiting[i].piece.tensor);
  }
}

}  // namespace peft::execution
