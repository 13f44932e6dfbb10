// Parts of one output, written by several processes.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "faults/job.h"

namespace peft::faults {
namespace {

namespace fs = std::filesystem;

ExecuteOptions part(int i, int n, int threads = 1) {
  ExecuteOptions options = resuming(threads);
  options.part = i, options.parts = n;
  return options;
}

ExecuteOptions finish() {
  ExecuteOptions options = resuming(2);
  options.finish = true;
  return options;
}

pid_t start(const Job& job, const ExecuteOptions& options) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  const auto error = run(job, options);
  ::_exit(error ? info(error->code()).exit_code : 0);
}

int wait_for(pid_t child) {
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(Parts, AtTheSameTimeGiveTheSameBytes) {
  const Job job({.shards = 5});
  for (const int n : {1, 2, 3, 5, 8}) {
    job.clean();
    std::vector<pid_t> children;
    for (int i = 1; i <= n; ++i) children.push_back(start(job, part(i, n, 1 + i % 3)));
    for (const pid_t child : children) EXPECT_EQ(wait_for(child), 0);
    EXPECT_FALSE(fs::exists(job.out())) << "only --finish publishes";
    ExecuteReport report;
    ASSERT_EQ(run(job, finish(), &report), std::nullopt);
    EXPECT_EQ(report.files_resumed, 5u);
    EXPECT_EQ(report.files_written, 0u);
    EXPECT_TRUE(report.published);
    EXPECT_TRUE(job.is_complete());
  }
}

TEST(Parts, FinishSaysWhatIsMissing) {
  const Job job({.shards = 5});
  const auto without_parts = run(job, finish());
  ASSERT_TRUE(without_parts.has_value());
  EXPECT_EQ(without_parts->code(), ErrorCode::RS_PARTS);
  EXPECT_FALSE(fs::exists(job.staging()));
  for (const int i : {1, 3}) ASSERT_EQ(run(job, part(i, 3)), std::nullopt);
  const auto error = run(job, finish());
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code(), ErrorCode::RS_PARTS) << error->what();
  EXPECT_EQ(error->detail().got, "model-00001.safetensors, model-00004.safetensors");
  EXPECT_EQ(job.check(), "");
  ASSERT_EQ(run(job, part(2, 3)), std::nullopt);
  ASSERT_EQ(run(job, finish()), std::nullopt);
  EXPECT_TRUE(job.is_complete());
}

TEST(Parts, AKilledOneIsRunAgainAndOnlyWritesWhatItLacks) {
  const Job job({.shards = 6, .tensors = 6, .rows = 400});
  ASSERT_EQ(run(job, part(2, 2)), std::nullopt);
  for (int i = 0; i < runs(10); ++i) {
    const pid_t child = start(job, part(1, 2));
    ::usleep(static_cast<useconds_t>(1000 * (i % 20)));
    ::kill(child, SIGKILL);
    wait_for(child);
    EXPECT_EQ(job.check(), "");
  }
  ASSERT_EQ(run(job, part(1, 2)), std::nullopt);
  ExecuteReport report;
  ASSERT_EQ(run(job, part(1, 2), &report), std::nullopt);
  EXPECT_EQ(report.files_written, 0u) << "again is no work";
  ASSERT_EQ(run(job, finish()), std::nullopt);
  EXPECT_TRUE(job.is_complete());
}

TEST(Parts, OfDifferentRunsDoNotMix) {
  const Job job;
  ASSERT_EQ(run(job, part(1, 2)), std::nullopt);
  Plan plan = job.plan();
  plan.files[0].tensors[1].blocks[0].scale = 0.5;
  const auto code_of = [&](const ExecuteOptions& options) {
    try {
      execute(plan, job.out(), options);
      return ErrorCode::INTERNAL;
    } catch (const Error& error) {
      return error.code();
    }
  };
  EXPECT_EQ(code_of(part(2, 2)), ErrorCode::RS_JOURNAL);
  EXPECT_EQ(code_of(finish()), ErrorCode::RS_JOURNAL);
  EXPECT_EQ(code_of(resuming()), ErrorCode::RS_JOURNAL);
  EXPECT_EQ(code_of(keeping()), ErrorCode::OUT_EXISTS) << "hours of work are not thrown away unasked";
  EXPECT_EQ(code_of(part(3, 2)), ErrorCode::USAGE);
  ASSERT_EQ(run(job, part(2, 2)), std::nullopt);
  ASSERT_EQ(run(job, finish()), std::nullopt);
  EXPECT_TRUE(job.is_complete());
}

TEST(Resume, UsesWhatIsThereAndStartsAnewWhereNothingIs) {
  const Job job;
  ExecuteReport report;
  ASSERT_EQ(run(job, resuming(), &report), std::nullopt);
  EXPECT_EQ(report.files_resumed, 0u);
  EXPECT_EQ(report.files_written, 4u);
  EXPECT_TRUE(job.is_complete());
  const auto again = run(job, resuming());
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->code(), ErrorCode::OUT_EXISTS);
}

TEST(Resume, WhatIsLeftIsRefusedOverwrittenOrGoneOnWith) {
  const Job job;
  const auto stop = [&] {
    job.clean();
    std::atomic<bool> cancel = false;
    ExecuteOptions options = keeping();
    options.cancel = &cancel;
    options.progress = [&](std::uint64_t done, std::uint64_t total) { cancel = done > total / 2; };
    const auto error = run(job, options);
    EXPECT_TRUE(error && error->code() == ErrorCode::INTERRUPTED);
    EXPECT_NE(error->detail().hint.find("--resume"), std::string::npos) << error->what();
    EXPECT_TRUE(fs::exists(job.staging()));
  };
  stop();
  for (const Unfinished unfinished : {Unfinished::remove, Unfinished::keep}) {
    const auto error = run(job, {.threads = 1, .sync = false, .unfinished = unfinished});
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code(), ErrorCode::OUT_EXISTS) << error->what();
    EXPECT_NE(error->detail().hint.find("--resume"), std::string::npos);
  }
  ExecuteReport report;
  ASSERT_EQ(run(job, resuming(3), &report), std::nullopt);
  EXPECT_GT(report.files_resumed, 0u);
  EXPECT_TRUE(job.is_complete());
  stop();
  ExecuteOptions over = keeping();
  over.overwrite = true;
  ASSERT_EQ(run(job, over, &report), std::nullopt);
  EXPECT_EQ(report.files_resumed, 0u);
  EXPECT_TRUE(job.is_complete());
}

// Without digests a finished file is only used when it is to be trusted.
TEST(Resume, WithoutReadback) {
  const Job job;
  for (const bool trust : {false, true}) {
    job.clean();
    std::atomic<bool> cancel = false;
    ExecuteOptions options = keeping();
    options.readback = false;
    options.cancel = &cancel;
    options.progress = [&](std::uint64_t done, std::uint64_t total) { cancel = done > total / 2; };
    ASSERT_TRUE(run(job, options).has_value());
    ExecuteOptions go_on = resuming();
    go_on.trust_journal = trust;
    ExecuteReport report;
    ASSERT_EQ(run(job, go_on, &report), std::nullopt);
    EXPECT_EQ(report.files_resumed > 0, trust);
    EXPECT_TRUE(job.is_complete());
  }
}

}  // namespace
}  // namespace peft::faults
