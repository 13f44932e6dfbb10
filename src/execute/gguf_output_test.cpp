// GGUF files, and outputs of one file.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "execute/run/unit_renderer.h"
#include "gguf/gguf_file.h"
#include "peft/error.h"
#include "peft/execute.h"
#include "safetensors/writing/new_file.h"
#include "support/test_tensors.h"

namespace peft::execution {
namespace {

namespace fs = std::filesystem;
using gguf::GgmlType;
using testing::random_dense;

class GgufOutput : public ::testing::Test {
 protected:
  GgufOutput() {
    std::string name = (fs::temp_directory_path() / "peft_gguf_XXXXXX").string();
    folder_ = mkdtemp(name.data());
    auto values = std::make_shared<gguf::TypedMetadata>();
    values->values = {{"general.type", gguf::text_value("adapter")}, {"adapter.lora.alpha", gguf::f32_value(5)}};
    plan_.files.push_back({.name = "adapter.gguf", .tensors = {}, .gguf = values});
    plan_.single_file = true;
    // Sizes that leave gaps of every kind between the tensors; a copy, a transposition, columns in turn, casts.
    const auto plain = tensors_.add("plain", Dtype::f32, random_dense(3, 7, 1));
    const auto turned = tensors_.add("turned", Dtype::bf16, random_dense(64, 37, 2));
    const auto stacked = tensors_.add("stacked", Dtype::f16, random_dense(5, 13 * 11, 3));
    add("a", Dtype::f32, {3, 7}, {{0, 0, 1, {0, plain, 0, 3, 7, 7, 1}, 1.0}});
    add("b", Dtype::bf16, {37, 64}, {{0, 0, 1, {0, turned, 0, 37, 64, 1, 37}, 1.0}});
    add("c", Dtype::f16, {1, 3}, {{0, 0, 1, {0, stacked, 0, 1, 3, 1, 1}, 1.0}});
    for (std::int64_t e = 0; e < 11; ++e)  // members of a column group
      add("m" + std::to_string(e), Dtype::f16, {5, 13}, {{0, 0, 1, {0, stacked, e, 5, 13, 13 * 11, 11}, 1.0}});
    add("d", Dtype::f32, {1, 1}, {{0, 0, 1, {0, plain, 4, 1, 1, 1, 1}, 3.0}});
    add("q", Dtype::f32, {37, 64}, {{0, 0, 1, {0, turned, 0, 37, 64, 1, 37}, 1.0}}, GgmlType::q8_0);
    add("e", Dtype::f32, {2, 32}, {}, GgmlType::q8_0);
    plan_.sources = {tensors_.file()};
  }
  ~GgufOutput() override { fs::remove_all(folder_); }

  void add(std::string name, Dtype dtype, std::vector<std::int64_t> shape, std::vector<Block> blocks,
           std::optional<GgmlType> packing = {}) {
    PlannedTensor tensor{.name = std::move(name), .dtype = dtype, .shape = shape, .blocks = std::move(blocks)};
    tensor.rows = shape[0], tensor.cols = shape[1];
    tensor.must_be_finite = true;
    tensor.packing = packing;
    plan_.files[0].tensors.push_back(std::move(tensor));
  }
  std::string out() const { return (folder_ / "adapter.gguf").string(); }
  static std::vector<std::byte> contents(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> chars{std::istreambuf_iterator<char>(file), {}};
    std::vector<std::byte> bytes(chars.size());
    if (!chars.empty()) std::memcpy(bytes.data(), chars.data(), chars.size());
    return bytes;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename().string());
    return names;
  }

  fs::path folder_;
  testing::Tensors tensors_;
  Plan plan_;
};

TEST_F(GgufOutput, IsOneFileWithTheBytesOfTheReference) {
  const auto expected = execute_in_memory(plan_).front();
  for (const int threads : {1, 3}) {
    ExecuteOptions options;
    options.threads = threads;
    options.overwrite = true;
    const ExecuteReport report = execute(plan_, out(), options);
    EXPECT_EQ(report.bytes_out, expected.size());
    ASSERT_EQ(contents(out()), expected) << threads;
    EXPECT_EQ(names(), std::vector<std::string>{"adapter.gguf"});
  }
  const auto file = gguf::GgufFile::open(out());
  EXPECT_EQ(file->tensors().size(), plan_.files[0].tensors.size());
  EXPECT_EQ(file->find("q")->dtype_name, "Q8_0");
}

// However small the units are: none begins or ends inside a block of a packed tensor, and gaps stay zero.
TEST_F(GgufOutput, AnyUnitsGiveTheSameBytes) {
  const auto expected = execute_in_memory(plan_).front();
  for (const CutSizes sizes :
       {CutSizes{1 << 16, 64, 16}, CutSizes{1 << 16, 1000, 16}, CutSizes{1 << 20, 1 << 12, 2048}}) {
    const FileWork work = make_work(plan_, plan_.files[0], sizes);
    std::vector<std::byte> made(expected.size());
    std::memcpy(made.data(), work.layout.head.data(), work.layout.head.size());
    MergeStores stores;
    UnitRenderer renderer(sizes.staging + (1 << 16), stores);
    for (const Unit& unit : work.units) {
      std::uint64_t covered = 0;
      for (const FileExtent& extent : renderer.make(work, unit)) {
        std::uint64_t at = work.layout.head.size() + extent.offset;
        for (const iovec& part : extent.parts) {
          std::memcpy(made.data() + at, part.iov_base, part.iov_len);
          at += part.iov_len, covered += part.iov_len;
        }
      }
      EXPECT_EQ(covered, bytes_of(work, unit)) << "what is hashed is what the file is read back as";
    }
    ASSERT_EQ(made, expected) << sizes.block;
  }
}

TEST_F(GgufOutput, ReplacesAFileOnlyWhenAsked) {
  std::ofstream(out()) << "old";
  const auto run = [&](bool overwrite) {
    ExecuteOptions options;
    options.overwrite = overwrite;
    execute(plan_, out(), options);
  };
  try {
    run(false);
    FAIL() << "an existing file was replaced";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::OUT_EXISTS);
  }
  EXPECT_EQ(contents(out()).size(), 3U);
  run(true);
  EXPECT_EQ(contents(out()), execute_in_memory(plan_).front());
  EXPECT_EQ(names(), std::vector<std::string>{"adapter.gguf"});
}

TEST_F(GgufOutput, NeverReplacesAFolder) {
  fs::create_directory(out());
  ExecuteOptions options;
  options.overwrite = true;
  try {
    execute(plan_, out(), options);
    FAIL() << "a folder was replaced";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::OUT_EXISTS);
  }
  EXPECT_TRUE(fs::is_directory(out()));
}

TEST_F(GgufOutput, LeavesNothingBehindAnError) {
  testing::Dense bad = random_dense(2, 32, 9);
  bad.at(1, 3) = std::numeric_limits<double>::infinity();
  testing::Tensors more;
  more.add("bad", Dtype::f32, bad);
  plan_.sources.push_back(more.file("bad.safetensors"));
  plan_.files[0].tensors.back().blocks = {{0, 0, 1, {1, 0, 0, 2, 32, 32, 1}, 1.0}};
  try {
    execute(plan_, out());
    FAIL() << "infinity was packed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::NUM_NONFINITE) << error.what();
  }
  EXPECT_TRUE(names().empty());
}

}  // namespace
}  // namespace peft::execution
