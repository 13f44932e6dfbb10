// All units of a plan, made by the fast path, against the element-by-element form.
#include "execute/run/unit_renderer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <set>

#include "peft/error.h"
#include "peft/execute.h"
#include "plan/members.h"
#include "support/random_plan.h"

namespace peft::execution {
namespace {

constexpr std::byte kUnwritten{0xEE};

// The file's image; fails if a byte is written twice, or never.
std::vector<std::byte> image_of(const FileWork& work, bool& once) {
  std::vector<std::byte> image(work.layout.file_bytes(), kUnwritten);
  std::vector<int> writes(image.size(), 0);
  std::memcpy(image.data(), work.layout.head.data(), work.layout.head.size());
  MergeStores stores;
  UnitRenderer renderer(work.sizes.staging, stores);
  for (const Unit& unit : work.units) {
    std::uint64_t bytes = 0;
    for (const FileExtent& extent : renderer.make(work, unit)) {
      std::uint64_t at = work.layout.head.size() + extent.offset;
      for (const iovec& part : extent.parts) {
        std::memcpy(image.data() + at, part.iov_base, part.iov_len);
        for (std::size_t i = 0; i < part.iov_len; ++i) ++writes[at + i];
        at += part.iov_len;
        bytes += part.iov_len;
      }
    }
    once = once && bytes == bytes_of(work, unit);
  }
  for (std::size_t i = work.layout.head.size(); i < writes.size(); ++i) once = once && writes[i] == 1;
  return image;
}

constexpr Change kChanges[] = {
    {},
    {Dtype::f32, Dtype::f32},
    {Dtype::i64, Dtype::i64},
    {Dtype::u8, Dtype::u8},
    {Dtype::bf16, Dtype::f32},
    {Dtype::f32, Dtype::bf16},
    {Dtype::f32, Dtype::f16, 0.3},
    {Dtype::bf16, Dtype::bf16, 1.5},
    {Dtype::f16, Dtype::f64, -2},
    {Dtype::f64, Dtype::f8_e5m2, 0.125},
};

// Sizes that cut small tensors everywhere; staging must hold one member's cache line.
CutSizes small_cuts(PlanBuilder& b) {
  return {static_cast<std::uint64_t>(b.pick(400'000, 600'000)), static_cast<std::uint64_t>(b.pick(1, 4000)),
          static_cast<std::uint64_t>(b.pick(1, 200))};
}

RC_GTEST_PROP(UnitRenderer, MakesWhatTheElementwiseFormMakes, ()) {
  PlanBuilder builder(*rc::gen::arbitrary<std::uint32_t>());
  const bool odd = *rc::gen::arbitrary<bool>();
  if (odd) builder.source(Dtype::u8, 1, builder.pick(1, 15), true);
  const auto size = *rc::gen::element<std::int64_t>(3, 20, 70);
  const int shapes = *rc::gen::inRange(1, 4);
  for (int i = 0; i < shapes; ++i) {
    const int shape = *rc::gen::inRange(0, num_shapes());
    const auto change = *rc::gen::inRange<std::size_t>(0, std::size(kChanges));
    add_shape(builder, shape, fmt::format("layer.{}", i), size, kChanges[change]);
  }
  const Plan plan = builder.make();
  const CutSizes sizes = *rc::gen::arbitrary<bool>() ? small_cuts(builder) : CutSizes{};
  const FileWork work = make_work(plan, plan.files[0], sizes);
  bool once = true;
  const bool same = image_of(work, once) == execute_in_memory(plan)[0];  // (the images are too long to be printed)
  RC_ASSERT(same);
  RC_ASSERT(once);
}

// The same, for every shape and every change.
TEST(UnitRenderer, MakesEveryShapeWithEveryChange) {
  for (int shape = 0; shape < num_shapes(); ++shape) {
    for (const Change& change : kChanges) {
      for (std::uint32_t seed = 0; seed < 8; ++seed) {
        PlanBuilder builder(seed);
        add_shape(builder, shape, "layer", 24, change);
        const Plan plan = builder.make();
        bool once = true;
        const bool same = image_of(make_work(plan, plan.files[0]), once) == execute_in_memory(plan)[0];
        EXPECT_TRUE(same && once) << "shape " << shape << ", " << info(change.from).name << " to "
                                  << info(change.to).name << " x " << change.scale << ", seed " << seed;
      }
    }
  }
}

// Experts' lora_A are members of a column group; between them in the file lie transposed lora_B with rows longer than a
// block.
TEST(UnitRenderer, MakesWideRowsBetweenMembers) {
  constexpr std::int64_t kExperts = 9, kRank = 3, kIn = 7, kOut = 11;
  PlanBuilder builder(1);
  const View fused = builder.source(Dtype::bf16, kRank, kIn * kExperts, true);
  for (std::int64_t e = 0; e < kExperts; ++e) {
    PlannedTensor& lora_a = builder.output(fmt::format("experts.{}.lora_A", e), Dtype::bf16, kRank, kIn);
    lora_a.blocks = {{0, 0, 1, fused.col_range(e, kIn, kExperts), 1}};
    lora_a.column_group = 0;
    const View turned = builder.source(Dtype::bf16, kRank, kOut, true);
    builder.output(fmt::format("experts.{}.lora_B", e), Dtype::bf16, kOut, kRank).blocks = {
        {0, 0, 1, turned.transposed(), 1}};
  }
  const Plan plan = builder.make();
  CutSizes sizes;
  sizes.block = 2 * kRank - 1;
  bool once = true;
  const bool same = image_of(make_work(plan, plan.files[0], sizes), once) == execute_in_memory(plan)[0];
  EXPECT_TRUE(same);
  EXPECT_TRUE(once);
}

Plan fused_plan(PlanBuilder& builder, std::int64_t experts, std::int64_t rank, std::int64_t out) {
  const View fused = builder.source(Dtype::bf16, out, rank * experts, true);
  for (std::int64_t e = 0; e < experts; ++e) {
    PlannedTensor& lora_b = builder.output(fmt::format("{}.lora_B", e), Dtype::bf16, out, rank);
    lora_b.blocks = {{0, 0, 1, fused.col_range(e, rank, experts), 1}};
    lora_b.column_group = 0;
  }
  return builder.make();
}

// Experts are fused and taken apart in rounds of so many elements: a rank of 3 divides none of them.
TEST(UnitRenderer, BeginsARoundInTheMiddleOfARow) {
  constexpr std::int64_t kExperts = 9, kRank = 3, kOut = 1500;
  PlanBuilder fuse(1), unfuse(1);
  std::vector<plan::MemberView> members;
  for (std::int64_t e = 0; e < kExperts; ++e)
    members.push_back({fuse.source(Dtype::bf16, kOut, kRank, true), 1, Dtype::bf16});
  plan::append_members(fuse.output("lora_B", Dtype::bf16, kOut, kExperts * kRank).blocks,
                       {.col_step = kExperts, .col_shift = 1}, members);
  for (const Plan& plan : {fuse.make(), fused_plan(unfuse, kExperts, kRank, kOut)}) {
    bool once = true;
    const bool same = image_of(make_work(plan, plan.files[0]), once) == execute_in_memory(plan)[0];
    EXPECT_TRUE(same && once) << plan.files[0].tensors.size() << " tensors";
  }
}

TEST(MakeWork, RendersAFamilyTogether) {
  PlanBuilder builder(1);
  const Plan plan = fused_plan(builder, 64, 8, 96);
  const FileWork work = make_work(plan, plan.files[0]);
  EXPECT_EQ(work.units.size(), 1u);
  EXPECT_EQ(work.byte_source, std::vector<ByteSource>(64, ByteSource::member));
}

TEST(MakeWork, CutsAFamilyThatIsTooLargeIntoMembersSideBySide) {
  PlanBuilder builder(1);
  const Plan plan = fused_plan(builder, 512, 8, 96);
  CutSizes sizes;
  sizes.staging = 500'000;  // of 512 members of 1536 bytes
  const FileWork work = make_work(plan, plan.files[0], sizes);
  ASSERT_EQ(work.units.size(), 2u);
  for (const Unit& unit : work.units) {
    EXPECT_EQ(unit.last_member - unit.first_member, 256u);
    EXPECT_EQ(unit.last_element - unit.first_element, 96 * 8);
  }
}

TEST(MakeWork, WritesStackedRowsFromTheSource) {
  PlanBuilder builder(1);
  std::vector<plan::MemberView> members;
  for (std::int64_t e = 0; e < 8; ++e) members.push_back({builder.source(Dtype::bf16, 8, 1024, true), 1, Dtype::bf16});
  plan::append_members(builder.output("stack", Dtype::bf16, 64, 1024).blocks, {.row_shift = 8}, members);
  const Plan plan = builder.make();
  const FileWork work = make_work(plan, plan.files[0]);
  EXPECT_EQ(plan.files[0].tensors[0].blocks.size(), 1u);
  EXPECT_EQ(work.byte_source[0], ByteSource::direct);
  MergeStores stores;
  UnitRenderer renderer(work.sizes.staging, stores);
  const auto extents = renderer.make(work, work.units.at(0));
  ASSERT_EQ(extents.size(), 1u);
  EXPECT_EQ(extents[0].parts.size(), 1u) << "neighbours in the source are one part";
}

// Rendered and copied, whatever the rows are, and of a tensor whose rows are longer than a block.
TEST(MakeWork, CutsWhereBlocksOfTheFileEnd) {
  PlanBuilder builder(1);
  for (const std::int64_t cols : {24, 30'000}) {
    const View source = builder.source(Dtype::bf16, cols, 60, true);
    builder.output(fmt::format("rendered.{}", cols), Dtype::bf16, 60, cols).blocks = {
        {0, 0, 1, source.transposed(), 1}};
    builder.output(fmt::format("copied.{}", cols), Dtype::bf16, cols, 60).blocks = {{0, 0, 1, source, 1}};
  }
  const Plan plan = builder.make();
  CutSizes sizes;
  sizes.block = 20'000;
  const FileWork work = make_work(plan, plan.files[0], sizes);
  std::size_t inside = 0;
  for (const Unit& unit : work.units) {
    EXPECT_LE(unit.end - unit.begin, sizes.block);
    inside += (work.layout.head.size() + unit.end) % sizes.block != 0 ? 1 : 0;
  }
  EXPECT_LE(inside, 61u) << "ends of the long rows, and of the file";
  EXPECT_GT(work.units.size(), 360u);
  bool once = true;
  EXPECT_TRUE(image_of(work, once) == execute_in_memory(plan)[0] && once);
}

// What is merged lies in cache lines as it will in the file's pages.
TEST(UnitRenderer, MergedBytesLieAsTheFileDoes) {
  PlanBuilder builder(1);
  const View base = builder.normal(Dtype::bf16, 96, 64, 1);
  builder.output("before", Dtype::bf16, 96, 60).blocks = {{0, 0, 1, base.col_range(0, 60), 1}};  // moves the rest
  PlannedTensor& tensor = builder.output("merged", Dtype::bf16, 96, 64);
  tensor.blocks = {{0, 0, 1, base, 1}};
  Update update;
  update.target = View{0, 0, 0, 96, 64, 64, 1};
  update.a = builder.normal(Dtype::bf16, 8, 64, 0.1);
  update.b = builder.normal(Dtype::bf16, 96, 8, 0.1);
  update.scale = 1;
  tensor.merge = Merge{MergeMode::best, Dtype::bf16, {update}};
  const Plan plan = builder.make();
  CutSizes sizes;
  sizes.block = 4000;
  const FileWork work = make_work(plan, plan.files[0], sizes);
  MergeStores stores;
  UnitRenderer renderer(work.sizes.staging, stores);
  const std::uint64_t head = work.layout.head.size(), begin = head + work.layout.begin[1];
  std::set<std::uint64_t> places;
  for (const Unit& unit : work.units) {
    for (const execution::FileExtent& extent : renderer.make(work, unit)) {
      std::uint64_t at = head + extent.offset;
      for (const iovec& part : extent.parts) {
        if (at >= begin) {
          EXPECT_EQ(reinterpret_cast<std::uintptr_t>(part.iov_base) % 64, at % 64) << at;
          places.insert(at % 64);
        }
        at += part.iov_len;
      }
    }
  }
  EXPECT_GT(places.size(), 1u);
}

TEST(UnitRenderer, NamesTheTensorWhoseValueOverflows) {
  for (const bool member : {false, true}) {
    PlanBuilder builder(3);
    std::vector<double> numbers(16 * 16, 1);
    numbers[member ? 5 * 16 + 7 : 7 * 16 + 5] = 1e9;
    const View source = builder.values(Dtype::f32, 16, 16, numbers);
    for (std::int64_t e = 0; e < 16; ++e) {
      const View view = member ? source.col_range(e, 1) : source.row_range(e, 1);
      PlannedTensor& tensor = builder.output(fmt::format("tensor.{:02}", e), Dtype::f16, view.rows, view.cols);
      tensor.blocks = {{0, 0, 1, view, 1}};
      if (member) tensor.column_group = 0;
    }
    const Plan plan = builder.make();
    const FileWork work = make_work(plan, plan.files[0]);
    bool once = true;
    try {
      image_of(work, once);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::NUM_OVERFLOW);
      EXPECT_EQ(error.detail().tensor, "tensor.07");
    }
  }
}

}  // namespace
}  // namespace peft::execution
