#include "execute/copy/render.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "base/system.h"
#include "execute/kernels/transpose.h"
#include "execute/values/element.h"
#include "execute/values/nonfinite.h"
#include "peft/error.h"
#include "plan/check.h"

namespace peft::execution {
namespace {

// Output rows of one kernel call; its pointers stay in the first-level cache.
constexpr std::int64_t kOutRows = 2048;
constexpr std::size_t kMaxElement = 8;
// Zeros, for experts that the adapter does not have.
constexpr std::array<std::byte, kOutRows * kMaxElement> kZeros{};
// Bytes of rows before conversion: enough to feed the kernel, and small enough for the second-level cache.
constexpr std::int64_t kRawBytes = std::int64_t{128} * 1024;
// The size of a tile that is dequantised at once. It has as many rows as mxfp4 has codes under one scale: in transposed
// storage these codes are neighbours.
constexpr std::int64_t kDecodedRows = 32, kDecodedCols = 256;

// Where an operation writes: element (i, j) of its rectangle goes to data + i * pitch + j * element size.
struct Target {
  std::byte* data;
  std::int64_t pitch;
};

std::optional<Rectangle> intersect(const Rectangle& a, const Rectangle& b) {
  const std::int64_t row = std::max(a.row, b.row), row_end = std::min(a.row + a.rows, b.row + b.rows);
  const std::int64_t col = std::max(a.col, b.col), col_end = std::min(a.col + a.cols, b.col + b.cols);
  if (row >= row_end || col >= col_end) return std::nullopt;
  return Rectangle{row, row_end - row, col, col_end - col};
}

template <std::size_t kSize>
void gather(const std::byte* from, std::int64_t stride, std::byte* to, std::int64_t step, std::int64_t count) {
  for (std::int64_t j = 0; j < count; ++j) std::memcpy(to + j * step, from + j * stride, kSize);
}

void gather(const std::byte* from, std::int64_t stride, std::byte* to, std::int64_t step, std::int64_t count,
            std::int64_t size) {
  switch (size) {
    case 1:
      return gather<1>(from, stride, to, step, count);
    case 2:
      return gather<2>(from, stride, to, step, count);
    case 4:
      return gather<4>(from, stride, to, step, count);
    default:
      return gather<8>(from, stride, to, step, count);
  }
}

void copy_rows(const Op& op, const Rectangle& part, const Target& target) {
  const std::int64_t size = element_size(op.dtype), bytes = part.cols * size;
  const std::byte* from = op.data + part.row * op.row_stride + part.col * size;
  if (bytes == op.row_stride && bytes == target.pitch) {
    std::memcpy(target.data, from, static_cast<std::size_t>(bytes * part.rows));
    return;
  }
  for (std::int64_t i = 0; i < part.rows; ++i) {
    std::memcpy(target.data + i * target.pitch, from + i * op.row_stride, static_cast<std::size_t>(bytes));
  }
}

void point_at_members(const Op& op, std::int64_t offset, std::vector<const std::byte*>& rows) {
  rows.clear();
  for (const Member& member : op.members) {
    for (std::int64_t k = 0; k < member.count; ++k)
      rows.push_back(member.data == nullptr ? kZeros.data() : member.data + k * member.step + offset);
  }
}

// `group` output rows follow each other within a row of the tensor. When the members are contiguous over rows too,
// the kernel crosses from row to row: a small rank alone would starve it.
void interleave_rows(const Op& op, const Rectangle& part, const Target& target, Scratch& scratch) {
  const std::int64_t size = element_size(op.dtype);
  const bool flat = op.row_stride == op.group * size;
  const std::int64_t count = flat ? part.rows * op.group : op.group;
  for (std::int64_t i = 0; i < (flat ? 1 : part.rows); ++i) {
    for (std::int64_t first = 0; first < count; first += kOutRows) {
      const std::int64_t last = std::min(first + kOutRows, count);
      point_at_members(op, (part.row + i) * op.row_stride + first * size, scratch.in_rows);
      scratch.out_rows.resize(static_cast<std::size_t>(last - first));
      auto to = scratch.out_rows.begin();
      std::int64_t k = first % op.group;
      std::byte* row = target.data + (i + first / op.group) * target.pitch;
      for (std::int64_t m = first; m < last; row += target.pitch, k = 0) {
        std::byte* out = row + k * op.width * size;
        for (const std::int64_t row_end = std::min(m + op.group - k, last); m < row_end; ++m, out += op.width * size) {
          *to++ = out;
        }
      }
      transpose(scratch.in_rows, scratch.out_rows, static_cast<std::size_t>(size));
    }
  }
}

// Moves bytes. `part` is relative to the operation's rectangle.
void move(const Op& op, const Rectangle& part, const Target& target, Scratch& scratch) {
  const std::int64_t size = element_size(op.dtype);
  switch (op.kind) {
    case Op::Kind::copy:
      return copy_rows(op, part, target);
    case Op::Kind::interleave:
      return interleave_rows(op, part, target, scratch);
    case Op::Kind::decode:
      return;  // not moved
    case Op::Kind::strided:
      for (std::int64_t i = 0; i < part.rows; ++i) {
        const std::byte* from = op.data + (part.row + i) * op.row_stride + part.col * op.col_stride;
        gather(from, op.col_stride, target.data + i * target.pitch, op.col_step * size, part.cols, size);
      }
  }
}

// Dequantises a band of rows to fp32, then converts it.
bool decode_and_convert(const Op& op, const Rectangle& part, Dtype dtype, const Target& target, Scratch& scratch) {
  const std::int64_t size = element_size(dtype);
  const bool in_place = dtype == Dtype::f32 && op.col_step == 1 && op.codes.kind == Scales::Kind::ggml;
  if (in_place && target.pitch % size == 0 && reinterpret_cast<std::uintptr_t>(target.data) % sizeof(float) == 0) {
    dequantise(op.codes, part.row, part.rows, part.col, part.cols, reinterpret_cast<float*>(target.data),
               target.pitch / size);
    return true;
  }
  for (std::int64_t first = 0; first < part.rows; first += kDecodedRows) {
    const std::int64_t rows = std::min(kDecodedRows, part.rows - first);
    for (std::int64_t col = 0; col < part.cols; col += kDecodedCols) {
      const std::int64_t cols = std::min(kDecodedCols, part.cols - col);
      scratch.decoded.resize(kDecodedRows * kDecodedCols);
      dequantise(op.codes, part.row + first, rows, part.col + col, cols, scratch.decoded.data(), kDecodedCols);
      for (std::int64_t i = 0; i < rows; ++i) {
        const auto* from =
            reinterpret_cast<const std::byte*>(&scratch.decoded[static_cast<std::size_t>(i * kDecodedCols)]);
        std::byte* to = target.data + (first + i) * target.pitch + col * op.col_step * size;
        for (std::int64_t j = 0; op.col_step != 1 && j < cols; ++j) {
          if (!convert_row(Dtype::f32, from + j * 4, 1, 1, dtype, to + j * op.col_step * size)) return false;
        }
        if (op.col_step == 1 && !convert_row(Dtype::f32, from, static_cast<std::size_t>(cols), 1, dtype, to))
          return false;
      }
    }
  }
  return true;
}

// Moves some rows to scratch memory, then converts them.
bool move_and_convert(const Op& op, const Rectangle& part, Dtype dtype, const Target& target, Scratch& scratch) {
  if (op.kind == Op::Kind::decode) return decode_and_convert(op, part, dtype, target, scratch);
  const std::int64_t from_size = element_size(op.dtype), to_size = element_size(dtype);
  const std::int64_t raw_pitch = part.cols * from_size;
  const std::int64_t rows = std::clamp<std::int64_t>(kRawBytes / raw_pitch, 1, part.rows);
  scratch.raw.resize(static_cast<std::size_t>(rows * raw_pitch));
  Op raw_op = op;
  raw_op.col_step = 1;
  for (std::int64_t first = 0; first < part.rows; first += rows) {
    const std::int64_t count = std::min(rows, part.rows - first);
    move(raw_op, {part.row + first, count, part.col, part.cols}, {scratch.raw.data(), raw_pitch}, scratch);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::byte* from = scratch.raw.data() + i * raw_pitch;
      std::byte* to = target.data + (first + i) * target.pitch;
      for (std::int64_t j = 0; op.col_step != 1 && j < part.cols; ++j) {
        if (!convert_row(op.dtype, from + j * from_size, 1, op.scale, dtype, to + j * op.col_step * to_size))
          return false;
      }
      if (op.col_step == 1 && !convert_row(op.dtype, from, static_cast<std::size_t>(part.cols), op.scale, dtype, to)) {
        return false;
      }
    }
  }
  return true;
}

// The columns of an operation with a column step that lie in [begin, end): index of the first one, and how many.
std::pair<std::int64_t, std::int64_t> columns_in(const Op& op, std::int64_t begin, std::int64_t end) {
  const auto up = [&](std::int64_t col) { return col <= op.col ? 0 : (col - op.col + op.col_step - 1) / op.col_step; };
  const std::int64_t first = up(begin), last = std::min(up(end), op.cols);
  return {first, std::max<std::int64_t>(0, last - first)};
}

}  // namespace

bool render(const TensorOps& ops, Dtype dtype, const Rectangle& part, std::byte* out, Scratch& scratch) {
  const std::int64_t size = element_size(dtype), pitch = part.cols * size;
  const auto place = [&](std::int64_t row, std::int64_t col) {
    return out + (row - part.row) * pitch + (col - part.col) * size;
  };
  for (const Rectangle& gap : ops.zeros) {
    const auto common = intersect(gap, part);
    if (!common) continue;
    for (std::int64_t i = 0; i < common->rows; ++i) {
      std::memset(place(common->row + i, common->col), 0, static_cast<std::size_t>(common->cols * size));
    }
  }
  for (const Op& op : ops.ops) {
    const auto common = intersect({op.row, op.rows, op.col, (op.cols - 1) * op.col_step + 1}, part);
    if (!common) continue;
    const auto [first, count] = columns_in(op, part.col, part.col + part.cols);
    if (count == 0) continue;
    const Rectangle own{common->row - op.row, common->rows, first, count};
    const Target target{place(common->row, op.col + first * op.col_step), pitch};
    if (!op.convert) {
      move(op, own, target, scratch);
    } else if (!move_and_convert(op, own, dtype, target, scratch)) {
      return false;
    }
  }
  return true;
}

namespace {

// Bytes that a worker takes at a time.
constexpr std::int64_t kSliceBytes = std::int64_t{4} << 20;

struct TensorSlice {
  std::size_t tensor = 0;
  std::int64_t row = 0, rows = 0;
};

std::vector<TensorSlice> cut(const PlannedFile& file) {
  std::vector<TensorSlice> slices;
  for (std::size_t t = 0; t < file.tensors.size(); ++t) {
    const PlannedTensor& tensor = file.tensors[t];
    const std::int64_t row_bytes = std::max<std::int64_t>(1, tensor.cols * element_size(tensor.dtype));
    const std::int64_t step = std::max<std::int64_t>(1, kSliceBytes / row_bytes);
    for (std::int64_t row = 0; row < tensor.rows; row += step) {
      slices.push_back({t, row, std::min(step, tensor.rows - row)});
    }
  }
  return slices;
}

}  // namespace

void render_into(const Plan& plan, std::size_t file, std::span<const std::span<std::byte>> destinations, int threads) {
  plan::check(plan);
  const PlannedFile& planned = plan.files[file];
  const std::vector<TensorSlice> slices = cut(planned);
  const int workers = thread_count(threads);
  struct Worker {
    Scratch scratch;
    TensorOps ops;
    std::size_t tensor = static_cast<std::size_t>(-1);
  };
  std::vector<Worker> state(static_cast<std::size_t>(workers));
  parallel_for(slices.size(), workers, [&](std::size_t index, int number) {
    const TensorSlice& slice = slices[index];
    const PlannedTensor& tensor = planned.tensors[slice.tensor];
    Worker& worker = state[static_cast<std::size_t>(number)];
    if (worker.tensor != slice.tensor) worker.ops = make_ops(plan, tensor, false), worker.tensor = slice.tensor;
    const std::int64_t row_bytes = tensor.cols * element_size(tensor.dtype);
    const std::span<std::byte> out = destinations[slice.tensor].subspan(
        static_cast<std::size_t>(slice.row * row_bytes), static_cast<std::size_t>(slice.rows * row_bytes));
    if (!render(worker.ops, tensor.dtype, {slice.row, slice.rows, 0, tensor.cols}, out.data(), worker.scratch)) {
      throw Error(ErrorCode::NUM_OVERFLOW, {.tensor = tensor.name, .problem = "a finite value does not fit the dtype"});
    }
    if (tensor.must_be_finite && !all_finite(out, tensor.dtype)) throw_nonfinite(plan, tensor);
  });
  for (const auto& source : plan.sources) source->check_unchanged();
}

}  // namespace peft::execution
