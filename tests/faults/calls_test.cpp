// F1, F2, F3, F5, F8, F14, F15: what a system call may do to a run.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <filesystem>
#include <set>

#include "faults/job.h"
#include "safetensors/writing/staging_folder.h"
#include "support/fault_calls.h"

namespace peft::faults {
namespace {

namespace fs = std::filesystem;

// What is run while calls fail, and what is there before.
struct Variant {
  const char* name;
  bool half_done;  // an earlier run has finished two files
  int part;        // 1: part 1 of 2; -1: the finish of two parts
  bool sync;
};

ExecuteOptions options_of(const Variant& variant) {
  ExecuteOptions options = variant.half_done ? resuming() : keeping();
  options.sync = variant.sync;
  if (variant.part > 0) options.part = variant.part, options.parts = 2;
  if (variant.part < 0) options.finish = true;
  return options;
}

void stop_after_two_files(const Job& job) {
  FaultCalls calls;
  int finished = 0;
  calls.judge = [&](const Call& call) { return call.kind == Kind::rename && ++finished == 3 ? EIO : 0; };
  ASSERT_TRUE(run(job, keeping()).has_value());
}

void run_parts(const Job& job, int first, int last) {
  for (int part = first; part <= last; ++part) {
    ExecuteOptions options = resuming();
    options.part = part, options.parts = 2;
    ASSERT_EQ(run(job, options), std::nullopt);
  }
}

void prepare(const Job& job, const Variant& variant) {
  job.clean();
  if (variant.half_done) stop_after_two_files(job);
  if (variant.part < 0) run_parts(job, 1, 2);
}

// Without faults, whatever was left leads to the complete output.
void go_on(const Job& job, const Variant& variant) {
  if (fs::exists(job.out()) && safetensors::journal_paths(job.staging()).empty()) {
    fs::remove_all(job.staging());  // an empty folder, from the last moment of tidying up
    return;
  }
  if (variant.part != 0) {
    if (!fs::exists(job.out())) run_parts(job, 1, 2);
    ExecuteOptions finish = resuming();
    finish.finish = true;
    const auto error = run(job, finish);
    ASSERT_FALSE(error.has_value()) << error->what();
    return;
  }
  const auto error = run(job, resuming());
  ASSERT_FALSE(error.has_value()) << error->what();
}

class Calls : public testing::TestWithParam<Variant> {};

TEST_P(Calls, F1EveryCallFails) {
  const Job job;
  long long points = 0;
  for (const auto& [persistent, error] : {std::pair{false, EIO}, std::pair{true, EIO}, std::pair{true, ENOSPC}}) {
    for (int n = 1;; ++n) {
      SCOPED_TRACE(testing::Message() << "call " << n << " errno " << error << (persistent ? " persistent" : ""));
      prepare(job, GetParam());
      std::optional<Error> thrown;
      bool reached = false;
      {
        FaultCalls calls;
        calls.judge = NthCall(n, error, persistent);
        thrown = run(job, options_of(GetParam()));
        reached = calls.count() >= n;
      }
      if (!reached) break;
      ++points;
      EXPECT_EQ(job.check(), "");
      if (thrown) {
        EXPECT_EQ(info(thrown->code()).exit_code, thrown->code() == ErrorCode::RS_PARTS ? 1 : 3) << thrown->what();
        EXPECT_NE(std::string(thrown->what()).find(job.folder()), std::string::npos) << thrown->what();
      }
      go_on(job, GetParam());
      EXPECT_TRUE(job.is_complete());
      ASSERT_FALSE(HasFailure());
    }
  }
  EXPECT_GT(points, 100);
  add_row("F1", std::string("each call fails, once and from then on (EIO, ENOSPC): ") + GetParam().name, points,
          "old state or partial; then identical");
}

TEST_P(Calls, F5KilledAtEveryCall) {
  const Job job;
  std::set<std::string> named;
  int n = 1;
  for (bool reached = true; reached; ++n) {
    SCOPED_TRACE(testing::Message() << "call " << n);
    prepare(job, GetParam());
    int pipe_fds[2];
    ASSERT_EQ(::pipe(pipe_fds), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      FaultCalls calls;
      calls.judge = [&](const Call& call) {
        if (call.number != n) return FaultCalls::kPass;
        const std::string point = std::string(name(call.kind)) + " " + fs::path(call.path).extension().string();
        [[maybe_unused]] const auto written = ::write(pipe_fds[1], point.data(), point.size());
        ::kill(::getpid(), SIGKILL);
        return FaultCalls::kPass;
      };
      ::_exit(run(job, options_of(GetParam())).has_value() ? 1 : 0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    char point[200];
    ::close(pipe_fds[1]);
    const ssize_t length = ::read(pipe_fds[0], point, sizeof point);
    if (length > 0) named.insert(std::string(point, static_cast<std::size_t>(length)).substr(0, 12));
    ::close(pipe_fds[0]);
    reached = WIFSIGNALED(status);
    EXPECT_TRUE(reached || WEXITSTATUS(status) == 0);
    EXPECT_EQ(job.check(), "");
    go_on(job, GetParam());
    EXPECT_TRUE(job.is_complete());
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_GT(named.size(), 6u);
  add_row("F5", std::string("killed before each call: ") + GetParam().name, n - 2,
          "old state or partial; then identical");
}

TEST_P(Calls, F3ShortAndInterrupted) {
  const Job job({.shards = 2, .tensors = 4, .rows = 8});
  for (std::size_t most = 1; most <= 7; ++most) {
    job.clean();
    if (GetParam().part < 0) run_parts(job, 1, 2);
    FaultCalls calls;
    calls.limit = [&](const Call&) { return most; };
    calls.judge = [&](const Call& call) {
      const bool can = call.kind == Kind::pread || call.kind == Kind::pwritev || call.kind == Kind::fallocate;
      return can && call.number % 3 == 0 ? EINTR : 0;
    };
    const auto error = run(job, options_of({"", false, GetParam().part, GetParam().sync}));
    ASSERT_FALSE(error.has_value()) << error->what();
    EXPECT_GT(calls.count(), 100);
    EXPECT_TRUE(GetParam().part > 0 || job.is_complete());
  }
  add_row("F3", std::string("reads and writes of 1 to 7 bytes, every third call EINTR: ") + GetParam().name, 7,
          "identical");
}

INSTANTIATE_TEST_SUITE_P(All, Calls,
                         testing::Values(Variant{"new", false, 0, true}, Variant{"resume", true, 0, true},
                                         Variant{"part", false, 1, true}, Variant{"finish", false, -1, true}),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(Faults, F2TheDiskIsFullAfterEachByteCount) {
  const Job job;
  std::size_t all = 0;
  for (const auto& [name, bytes] : job.expected()) all += bytes.size();
  const std::size_t step = std::max<std::size_t>(1, all / static_cast<std::size_t>(runs(60)));
  int points = 0;
  for (std::size_t k = 0; k < all; k += step, ++points) {
    job.clean();
    std::optional<Error> thrown;
    {
      FaultCalls calls;
      std::size_t left = k;
      calls.limit = [&](const Call& call) {
        const std::size_t most = std::min(left, call.size);
        if (call.kind == Kind::pwritev) left -= most;
        return call.kind == Kind::pwritev ? most : call.size;
      };
      calls.judge = [&](const Call& call) {
        if (call.kind == Kind::fallocate) return EOPNOTSUPP;
        return call.kind == Kind::pwritev && left == 0 && call.size > 0 ? ENOSPC : 0;
      };
      thrown = run(job, keeping());
    }
    ASSERT_TRUE(thrown.has_value()) << k;
    EXPECT_EQ(thrown->code(), ErrorCode::OUT_SPACE) << thrown->what();
    EXPECT_EQ(job.check(), "");
    ASSERT_EQ(run(job, resuming()), std::nullopt);
    ASSERT_TRUE(job.is_complete()) << k;
  }
  add_row("F2", "the disk is full at byte k", points, "OUT_SPACE; resumable; then identical");
}

TEST(Faults, F2FullOrFailingAtSyncAndClose) {
  const Job job;
  int points = 0;
  for (const Kind kind : {Kind::fdatasync, Kind::close, Kind::fsync}) {
    for (const int error : {ENOSPC, EDQUOT, EIO}) {
      for (int n = 1;; ++n) {
        job.clean();
        int seen = 0;
        std::optional<Error> thrown;
        {
          FaultCalls calls;
          calls.judge = [&](const Call& call) { return call.kind == kind && ++seen == n ? error : 0; };
          ExecuteOptions options = keeping();
          options.sync = true;
          thrown = run(job, options);
        }
        if (seen < n) break;
        ++points;
        ASSERT_EQ(job.check(), "");
        if (!thrown) continue;  // closing what was only read
        EXPECT_EQ(thrown->code(), error == EIO ? ErrorCode::IO_WRITE : ErrorCode::OUT_SPACE) << thrown->what();
        ASSERT_EQ(run(job, resuming()), std::nullopt);
        ASSERT_TRUE(job.is_complete());
      }
    }
  }
  add_row("F2", "ENOSPC, EDQUOT, EIO at fdatasync, fsync and close", points, "OUT_SPACE or IO_WRITE; then identical");
}

TEST(Faults, F2ARealSmallDisk) {
  const Job job({.shards = 4, .tensors = 6, .rows = 400});
  const std::string disk = job.folder() + "/out-disk";
  fs::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=512k") != 0) {
    add_row("F2", "a real tmpfs that is too small", 0, "not run: this process may not mount");
    GTEST_SKIP() << "this process may not mount";
  }
  const Plan plan = job.plan();
  std::optional<ErrorCode> code;
  try {
    execute(plan, disk + "/out", resuming());
  } catch (const Error& error) {
    code = error.code();
  }
  EXPECT_EQ(code, ErrorCode::OUT_SPACE);
  EXPECT_FALSE(fs::exists(disk + "/out"));
  EXPECT_EQ(::mount("tmpfs", disk.c_str(), "tmpfs", MS_REMOUNT, "size=16m"), 0);
  const ExecuteReport report = execute(plan, disk + "/out", resuming());
  EXPECT_GT(report.files_resumed, 0u);
  EXPECT_EQ(contents_of(disk + "/out"), job.expected());
  ::umount(disk.c_str());
  add_row("F2", "a real tmpfs that is too small, then grows", 1, "OUT_SPACE; resumable; then identical");
}

TEST(Faults, F8AFailedSyncIsNotTriedAgain) {
  const Job job;
  int points = 0;
  for (int n = 1; n <= 8; ++n) {
    job.clean();
    int syncs = 0, file_syncs = 0;
    std::string failed;
    {
      FaultCalls calls;
      calls.judge = [&](const Call& call) {
        if (call.kind != Kind::fdatasync) return 0;
        if (call.path == failed) ++file_syncs;
        if (++syncs != n) return 0;
        failed = call.path;
        return EIO;
      };
      ExecuteOptions options = keeping();
      options.sync = true;
      ASSERT_TRUE(run(job, options).has_value());
    }
    EXPECT_EQ(file_syncs, 0) << "the kernel may have dropped the data and would report success now";
    EXPECT_FALSE(fs::exists(failed) && failed.find("journal") == std::string::npos);
    ASSERT_EQ(run(job, resuming()), std::nullopt);
    ASSERT_TRUE(job.is_complete());
    ++points;
  }
  add_row("F8", "fdatasync fails once, then would succeed", points, "the file is written again, not synced again");
}

TEST(Faults, F14RenameFails) {
  const Job job;
  int points = 0;
  for (const int error : {EXDEV, EEXIST, ENOTEMPTY, EACCES, EROFS, EINVAL, ENOSYS}) {
    for (const bool final_one : {false, true}) {
      job.clean();
      std::optional<Error> thrown;
      {
        FaultCalls calls;
        calls.judge = [&](const Call& call) {
          const bool is_final = call.path == job.out();
          // File systems without the flags refuse those calls only.
          const bool flags_only = error == EINVAL || error == ENOSYS;
          return call.kind == Kind::rename && is_final == final_one && (!flags_only || call.flags != 0) ? error : 0;
        };
        thrown = run(job, keeping());
      }
      ++points;
      EXPECT_EQ(job.check(), "") << error;
      const bool falls_back = error == EINVAL || error == ENOSYS;
      EXPECT_EQ(thrown.has_value(), !falls_back) << error;
      if (!falls_back) thrown = run(job, resuming());
      EXPECT_FALSE(thrown.has_value()) << thrown->what();
      ASSERT_TRUE(job.is_complete()) << error;
    }
  }
  add_row("F14", "rename: EXDEV, EEXIST, ENOTEMPTY, EACCES, EROFS; no RENAME_NOREPLACE", points,
          "fallback or a clear error; then identical");
}

TEST(Faults, F15FileSystemsThatLackThings) {
  const Job job;
  int points = 0;
  const std::pair<Kind, int> lacking[] = {{Kind::fallocate, EOPNOTSUPP}, {Kind::fallocate, ENOSYS},
                                          {Kind::lock, ENOLCK},          {Kind::lock, EOPNOTSUPP},
                                          {Kind::fsync, EINVAL},         {Kind::statvfs, ENOSYS}};
  for (const auto& [kind, error] : lacking) {
    for (const bool half_done : {false, true}) {
      prepare(job, {"", half_done, 0, true});
      FaultCalls calls;
      calls.judge = [&, kind = kind, error = error](const Call& call) { return call.kind == kind ? error : 0; };
      ExecuteOptions options = half_done ? resuming() : keeping();
      options.sync = true;
      const auto thrown = run(job, options);
      EXPECT_FALSE(thrown.has_value()) << thrown->what();
      EXPECT_TRUE(job.is_complete()) << name(kind);
      ++points;
    }
  }
  add_row("F15", "no fallocate, no locks, folders that cannot be synced, no statvfs", points, "identical");
}

TEST(Faults, F15ModesAndReadOnlyFolders) {
  const Job job;
  int points = 0;
  for (const mode_t mask : {022u, 077u, 002u, 027u}) {
    job.clean();
    const mode_t former = ::umask(mask);
    ASSERT_EQ(run(job, keeping()), std::nullopt);
    ::umask(former);
    for (const auto& entry : fs::recursive_directory_iterator(job.out())) {
      struct stat status {};
      ASSERT_EQ(::stat(entry.path().c_str(), &status), 0);
      EXPECT_EQ(status.st_mode & 07777, (entry.is_directory() ? 0777u : 0666u) & ~mask) << entry.path();
    }
    ++points;
  }
  job.clean();
  const pid_t child = ::fork();  // root may write anywhere
  if (child == 0) {
    if (::chmod(job.folder().c_str(), 0555) != 0 || (::geteuid() == 0 && ::setuid(65534) != 0)) ::_exit(77);
    const auto thrown = run(job, keeping());
    ::_exit(thrown && thrown->code() == ErrorCode::IO_WRITE ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ::chmod(job.folder().c_str(), 0755);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(job.check(), "");
  add_row("F15", "umask 022, 077, 002, 027; a folder that may not be written", points + 1,
          "modes by the umask; IO_WRITE");
}

}  // namespace
}  // namespace peft::faults
