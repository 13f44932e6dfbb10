// Factors that are read together are read once, in little memory, however the experts' names are sorted.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "base/system.h"
#include "execute/run/stream.h"
#include "execute/run/unit.h"
#include "peft/execute.h"
#include "support/random_plan.h"

namespace peft::execution {
namespace {

constexpr std::int64_t kExperts = 128, kRank = 4;
constexpr std::size_t kGroups = kExperts / 32;

// Three matrices of each expert, in the order of their names; every lora_B of a kind is in one tensor, as PEFT has
// them.
Plan experts_plan(PlanBuilder& builder) {
  struct Kind {
    const char* name;
    std::int64_t out, in;
    View a, b;
  };
  Kind kinds[] = {{"down", 70, 50, {}, {}}, {"gate", 40, 90, {}, {}}, {"up", 40, 90, {}, {}}};
  for (Kind& kind : kinds) {
    kind.a = builder.normal(Dtype::bf16, kExperts * kRank, kind.in, 0.1);
    kind.b = builder.normal(Dtype::bf16, kind.out, kRank * kExperts, 0.1);
  }
  std::set<std::string> names;
  for (std::int64_t e = 0; e < kExperts; ++e) names.insert(std::to_string(e));
  for (const std::string& name : names) {
    const std::int64_t e = std::stoll(name);
    for (const Kind& kind : kinds) {
      const View base = builder.normal(Dtype::bf16, kind.out, kind.in, 0.1);
      PlannedTensor& tensor = builder.output(fmt::format("{}.{}", name, kind.name), Dtype::bf16, kind.out, kind.in);
      tensor.blocks = {{0, 0, 1, base, 1}};
      Update update;
      update.target.rows = kind.out, update.target.cols = kind.in;
      update.target.row_stride = kind.in, update.target.col_stride = 1;
      update.a = kind.a.row_range(e * kRank, kRank);
      update.b = kind.b.col_range(e, kRank, kExperts);
      tensor.merge = Merge{MergeMode::best, Dtype::bf16, {update}};
    }
  }
  return builder.make();
}

// Makes all units and looks at the bytes. Returns what was gathered.
GatherStore::Use use_of(const Plan& plan, const FileWork& work) {
  MergeStores stores;
  UnitRenderer renderer(work.sizes.staging, stores);
  std::vector<std::byte> image(work.layout.head.size() + work.layout.data_bytes);
  std::memcpy(image.data(), work.layout.head.data(), work.layout.head.size());
  std::uint64_t written = 0;
  for (const Unit& unit : work.units) {
    for (const FileExtent& extent : renderer.make(work, unit)) {
      std::uint64_t at = work.layout.head.size() + extent.offset;
      for (const iovec& part : extent.parts) {
        std::memcpy(image.data() + at, part.iov_base, part.iov_len);
        at += part.iov_len;
        written += part.iov_len;
      }
    }
  }
  EXPECT_EQ(written, work.layout.data_bytes);
  EXPECT_TRUE(image == execute_in_memory(plan)[0]);
  return stores.factors.use();
}

constexpr std::size_t kMostBuffers = 3;  // two groups are kept, and one is in use

class UnitOrder : public testing::TestWithParam<std::uint64_t> {  // bytes of a block
 protected:
  static CutSizes sizes() {
    CutSizes sizes;
    sizes.block = GetParam();
    return sizes;
  }
  PlanBuilder builder_{1};
  const Plan plan_ = experts_plan(builder_);
  FileWork work_ = make_work(plan_, plan_.files[0], sizes());
};

TEST_P(UnitOrder, EachGroupIsReadOnce) {
  const GatherStore::Use use = use_of(plan_, work_);
  EXPECT_EQ(use.groups, 3 * kGroups);
  EXPECT_LE(use.buffers, kMostBuffers);
}

TEST_P(UnitOrder, MemoryIsBoundedInAnyOrder) {
  std::shuffle(work_.units.begin(), work_.units.end(), builder_.random());
  const GatherStore::Use use = use_of(plan_, work_);
  EXPECT_GT(use.groups, 3 * kGroups);
  EXPECT_LE(use.buffers, kMostBuffers);
}

// Threads wait for each other's groups, and give memory back that another one takes.
TEST_P(UnitOrder, ThreadsMakeTheSameBytes) {
  for (int round = 0; round < 2; ++round) {
    UnitRenderers renderers(4);
    std::vector<std::byte> image(work_.layout.head.size() + work_.layout.data_bytes);
    std::memcpy(image.data(), work_.layout.head.data(), work_.layout.head.size());
    parallel_for(work_.units.size(), renderers.threads(), [&](std::size_t u, int worker) {
      for (const execution::FileExtent& extent : renderers.of(worker).make(work_, work_.units[u])) {
        std::byte* to = image.data() + work_.layout.head.size() + extent.offset;
        for (const iovec& part : extent.parts) {
          std::memcpy(to, part.iov_base, part.iov_len);
          to += part.iov_len;
        }
      }
    });
    EXPECT_TRUE(image == execute_in_memory(plan_)[0]);
    std::shuffle(work_.units.begin(), work_.units.end(), builder_.random());
  }
}

INSTANTIATE_TEST_SUITE_P(Blocks, UnitOrder, testing::Values(3000, 20'000, std::uint64_t{1} << 20));

TEST(UnitOrderOfOthers, StayInTheOrderOfTheFile) {
  PlanBuilder builder(2);
  for (int t = 0; t < 20; ++t) {
    const View source = builder.source(Dtype::bf16, 40, 30, false);
    PlannedTensor& tensor = builder.output(fmt::format("{}", t), Dtype::bf16, 40, 30);
    tensor.blocks = {{0, 0, 1, source, 1}};
    if (t % 2 == 0) continue;
    Update update;
    update.target = source;
    update.a = builder.normal(Dtype::bf16, 4, 30, 0.1);
    update.b = builder.normal(Dtype::bf16, 40, 4, 0.1);
    tensor.merge = Merge{MergeMode::best, Dtype::bf16, {update}};
  }
  const Plan plan = builder.make();
  CutSizes sizes;
  sizes.block = 1000;
  const FileWork work = make_work(plan, plan.files[0], sizes);
  std::uint64_t end = 0;
  for (const Unit& unit : work.units) {
    EXPECT_EQ(unit.begin, end);
    end = unit.end;
  }
  EXPECT_EQ(end, work.layout.data_bytes);
}

}  // namespace
}  // namespace peft::execution
