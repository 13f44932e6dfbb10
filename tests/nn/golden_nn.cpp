#include "nn/golden_nn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "peft/safetensors.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"
#include "support/golden_root.h"

namespace peft::nn::testing {
namespace {

namespace fs = std::filesystem;

at::ScalarType torch_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return at::kFloat;
    case Dtype::f64:
      return at::kDouble;
    case Dtype::bf16:
      return at::kBFloat16;
    case Dtype::f16:
      return at::kHalf;
    case Dtype::i64:
      return at::kLong;
    default:
      throw std::runtime_error("a dtype that golden files do not have");
  }
}

// Asked for a device that is not there, no test runs: ctest knows the line (cmake/torch.cmake).
class NeedsItsDevice : public ::testing::Environment {
 public:
  void SetUp() override {
    if (device() != "cpu" && !at::hasCUDA()) GTEST_SKIP() << "no GPU here";
  }
};
[[maybe_unused]] const auto* const needs_its_device = ::testing::AddGlobalTestEnvironment(new NeedsItsDevice);

}  // namespace

std::string device() {
  const char* name = std::getenv("PEFT_TEST_DEVICE");
  return name == nullptr ? "cpu" : name;
}

std::shared_ptr<CausalLM> load(const fs::path& model, at::ScalarType dtype) {
  return load_model(model.string(), {.dtype = dtype, .device = device()});
}

std::shared_ptr<CausalLM> load_golden(const std::string& model, at::ScalarType dtype) {
  return load(golden_root() / "models" / model, dtype);
}

fs::path golden_root() { return test::golden_root(); }

bool has_model(const std::string& name) { return fs::exists(golden_root() / "models" / name); }

std::vector<std::string> cases(const std::string& group) {
  std::vector<std::string> names;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(golden_root() / group, status)) {
    if (fs::exists(entry.path() / "case.json")) names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

Json case_json(const std::string& group, const std::string& name) {
  return Json::parse(safetensors::read_text_file((golden_root() / group / name / "case.json").string()));
}

Tensors read_tensors(const fs::path& path) {
  const auto file = TensorFile::open(path.string());
  Tensors tensors;
  for (const TensorInfo& info : file->tensors()) {
    const std::vector<std::int64_t> shape(info.shape.begin(), info.shape.end());
    at::Tensor tensor = at::empty(shape, torch_dtype(info.dtype));
    const auto bytes = file->bytes(info);
    std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(tensor.mutable_data_ptr()));
    tensors.emplace(info.name, tensor.to(device()));
  }
  return tensors;
}

at::Tensor ids_tensor(const Json& rows) {
  const auto numbers = rows.get<std::vector<std::vector<std::int64_t>>>();
  at::Tensor ids =
      at::empty({static_cast<std::int64_t>(numbers.size()), static_cast<std::int64_t>(numbers[0].size())}, at::kLong);
  std::int64_t* to = ids.mutable_data_ptr<std::int64_t>();
  for (const auto& row : numbers) to = std::copy(row.begin(), row.end(), to);
  return ids;
}

at::Tensor masked(const std::string& name, const at::Tensor& value, const at::Tensor& mask) {
  const auto ends = [&name](const char* suffix) { return name.ends_with(suffix); };
  at::Tensor v = value;
  const bool heads_first =
      ends("attn.q") || ends("attn.k") || ends("attn.v") || ends("attn.probs") || ends("lin.conv_out");
  if (heads_first) v = v.transpose(1, 2);
  if (name.starts_with("rope.")) return v;
  v = v.to(v.scalar_type() == at::kLong ? at::kLong : at::kFloat).reshape({mask.size(0), mask.size(1), -1});
  return v.index({mask.to(at::kBool)});
}

double allowed(double tolerance) { return device() == "cpu" ? tolerance : 2 * tolerance; }

double max_difference(const at::Tensor& got, const at::Tensor& expected) {
  const auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); };
  return (wide(got) - wide(expected)).abs().max().item<double>();
}

double peak(const at::Tensor& expected) { return expected.to(at::kDouble).abs().max().item<double>(); }

}  // namespace peft::nn::testing
