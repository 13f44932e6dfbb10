#include "nn/lora/files/file_tensors.h"

#include <ATen/ATen.h>

#include <array>
#include <cstring>

#include "adapter/view_math.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

struct Row {
  Dtype file;
  at::ScalarType torch;
};
constexpr std::array kTypes = {
    Row{Dtype::f64, at::kDouble},
    Row{Dtype::f32, at::kFloat},
    Row{Dtype::bf16, at::kBFloat16},
    Row{Dtype::f16, at::kHalf},
    Row{Dtype::f8_e4m3, at::kFloat8_e4m3fn},
    Row{Dtype::f8_e5m2, at::kFloat8_e5m2},
    Row{Dtype::f8_e4m3fnuz, at::kFloat8_e4m3fnuz},
    Row{Dtype::f8_e5m2fnuz, at::kFloat8_e5m2fnuz},
    Row{Dtype::i64, at::kLong},
    Row{Dtype::i32, at::kInt},
    Row{Dtype::i16, at::kShort},
    Row{Dtype::i8, at::kChar},
    Row{Dtype::u8, at::kByte},
    Row{Dtype::boolean, at::kBool},
};

}  // namespace

at::ScalarType scalar_type(Dtype dtype, const TensorFile& file, std::string_view tensor) {
  for (const Row& row : kTypes) {
    if (row.file == dtype) return row.torch;
  }
  peft::at(file.path(), std::string(tensor))
      .fail(ErrorCode::ST_DTYPE, {.problem = "this dtype cannot be computed with",
                                  .expected = "F64, F32, BF16, F16 or an 8-bit float",
                                  .got = std::string(info(dtype).name)});
}

Dtype file_dtype(at::ScalarType type) {
  for (const Row& row : kTypes) {
    if (row.torch == type) return row.file;
  }
  throw Error(ErrorCode::ST_DTYPE,
              {.problem = "a tensor's dtype has no name in a safetensors file", .got = c10::toString(type)});
}

at::Tensor read_view(const TensorFile& file, const View& view, at::ScalarType type) {
  const TensorInfo& info = file.tensors()[view.tensor];
  const adapter::Matrix matrix = adapter::bind(file, view);
  const auto from = scalar_type(info.dtype, file, info.name);
  // from_blob takes a mutable address; nothing writes to it.
  auto* data = const_cast<std::byte*>(matrix.data);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  const at::Tensor source = at::from_blob(data, {matrix.rows, matrix.cols}, {matrix.row_stride, matrix.col_stride},
                                          at::TensorOptions().dtype(from));
  at::Tensor copy = at::empty({matrix.rows, matrix.cols}, at::TensorOptions().dtype(type));
  copy.copy_(source);
  return copy;
}

at::Tensor read_tensor(const TensorFile& file, std::uint32_t tensor) {
  const TensorInfo& info = file.tensors()[tensor];
  const auto type = scalar_type(info.dtype, file, info.name);
  if (at::isFloatingType(type)) adapter::require_finite(file, info);
  const std::vector<std::int64_t> shape(info.shape.begin(), info.shape.end());
  at::Tensor copy = at::empty(shape, at::TensorOptions().dtype(type));
  const auto bytes = file.bytes(info);
  std::memcpy(copy.mutable_data_ptr(), bytes.data(), bytes.size());
  return copy;
}

NamedTensors on_host(const NamedTensors& tensors) {
  NamedTensors result;
  result.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) result.emplace_back(name, tensor.detach().cpu().contiguous());
  return result;
}

std::vector<NewTensor> described(const NamedTensors& tensors) {
  std::vector<NewTensor> result;
  for (const auto& [name, tensor] : tensors) {
    result.push_back({name, file_dtype(tensor.scalar_type()), tensor.sizes().vec()});
  }
  return result;
}

std::uint32_t MemoryFile::index(const std::string& name) const {
  return static_cast<std::uint32_t>(file->find(name) - file->tensors().data());
}

std::unique_ptr<MemoryFile> memory_file(const NamedTensors& given) {
  const NamedTensors tensors = on_host(given);
  const FileLayout layout = layout_file(described(tensors));
  auto made = std::make_unique<MemoryFile>();
  made->image.resize(layout.file_bytes());
  std::memcpy(made->image.data(), layout.head.data(), layout.head.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i].second;
    if (tensor.nbytes() == 0) continue;
    std::memcpy(made->image.data() + layout.head.size() + layout.begin[i], tensor.const_data_ptr(), tensor.nbytes());
  }
  made->file = TensorFile::parse(made->image, "an adapter in memory");
  return made;
}

}  // namespace peft::nn
