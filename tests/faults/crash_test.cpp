// F6: what a power cut may leave, at every moment of a run.
#include <gtest/gtest.h>

#include <filesystem>

#include "faults/crash_disk.h"
#include "faults/job.h"

namespace peft::faults {
namespace {

namespace fs = std::filesystem;
using Mode = CrashDisk::Mode;

struct CrashVariant {
  const char* name;
  Mode mode;
  int repeated;
};

class Crash : public testing::TestWithParam<CrashVariant> {};

// Nothing, or the whole output. A journal is only ahead of its files when it is not telling the truth: --trust-journal
// must be right as well.
TEST_P(Crash, F6LeavesOldOrComplete) {
  const Job job({.shards = 3, .tensors = 4, .rows = 16});
  CrashDisk disk(job.folder());
  ExecuteOptions options = keeping();
  options.sync = true;
  ASSERT_EQ(run(job, options), std::nullopt);
  disk.stop();
  ASSERT_TRUE(job.is_complete());
  std::mt19937 random(6);
  long long states = 0, complete = 0, used = 0;
  for (std::size_t count = 0; count <= disk.events(); ++count) {
    for (int i = 0; i < GetParam().repeated * runs(1); ++i, ++states) {
      SCOPED_TRACE(testing::Message() << "after event " << count << " of " << disk.events() << ", state " << i);
      job.clean();
      disk.restore(count, GetParam().mode, random);
      ASSERT_EQ(job.check(), "");
      if (fs::exists(job.out())) {
        ++complete;
        continue;
      }
      ExecuteOptions go_on = resuming();
      go_on.trust_journal = (count + static_cast<std::size_t>(i)) % 2 == 0;
      ExecuteReport report;
      const auto error = run(job, go_on, &report);
      ASSERT_FALSE(error.has_value()) << error->what();
      ASSERT_TRUE(job.is_complete());
      used += report.files_resumed > 0 ? 1 : 0;
    }
  }
  EXPECT_GT(complete, 0);
  EXPECT_GT(used, 0);
  add_row("F6", std::string("power cut after each event: ") + GetParam().name, states,
          std::to_string(complete) + " complete, all others absent; then identical");
}

INSTANTIATE_TEST_SUITE_P(All, Crash,
                         testing::Values(CrashVariant{"unsynced data and names are lost", Mode::drop, 1},
                                         CrashVariant{"any subset of them is lost, in any order", Mode::subset, 8},
                                         CrashVariant{"and the writes are torn at sectors", Mode::torn, 8},
                                         CrashVariant{"the disk is a moment behind", Mode::ordered, 2}),
                         [](const auto& tested) {
                           return "mode" + std::to_string(static_cast<int>(tested.param.mode));
                         });

}  // namespace
}  // namespace peft::faults
