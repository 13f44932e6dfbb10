#include "execute/render_into.h"

#include <algorithm>
#include <vector>

#include "base/system.h"
#include "execute/finite.h"
#include "execute/render.h"
#include "peft/error.h"
#include "plan/check.h"

namespace peft::execution {
namespace {

// Bytes that a worker takes at a time.
constexpr std::int64_t kPiece = std::int64_t{4} << 20;

struct Piece {
  std::size_t tensor = 0;
  std::int64_t row = 0, rows = 0;
};

std::vector<Piece> cut(const PlannedFile& file) {
  std::vector<Piece> pieces;
  for (std::size_t t = 0; t < file.tensors.size(); ++t) {
    const PlannedTensor& tensor = file.tensors[t];
    const std::int64_t row_bytes = std::max<std::int64_t>(1, tensor.cols * element_size(tensor.dtype));
    const std::int64_t step = std::max<std::int64_t>(1, kPiece / row_bytes);
    for (std::int64_t row = 0; row < tensor.rows; row += step) {
      pieces.push_back({t, row, std::min(step, tensor.rows - row)});
    }
  }
  return pieces;
}

}  // namespace

void render_into(const Plan& plan, std::size_t file, std::span<const std::span<std::byte>> destinations, int threads) {
  plan::check(plan);
  const PlannedFile& planned = plan.files[file];
  const std::vector<Piece> pieces = cut(planned);
  const int workers = thread_count(threads);
  struct Worker {
    Scratch scratch;
    TensorOps ops;
    std::size_t tensor = static_cast<std::size_t>(-1);
  };
  std::vector<Worker> state(static_cast<std::size_t>(workers));
  parallel_for(pieces.size(), workers, [&](std::size_t index, int number) {
    const Piece& piece = pieces[index];
    const PlannedTensor& tensor = planned.tensors[piece.tensor];
    Worker& worker = state[static_cast<std::size_t>(number)];
    if (worker.tensor != piece.tensor) worker.ops = make_ops(plan, tensor, false), worker.tensor = piece.tensor;
    const std::int64_t row_bytes = tensor.cols * element_size(tensor.dtype);
    const std::span<std::byte> out = destinations[piece.tensor].subspan(
        static_cast<std::size_t>(piece.row * row_bytes), static_cast<std::size_t>(piece.rows * row_bytes));
    if (!render(worker.ops, tensor.dtype, {piece.row, piece.rows, 0, tensor.cols}, out.data(), worker.scratch)) {
      throw Error(ErrorCode::NUM_OVERFLOW, {.tensor = tensor.name, .problem = "a finite value does not fit the dtype"});
    }
    if (tensor.must_be_finite && !all_finite(out, tensor.dtype)) blame_nonfinite(plan, tensor);
  });
  for (const auto& source : plan.sources) source->check_unchanged();
}

}  // namespace peft::execution
