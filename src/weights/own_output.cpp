#include "weights/own_output.h"

#include <algorithm>
#include <vector>

#include "adapter/view_math.h"
#include "base/float_formats.h"

namespace peft::weights {
namespace {

using adapter::Matrix;

constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;

bool same_rows(const Matrix& x, const Matrix& y) {
  if (x.dtype == y.dtype) return adapter::equal(x, y);
  if (!is_plain_float(x.dtype) || !is_plain_float(y.dtype)) return false;
  std::vector<double> vx(static_cast<std::size_t>(x.rows * x.cols)), vy(vx.size());
  adapter::read(x, vx);
  adapter::read(y, vy);
  return vx == vy;
}

}  // namespace

bool has_own_output(const Model& model, const Checkpoint& checkpoint, const Weights& weights) {
  const auto& tree = model.v5 ? model.v5 : model.v4;
  if (!model.tie_word_embeddings || !tree || tree->output_embedding.empty() || tree->input_embedding.empty())
    return false;
  const auto output = weights.find(tree->output_embedding, "weight"),
             input = weights.find(tree->input_embedding, "weight");
  if (!output || !input) return false;
  if (output->out != input->out || output->in != input->in) return true;
  const WeightPart &of_x = output->parts.front(), &of_y = input->parts.front();
  if (of_x.scales || of_y.scales) return true;
  const TensorFile &file_x = *checkpoint.files()[of_x.view.source], &file_y = *checkpoint.files()[of_y.view.source];
  const Matrix x = adapter::bind(file_x, of_x.view), y = adapter::bind(file_y, of_y.view);
  const auto release = [](const TensorFile& file, const View& view, const Matrix& matrix, std::int64_t end) {
    const TensorInfo& tensor = file.tensors()[view.tensor];
    file.release(tensor.begin, tensor.begin + static_cast<std::uint64_t>(end * matrix.cols * matrix.width));
  };
  const std::int64_t piece = std::max<std::int64_t>(1, kPieceBytes / std::max<std::int64_t>(1, x.cols * 8));
  bool same = true;
  for (std::int64_t first = 0; first < x.rows && same; first += piece) {
    const std::int64_t count = std::min(piece, x.rows - first);
    same = same_rows(x.row_range(first, count), y.row_range(first, count));
    release(file_x, of_x.view, x, first + count);  // what was read does not stay in memory
    release(file_y, of_y.view, y, first + count);
  }
  return !same;
}

std::string own_output_text(const std::string& config) {
  return config +
         " says tie_word_embeddings = true, and the output embedding in the file has other values "
         "than the input embedding: both are used, as transformers 5 does (transformers 4 would tie them)";
}

}  // namespace peft::weights
