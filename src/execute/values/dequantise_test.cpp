// Quantised tensors against what transformers makes of them (golden/quant), and against the formula, cut anywhere.
#include "execute/values/dequantise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "base/float_formats.h"
#include "execute/values/element.h"
#include "peft/execute.h"
#include "plan/check.h"
#include "support/random_plan.h"
#include "test_paths.h"

namespace peft::execution {
namespace {

namespace fs = std::filesystem;

fs::path golden() {
  if (const char* root = std::getenv("PEFT_GOLDEN")) return fs::path(root) / "quant";
  for (const char* root : {"../shared/golden", "tests/golden"}) {
    const fs::path path = fs::path(PEFT_SOURCE_DIR) / root / "quant";
    if (fs::is_directory(path)) return path;
  }
  return {};
}

std::uint32_t index_of(const TensorFile& file, const std::string& name) {
  return static_cast<std::uint32_t>(file.find(name) - file.tensors().data());
}

View matrix(std::uint32_t tensor, std::int64_t rows, std::int64_t cols) { return {0, tensor, 0, rows, cols, cols, 1}; }

// [E, rows, groups, 16] to [E, 32 * groups, rows].
PlannedTensor from_mxfp4(const TensorFile& file, const TensorInfo& want) {
  const std::string name(want.name);
  const TensorInfo& blocks = *file.find(name + "_blocks");
  const std::int64_t experts = blocks.shape[0], rows = blocks.shape[1], groups = blocks.shape[2], width = 32 * groups;
  PlannedTensor tensor{name, want.dtype, {experts, width, rows}, experts * width, rows};
  const Scales scales{Scales::Kind::mxfp4, matrix(index_of(file, name + "_scales"), experts * rows, groups), width, 1,
                      32};
  for (std::int64_t e = 0; e < experts; ++e) {
    const View codes{0, index_of(file, name + "_blocks"), e * rows * width, width, rows, 1, width};
    tensor.blocks.push_back({e * width, 0, 1, codes, 1, scales});
  }
  return tensor;
}

PlannedTensor from_fp8(const TensorFile& file, const TensorInfo& want) {
  const std::string name(want.name);
  const TensorInfo& grid = *file.find(name + "_scale_inv");
  const std::int64_t rows = want.shape[0], cols = want.shape[1];
  PlannedTensor tensor{name, want.dtype, {rows, cols}, rows, cols};
  const Scales scales{Scales::Kind::fp8, matrix(index_of(file, name + "_scale_inv"), grid.shape[0], grid.shape[1]),
                      cols, rows / grid.shape[0], cols / grid.shape[1]};
  tensor.blocks.push_back({0, 0, 1, matrix(index_of(file, name), rows, cols), 1, scales});
  return tensor;
}

TEST(Dequantise, MakesWhatTransformersMakes) {
  if (golden().empty()) GTEST_SKIP() << "no golden/quant";
  int cases = 0;
  for (const auto& entry : fs::directory_iterator(golden())) {
    if (!entry.is_directory()) continue;
    const auto source = TensorFile::open((entry.path() / "model.safetensors").string());
    const auto expected = TensorFile::open((entry.path() / "expected" / "dequantized.safetensors").string());
    Plan plan;
    plan.sources = {source};
    plan.files.emplace_back();
    for (const TensorInfo& want : expected->tensors()) {
      const bool packed = source->find(std::string(want.name) + "_blocks") != nullptr;
      plan.files[0].tensors.push_back(packed ? from_mxfp4(*source, want) : from_fp8(*source, want));
    }
    const std::string out = testing::TempDir() + "dequantised";
    fs::remove_all(out);
    plan.files[0].name = "model.safetensors";
    execute(plan, out, {.threads = 2, .sync = false});
    const auto got = TensorFile::open(out + "/model.safetensors");
    for (const TensorInfo& want : expected->tensors()) {
      const auto right = expected->bytes(want), made = got->bytes(*got->find(want.name));
      ASSERT_EQ(right.size(), made.size());
      EXPECT_EQ(std::memcmp(right.data(), made.data(), right.size()), 0) << entry.path() << " " << want.name;
    }
    const auto images = execute_in_memory(plan);
    const auto file = TensorFile::parse(images[0], "memory");
    for (const TensorInfo& want : expected->tensors()) {
      const auto right = expected->bytes(want), made = file->bytes(*file->find(want.name));
      EXPECT_EQ(std::memcmp(right.data(), made.data(), right.size()), 0) << "in memory: " << entry.path();
    }
    fs::remove_all(out);
    ++cases;
  }
  EXPECT_GE(cases, 4);
}

// The rule in other words: code (i, j) of a matrix, times the scale of its cell.
TEST(Dequantise, ReadsAnyViewOfAnyGrid) {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    PlanBuilder b(seed);
    const std::int64_t rows = b.pick(1, 40), width = b.pick(1, 90), cell_rows = b.pick(1, 9), cell_cols = b.pick(1, 40);
    const View codes = b.normal(Dtype::f8_e4m3, rows, width, 20);
    const View grid =
        b.normal(Dtype::f32, (rows + cell_rows - 1) / cell_rows, (width + cell_cols - 1) / cell_cols, 0.1);
    View part = codes.row_range(b.pick(0, rows - 1), 1).col_range(0, width);
    part = {0, codes.tensor, 0, rows, width, width, 1};
    if (b.chance(50)) part = part.transposed();
    if (b.chance(50))
      part = part.row_range(part.rows / 2, part.rows - part.rows / 2).col_range(0, (part.cols + 1) / 2, 1);
    PlannedTensor& tensor = b.output("w", Dtype::f32, part.rows, part.cols);
    tensor.blocks = {{0, 0, 1, part, 1, Scales{Scales::Kind::fp8, grid, width, cell_rows, cell_cols}}};
    const Plan plan = b.make();
    plan::check(plan);
    const TensorFile& file = *plan.sources[0];
    const auto image = execute_in_memory(plan)[0];
    const Codes ready = codes_of(plan, plan.files[0].tensors[0].blocks[0]);
    std::vector<float> fast(static_cast<std::size_t>(part.rows * part.cols));
    dequantise(ready, 0, part.rows, 0, part.cols, fast.data(), part.cols);
    for (std::int64_t i = 0; i < part.rows; ++i) {
      for (std::int64_t j = 0; j < part.cols; ++j) {
        const std::int64_t n = part.offset + i * part.row_stride + j * part.col_stride;
        const std::int64_t cell = n / width / cell_rows * grid.cols + n % width / cell_cols;
        const auto code =
            static_cast<float>(load_element(Dtype::f8_e4m3, file.bytes(file.tensors()[codes.tensor]).data() + n));
        const auto scale =
            static_cast<float>(load_element(Dtype::f32, file.bytes(file.tensors()[grid.tensor]).data() + 4 * cell));
        const float want = code * scale;
        ASSERT_EQ(fast[static_cast<std::size_t>(i * part.cols + j)], want) << "seed " << seed;
        float slow;
        std::memcpy(&slow,
                    image.data() + image.size() - fast.size() * 4 + static_cast<std::size_t>(i * part.cols + j) * 4, 4);
        ASSERT_EQ(slow, want) << "seed " << seed;
      }
    }
  }
}

}  // namespace
}  // namespace peft::execution
