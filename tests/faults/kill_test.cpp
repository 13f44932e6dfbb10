// F4, F12, F13: runs that are killed, that get signals, and that meet each other.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <random>
#include <thread>

#include "cli/output/progress.h"
#include "faults/job.h"
#include "support/fault_calls.h"

namespace peft::faults {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

int exit_code(const std::optional<Error>& error) { return error ? info(error->code()).exit_code : 0; }

// A child process that runs `body` and exits with what it returns.
pid_t start(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  return child;
}

int wait_for(pid_t child) {
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

// One process waits here until another has come this far.
class Gate {
 public:
  Gate() { EXPECT_EQ(::pipe(fds_), 0); }
  ~Gate() {
    ::close(fds_[0]);
    ::close(fds_[1]);
  }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  void open() { EXPECT_EQ(::write(fds_[1], "x", 1), 1); }
  void wait() {
    char byte = 0;
    EXPECT_EQ(::read(fds_[0], &byte, 1), 1);
  }

 private:
  int fds_[2];
};

TEST(Faults, F4KilledAtRandomTimes) {
  const Job job({.shards = 4, .tensors = 8, .rows = 600});
  const auto begin = Clock::now();
  ASSERT_EQ(run(job, keeping(2)), std::nullopt);
  const auto whole = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin);
  std::mt19937 random(4);
  const int wanted = runs(25);
  long long kills = 0, went_on = 0;
  for (int i = 0; i < wanted; ++i) {
    job.clean();
    for (bool done = false; !done;) {
      const auto delay = std::chrono::microseconds(random() % (static_cast<std::uint32_t>(whole.count()) * 5 / 4 + 1));
      const pid_t child = start([&] {
        ExecuteReport report;
        ExecuteOptions options = resuming(1 + i % 3);
        options.trust_journal = i % 2 == 0;
        const int code = exit_code(run(job, options, &report));
        return code == 0 && report.files_resumed > 0 ? 42 : code;
      });
      std::this_thread::sleep_for(delay);
      ::kill(child, SIGKILL);
      const int status = wait_for(child);
      done = WIFEXITED(status);
      kills += done ? 0 : 1;
      went_on += done && WEXITSTATUS(status) == 42 ? 1 : 0;
      // A run that was killed after its commit leaves a complete output.
      const bool finished_before = done && WEXITSTATUS(status) == 2 && contents_of(job.out()) == job.expected();
      ASSERT_TRUE(!done || finished_before || WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 42) << status;
      ASSERT_EQ(job.check(), "");
    }
    ASSERT_EQ(contents_of(job.out()), job.expected());
  }
  add_row("F4", "kill -9 at random times until one run completes; digests and --trust-journal in turn", kills,
          std::to_string(wanted) + " outputs, all identical; " + std::to_string(went_on) + " used earlier files");
}

// A child that is in the middle of its run when `during` is called with its pid. Returns how it ended.
int interrupted(const Job& job, const std::function<void(pid_t)>& during, bool hang) {
  Gate running;
  const pid_t child = start([&] {
    cli::ignore_write_signals();
    const cli::InterruptGuard guard;
    ExecuteOptions options = keeping(2);
    options.cancel = guard.flag();
    std::atomic<bool> told = false;
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      if (done < total / 2 || told.exchange(true)) return;
      running.open();
      for (int i = 0; i < 500 && (hang || !*guard.flag()); ++i) ::usleep(10'000);
    };
    return exit_code(run(job, options));
  });
  running.wait();
  during(child);
  return wait_for(child);
}

TEST(Faults, F12Signals) {
  const Job job;
  for (const int signal : {SIGINT, SIGTERM}) {
    job.clean();
    const int status = interrupted(
        job, [&](pid_t child) { ::kill(child, signal); }, false);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 5);
    EXPECT_TRUE(fs::exists(job.staging()));
    EXPECT_EQ(job.check(), "");
    ExecuteReport report;
    ASSERT_EQ(run(job, resuming(), &report), std::nullopt);
    EXPECT_GT(report.files_resumed, 0u);
    EXPECT_TRUE(job.is_complete());
  }
  job.clean();
  const auto twice = [](pid_t child) {
    ::kill(child, SIGINT);
    ::usleep(100'000);
    ::kill(child, SIGINT);
  };
  const auto begin = Clock::now();
  const int status = interrupted(job, twice, true);
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(4)) << "the second one does not wait";
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 5);
  EXPECT_EQ(job.check(), "");
  ASSERT_EQ(run(job, resuming()), std::nullopt);
  EXPECT_TRUE(job.is_complete());
  add_row("F12", "SIGINT; SIGTERM; SIGINT twice", 3, "exit 5; resumable; then identical");
}

TEST(Faults, F12SignalsOfWriting) {
  const Job job;
  const int limited = wait_for(start([&] {
    cli::ignore_write_signals();
    const rlimit limit{15'000, 15'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto error = run(job, keeping());
    return error && error->code() == ErrorCode::OUT_SPACE ? exit_code(error) : 99;
  }));
  EXPECT_TRUE(WIFEXITED(limited));
  EXPECT_EQ(WEXITSTATUS(limited), 3);
  EXPECT_EQ(job.check(), "");
  ASSERT_EQ(run(job, resuming()), std::nullopt);
  EXPECT_TRUE(job.is_complete());
  job.clean();
  const int piped = interrupted(
      job, [](pid_t child) { ::kill(child, SIGPIPE), ::kill(child, SIGINT); }, false);
  EXPECT_TRUE(WIFEXITED(piped));
  EXPECT_EQ(WEXITSTATUS(piped), 5) << "SIGPIPE alone does nothing";
  add_row("F12", "SIGXFSZ (RLIMIT_FSIZE); SIGPIPE", 2, "exit 3, resumable; ignored");
}

// While one run is in the middle, another with `other` options begins and ends.
std::optional<Error> meets(const Job& job, ExecuteOptions one, const ExecuteOptions& other) {
  Gate running, may_end;
  const pid_t child = start([&] {
    std::atomic<bool> told = false;
    one.progress = [&](std::uint64_t, std::uint64_t) {
      if (told.exchange(true)) return;
      running.open();
      may_end.wait();
    };
    return exit_code(run(job, one));
  });
  running.wait();
  const auto error = run(job, other);
  may_end.open();
  EXPECT_EQ(wait_for(child), 0);
  return error;
}

ExecuteOptions part(int i, int n) {
  ExecuteOptions options = resuming();
  options.part = i, options.parts = n;
  return options;
}

TEST(Faults, F13TwoRunsOnOneOutput) {
  const Job job;
  ExecuteOptions convert{.threads = 1, .sync = false};
  ExecuteOptions over = convert;
  over.overwrite = true;
  ExecuteOptions finish = resuming();
  finish.finish = true;
  const std::pair<ExecuteOptions, ExecuteOptions> refused[] = {
      {keeping(), keeping()},   {keeping(), resuming()}, {resuming(), resuming()}, {keeping(), convert},
      {convert, over},          {keeping(), part(1, 2)}, {part(1, 2), part(1, 2)}, {part(1, 2), keeping()},
      {part(1, 2), resuming()}, {part(1, 2), finish},    {part(1, 2), over}};
  int points = 0;
  for (const auto& [one, other] : refused) {
    job.clean();
    const auto error = meets(job, one, other);
    ASSERT_TRUE(error.has_value()) << points;
    EXPECT_EQ(error->code(), ErrorCode::OUT_LOCKED) << error->what();
    EXPECT_EQ(job.check(), "");
    EXPECT_TRUE(one.part > 0 || job.is_complete());
    ++points;
  }
  job.clean();
  EXPECT_EQ(meets(job, part(1, 2), part(2, 2)), std::nullopt) << "different parts do not disturb each other";
  add_row("F13", "a second run on the same output: new, resumed, part, finish, convert", points,
          "OUT_LOCKED; the first is complete");
}

TEST(Faults, F13WithoutLocksNothingIsHarmed) {
  const Job job;
  int points = 0;
  const auto without_locks = [&](const ExecuteOptions& options) {
    FaultCalls calls;
    calls.judge = [](const Call& call) { return call.kind == Kind::lock ? ENOLCK : 0; };
    return run(job, options);
  };
  for (int i = 0; i < runs(10); ++i) {
    job.clean();
    std::vector<pid_t> children;
    for (const auto& options : {part(1, 2), part(1, 2), part(2, 2), part(2, 2), part(1, 1)})
      children.push_back(start([&] { return exit_code(without_locks(options)); }));
    for (const pid_t child : children) EXPECT_EQ(wait_for(child), 0);
    ExecuteOptions finish = resuming();
    finish.finish = true;
    EXPECT_EQ(run(job, finish), std::nullopt);
    ASSERT_TRUE(job.is_complete());
    points += 5;
  }
  add_row("F13", "the same parts twice at once where locks do not work", points, "identical");
}

}  // namespace
}  // namespace peft::faults
