// Whole runs: from a file to a folder.
#include "peft/execute.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "peft/error.h"
#include "plan/check.h"
#include "plan/members.h"
#include "support/random_merge.h"
#include "support/random_plan.h"

namespace peft::execution {
namespace {

namespace fs = std::filesystem;

// A folder of its own for each test, with nothing else in it.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "peft_execute_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path_)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  // A file of the output while it is still staged.
  fs::path staged(const std::string& name) const {
    for (const auto& entry : fs::recursive_directory_iterator(path_)) {
      const bool partial = entry.path().string().find(".partial") != std::string::npos;
      if (partial && entry.path().filename().string().starts_with(name)) return entry.path();
    }
    return {};
  }

 private:
  fs::path path_;
};

std::vector<std::byte> contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> chars{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::byte> bytes(chars.size());
  if (!chars.empty()) std::memcpy(bytes.data(), chars.data(), chars.size());
  return bytes;
}

void write(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

// The plan with its source in a real file.
Plan on_disk(PlanBuilder& builder, const Folder& folder) {
  Plan plan = builder.make();
  write(folder / "source.safetensors", builder.image());
  plan.sources[0] = TensorFile::open(folder / "source.safetensors");
  return plan;
}

// Something of every kind: copies, a fused tensor, a column group, zeros.
void add_everything(PlanBuilder& builder, std::int64_t size) {
  for (int shape = 0; shape < num_shapes(); ++shape)
    add_shape(builder, shape, fmt::format("layer.{}", shape), size, {});
}

constexpr auto kFile = "adapter_model.safetensors";
const ExecuteOptions kFast{.threads = 2, .sync = false};

RC_GTEST_PROP(Execute, WritesTheSameBytesOnAnyNumberOfThreads, ()) {
  PlanBuilder builder(*rc::gen::arbitrary<std::uint32_t>());
  const int shapes = *rc::gen::inRange(1, 4);
  for (int i = 0; i < shapes; ++i) {
    add_shape(builder, *rc::gen::inRange(0, num_shapes()), fmt::format("layer.{}", i), 40, {});
  }
  const Folder folder;
  const Plan plan = on_disk(builder, folder);
  const std::vector<std::byte> expected = execute_in_memory(plan)[0];
  for (const int threads : {1, 2, 3, 7}) {
    const std::string out = folder / fmt::format("out{}", threads);
    const ExecuteReport report = execute(plan, out, {.threads = threads, .sync = false});
    const bool same = contents(out + "/" + kFile) == expected;
    RC_ASSERT(same);
    RC_ASSERT(report.bytes_out == expected.size());
    std::vector<std::byte> data(layout_file(plan.files[0]).data_bytes);
    execute_into(data, plan, 0, {.threads = threads});
    const bool same_in_memory = std::equal(data.begin(), data.end(), expected.end() - std::ssize(data));
    RC_ASSERT(same_in_memory);
  }
}

TEST(ExecuteInto, ReadsTensorsThatLieFarApart) {
  PlanBuilder builder(9);
  add_everything(builder, 30);
  Plan plan = builder.make();
  const std::vector<std::byte> expected = execute_in_memory(plan)[0];
  std::vector<std::vector<std::byte>> homes;
  std::vector<TensorInMemory> tensors;
  const std::shared_ptr<const TensorFile> source = plan.sources[0];
  for (const TensorInfo& tensor : source->tensors()) {
    homes.emplace_back(source->bytes(tensor).begin(), source->bytes(tensor).end()).resize(tensor.bytes() + (1 << 20));
    tensors.push_back(
        {std::string(tensor.name), tensor.dtype, {tensor.shape.begin(), tensor.shape.end()}, homes.back().data()});
  }
  plan.sources[0] = TensorFile::of(tensors, "tensors");
  // They are listed by address now.
  std::vector<std::uint32_t> moved;
  for (const TensorInfo& tensor : source->tensors()) {
    moved.push_back(static_cast<std::uint32_t>(plan.sources[0]->find(tensor.name) - plan.sources[0]->tensors().data()));
  }
  for (PlannedTensor& tensor : plan.files[0].tensors)
    for_each_source(tensor, [&](View& view) { view.tensor = moved[view.tensor]; });
  std::vector<std::byte> data(layout_file(plan.files[0]).data_bytes);
  execute_into(data, plan, 0, {.threads = 2});
  EXPECT_TRUE(std::equal(data.begin(), data.end(), expected.end() - std::ssize(data)));
}

TEST(ExecuteInto, TakesMemoryOfTheRightSizeAndCanBeCancelled) {
  PlanBuilder builder(8);
  add_everything(builder, 30);
  const Folder folder;
  const Plan plan = on_disk(builder, folder);
  std::vector<std::byte> data(layout_file(plan.files[0]).data_bytes);
  EXPECT_THROW(execute_into(std::span(data).first(data.size() - 1), plan, 0), Error);
  const std::atomic<bool> cancel = true;
  EXPECT_THROW(execute_into(data, plan, 0, {.cancel = &cancel}), Error);
}

TEST(Execute, WritesTextsAndSideFilesAndSyncs) {
  PlanBuilder builder(5);
  add_everything(builder, 30);
  const Folder folder;
  Plan plan = on_disk(builder, folder);
  write(folder / "README.md", std::as_bytes(std::span("about", 5)));
  plan.texts.emplace_back("adapter_config.json", "{}");
  plan.copies.emplace_back("README.md", folder / "README.md");
  std::uint64_t last = 0, total = 0;
  execute(plan, folder / "out", {.threads = 1, .progress = [&](std::uint64_t done, std::uint64_t all) {
                                   EXPECT_GT(done, last);
                                   last = done;
                                   total = all;
                                 }});
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, execute_in_memory(plan)[0].size());
  EXPECT_EQ(contents(folder / "out/adapter_model.safetensors"), execute_in_memory(plan)[0]);
  EXPECT_EQ(contents(folder / "out/adapter_config.json").size(), 2u);
  EXPECT_EQ(contents(folder / "out/README.md").size(), 5u);
}

// Runs a plan that must fail with `code`, and leave nothing but the source. Returns the error's tensor.
std::string fails_with(ErrorCode code, const Folder& folder, const Plan& plan, const ExecuteOptions& options) {
  try {
    execute(plan, folder / "out", options);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_EQ(folder.names(), std::vector<std::string>{"source.safetensors"});
    return error.detail().tensor;
  }
  return {};
}

TEST(Execute, NoticesWhenTheFileDoesNotReadBack) {
  PlanBuilder builder(6);
  add_everything(builder, 30);
  const Folder folder;
  const Plan plan = on_disk(builder, folder);
  execute(plan, folder / "good", kFast);
  const auto good = TensorFile::open(folder / "good/adapter_model.safetensors");
  for (const TensorInfo& tensor : good->tensors()) {
    if (tensor.bytes() == 0) continue;
    const std::uint64_t at = good->data_offset() + tensor.begin + tensor.bytes() / 2;
    std::atomic<bool> spoiled = false;
    ExecuteOptions options{.threads = 1, .sync = false};
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      if (done != total) return;
      std::fstream file(folder.staged(kFile), std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(static_cast<std::streamoff>(at));
      const char byte = static_cast<char>(file.get());
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(byte ^ 1));
      spoiled = true;
    };
    try {
      execute(plan, folder / "out", options);
      ADD_FAILURE() << tensor.name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::OUT_READBACK) << error.what();
      EXPECT_EQ(error.detail().tensor, tensor.name);
    }
    EXPECT_TRUE(spoiled);
    EXPECT_FALSE(fs::exists(folder / "out"));
  }
}

TEST(Execute, StopsWhenCancelled) {
  PlanBuilder builder(7);
  add_everything(builder, 30);
  const Folder folder;
  const Plan plan = on_disk(builder, folder);
  std::atomic<bool> cancel = false;
  ExecuteOptions options = kFast;
  options.cancel = &cancel;
  options.progress = [&](std::uint64_t, std::uint64_t) { cancel = true; };
  fails_with(ErrorCode::INTERRUPTED, folder, plan, options);
}

// Changes the source once the output has been begun.
void expect_change_noticed(const std::function<void(const std::string& source)>& change, bool readback) {
  PlanBuilder builder(8);
  if (readback) add_everything(builder, 60);  // else only what the kernel reads
  builder.output("large", Dtype::bf16, 512, 1024).blocks = {{0, 0, 1, builder.source(Dtype::bf16, 512, 1024, true), 1}};
  const Folder folder;
  const Plan plan = on_disk(builder, folder);
  std::atomic<bool> begun = false;
  ExecuteOptions options{.threads = 2, .sync = false, .readback = readback};
  options.progress = [&](std::uint64_t, std::uint64_t) {
    if (!begun.exchange(true)) change(folder / "source.safetensors");
  };
  fails_with(ErrorCode::IO_CHANGED, folder, plan, options);
}

TEST(Execute, NoticesThatASourceGrew) {
  expect_change_noticed([](const std::string& path) { std::ofstream(path, std::ios::binary | std::ios::app).put('x'); },
                        true);
}

TEST(Execute, NoticesThatASourceWasCutShort) {
  const auto cut = [](const std::string& path) { fs::resize_file(path, 4096); };
  expect_change_noticed(cut, true);
  expect_change_noticed(cut, false);  // here the kernel is the first to find the bytes missing
}

TEST(Execute, LeavesNothingAfterAnOverflow) {
  PlanBuilder builder(9);
  const View source = builder.source(Dtype::f32, 300, 300, false);
  for (int i = 0; i < 20; ++i) {
    builder.output(fmt::format("t{:02}", i), Dtype::f16, 300, 300).blocks = {{0, 0, 1, source, i == 13 ? 1e9 : 1}};
  }
  const Folder folder;
  const Plan plan = on_disk(builder, folder);
  EXPECT_EQ(fails_with(ErrorCode::NUM_OVERFLOW, folder, plan, kFast), "t13");
}

TEST(Execute, RefusesAPlanThatReadsOutsideItsSource) {
  PlanBuilder builder(10);
  View view = builder.source(Dtype::bf16, 4, 4, true);
  view.offset = 1;
  builder.output("t", Dtype::bf16, 4, 4).blocks = {{0, 0, 1, view, 1}};
  const Folder folder;
  const Plan plan = on_disk(builder, folder);
  EXPECT_EQ(fails_with(ErrorCode::INTERNAL, folder, plan, kFast), "t");
  EXPECT_THROW(execute_in_memory(plan), Error);
}

// What a worker keeps of the tensor it rendered last must not be used for the same tensor of the next file.
TEST(Execute, WritesSeveralFilesWithTensorsInTheSamePlaces) {
  PlanBuilder builder(13);
  std::vector<View> sources;
  for (int i = 0; i < 3; ++i) sources.push_back(builder.source(Dtype::bf16, 20, 30, false));
  builder.output("t", Dtype::f32, 20, 30).blocks = {{0, 0, 1, sources[0], 0.5}};
  const Folder folder;
  Plan plan = on_disk(builder, folder);
  for (std::size_t i = 1; i < sources.size(); ++i) {
    plan.files.push_back(plan.files[0]);
    plan.files[i].name = fmt::format("{}.safetensors", i);
    plan.files[i].tensors[0].blocks[0].source = sources[i];
  }
  const auto expected = execute_in_memory(plan);
  execute(plan, folder / "out", {.threads = 1, .sync = false});
  for (std::size_t i = 0; i < sources.size(); ++i)
    EXPECT_EQ(contents(folder / ("out/" + plan.files[i].name)), expected[i]) << i;
}

// The element-by-element form is what everything else is compared with, so it is compared with numbers written down.
TEST(ExecuteInMemory, FusesExpertsAsMembersOfABlock) {
  PlanBuilder builder(11);
  const View a = builder.source(Dtype::u16, 2, 2, true), b = builder.source(Dtype::u16, 2, 2, true);
  PlannedTensor& fused = builder.output("fused", Dtype::u16, 2, 6);
  plan::append_members(fused.blocks, {.col_step = 3, .col_shift = 1},
                       std::vector<plan::MemberView>{{a, 1, Dtype::u16}, {}, {b, 1, Dtype::u16}});
  const Plan plan = builder.make();
  std::uint16_t in[8], out[12];
  const auto& source = *plan.sources[0];
  std::memcpy(in, source.bytes(source.tensors()[0]).data(), sizeof in);
  const std::vector<std::byte> image = execute_in_memory(plan)[0];
  std::memcpy(out, image.data() + image.size() - sizeof out, sizeof out);
  const std::uint16_t expected[12] = {in[0], 0, in[4], in[1], 0, in[5], in[2], 0, in[6], in[3], 0, in[7]};
  EXPECT_EQ(std::memcmp(out, expected, sizeof out), 0);
}

TEST(ExecuteInMemory, FusesTwoExperts) {
  PlanBuilder builder(11);
  const View a = builder.source(Dtype::u16, 2, 2, true), b = builder.source(Dtype::u16, 2, 2, true);
  PlannedTensor& fused = builder.output("fused", Dtype::u16, 2, 4);
  fused.blocks = {{0, 0, 2, a, 1}, {0, 1, 2, b, 1}};
  const Plan plan = builder.make();
  std::uint16_t in[8], out[8];
  const auto& source = *plan.sources[0];
  std::memcpy(in, source.bytes(source.tensors()[0]).data(), sizeof in);
  const std::vector<std::byte> image = execute_in_memory(plan)[0];
  std::memcpy(out, image.data() + image.size() - sizeof out, sizeof out);
  const std::uint16_t expected[8] = {in[0], in[4], in[1], in[5], in[2], in[6], in[3], in[7]};
  EXPECT_EQ(std::memcmp(out, expected, sizeof out), 0);
}

TEST(ExecuteInMemory, ScalesRoundsAndFillsWithZeros) {
  PlanBuilder builder(12);
  const View source = builder.source(Dtype::bf16, 1, 1, false);
  builder.output("t", Dtype::f32, 1, 3).blocks = {{0, 1, 1, source, 0.1}};
  const Plan plan = builder.make();
  std::uint16_t in = 0;
  std::memcpy(&in, plan.sources[0]->bytes(plan.sources[0]->tensors()[0]).data(), sizeof in);
  const std::uint32_t bits = static_cast<std::uint32_t>(in) << 16;
  float value = 0, out[3] = {9, 9, 9};
  std::memcpy(&value, &bits, sizeof value);
  const std::vector<std::byte> image = execute_in_memory(plan)[0];
  std::memcpy(out, image.data() + image.size() - sizeof out, sizeof out);
  EXPECT_EQ(out[0], 0.0F);
  EXPECT_EQ(out[1], static_cast<float>(static_cast<double>(value) * 0.1));
  EXPECT_EQ(out[2], 0.0F);
}

// The plans that the tests of this stage draw are valid.
TEST(RandomPlan, EveryShapeMakesAValidPlan) {
  for (int shape = 0; shape < num_shapes(); ++shape) {
    for (std::uint32_t seed = 0; seed < 20; ++seed) {
      PlanBuilder builder(seed);
      add_shape(builder, shape, "x", 20, {});
      const Plan plan = builder.make();
      EXPECT_NO_THROW(plan::check(plan)) << "shape " << shape << " seed " << seed;
    }
  }
}

TEST(RandomMerge, EveryShapeMakesAValidPlan) {
  for (int shape = 0; shape < num_merge_shapes(); ++shape) {
    for (std::uint32_t seed = 0; seed < 20; ++seed) {
      PlanBuilder builder(seed);
      add_merge(builder, shape, "x", 20, {.adapters = 2});
      const Plan plan = builder.make();
      EXPECT_NO_THROW(plan::check(plan)) << "shape " << shape << " seed " << seed;
    }
  }
}

}  // namespace
}  // namespace peft::execution
