// An output folder appears complete or not at all, whatever call fails and wherever the process dies.
#include "safetensors/writing/staged_output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cerrno>
#include <map>
#include <thread>

#include "base/system.h"
#include "support/fault_calls.h"
#include "support/test_files.h"

namespace peft::safetensors {
namespace {

namespace fs = std::filesystem;
using enum ErrorCode;

constexpr const char* kPartial = ".partial-peft";

using faults::Call;
using faults::Kind;

// Fails, or dies at, the n-th call; or gives little and is interrupted all the time.
class Faults final : public faults::FaultCalls {
 public:
  Faults() {
    judge = [this](const Call& call) { return verdict(call); };
    limit = [this](const Call& call) {
      if (!stutter) return call.size;
      const std::size_t little = call.kind == Kind::pread ? 3 : 1 + static_cast<std::size_t>(number) % 7;
      return std::min(call.size, little);
    };
    space = [this](struct statvfs& found) {
      if (free_bytes != ~std::uint64_t{0}) found.f_bavail = free_bytes / found.f_frsize;
    };
  }

  int fail_at = 0;  // number of the call; 0: none
  int error = EIO;
  bool persistent = false;  // all later calls of the same kind fail, too
  bool die = false;         // instead of failing
  bool no_rename_flags = false;
  bool stutter = false;
  std::uint64_t free_bytes = ~std::uint64_t{0};
  int number = 0;  // of the last call

 private:
  int verdict(const Call& call) {
    ++number;
    const bool can_stutter = call.kind == Kind::pread || call.kind == Kind::pwritev || call.kind == Kind::fallocate;
    if (stutter && can_stutter && number % 3 == 0) return EINTR;
    if (number == fail_at) {
      if (die) ::_exit(99);
      failing_ = call.kind;
    }
    if (number == fail_at || (persistent && failing_ == call.kind)) return error;
    return call.kind == Kind::rename && no_rename_flags && call.flags != 0 ? EINVAL : kPass;
  }

  std::optional<Kind> failing_;
};

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  if (!fs::exists(folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = fs::relative(entry.path(), folder).string();
    files[name] = entry.is_directory() ? "a folder" : read_text(entry.path().string());
  }
  return files;
}

std::string large_text() {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += std::to_string(i) + " ";
  return text;
}

const std::map<std::string, std::string>& complete() {
  static const std::map<std::string, std::string> files = {{"adapter_model.safetensors", large_text()},
                                                           {"adapter_config.json", "{}"},
                                                           {"sub", "a folder"},
                                                           {"sub/README.md", "read me"},
                                                           {"sub/copy.bin", std::string(300, 'c')}};
  return files;
}

// What a verb does: a large file in pieces, texts, a side file.
void write_all(const TestFolder& folder, StagedOutput::Options options) {
  StagedOutput output(folder / "out", options, {folder / "in/copy.bin"});
  const std::string text = large_text();
  NewFile& file = output.add_file("adapter_model.safetensors", text.size());
  const std::size_t half = text.size() / 2;
  file.write_at(half, bytes_of(text).subspan(half));
  const iovec parts[] = {
      {const_cast<char*>(text.data()), 10}, {nullptr, 0}, {const_cast<char*>(text.data()) + 10, half - 10}};
  file.writev_at(0, parts);
  std::string back(text.size(), ' ');
  file.read_at(0, std::as_writable_bytes(std::span(back)));
  EXPECT_EQ(back, text);
  output.add_text("adapter_config.json", "{}");
  output.add_text("sub/README.md", "read me");
  output.copy_file("sub/copy.bin", folder / "in/copy.bin");
  output.commit();
}

struct Scenario {
  const char* name;
  bool overwrite, empty_folder, no_rename_flags;
};

class StagedOutputFaults : public testing::TestWithParam<Scenario> {
 protected:
  std::map<std::string, std::string> prepare(const TestFolder& folder) {
    fs::remove_all(folder / "out");
    folder.write("in/copy.bin", std::string(300, 'c'));
    if (GetParam().empty_folder) fs::create_directory(folder / "out");
    if (GetParam().overwrite) {
      folder.write("out/config.json", "old");
      folder.write("out/old/deep.txt", "older");
    }
    return contents(folder / "out");
  }
  StagedOutput::Options options() { return {.overwrite = GetParam().overwrite}; }

  // Whether an old folder exists, and nothing but it, the input and (when `done`) the new output.
  static void expect_clean(const TestFolder& folder) {
    EXPECT_EQ(read_text(folder / "in/copy.bin"), std::string(300, 'c'));
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      const std::string name = entry.path().filename().string();
      EXPECT_TRUE(name == "in" || name == "out") << name << " was left behind";
    }
  }

  // What must hold after a run that may have failed.
  static void expect_old_or_complete(const TestFolder& folder, const std::optional<Error>& thrown,
                                     const std::map<std::string, std::string>& old) {
    if (!thrown) {
      EXPECT_EQ(contents(folder / "out"), complete());  // the call did not matter
      // When tidying up after the commit is what fails, the old folder is left, or the empty staging folder.
      std::error_code none;
      if (!GetParam().overwrite && !fs::is_empty(folder / "out.partial-peft", none)) expect_clean(folder);
      return;
    }
    const std::string message = thrown->what();
    EXPECT_NE(message.find(folder.path()), std::string::npos) << message;
    EXPECT_EQ(info(thrown->code()).exit_code, 3) << message;
    // Without renameat2's flags, the old folder is renamed first. If no rename works after that, the error says where.
    if (message.find("it is now " + (folder / "out.old-peft")) != std::string::npos) {
      EXPECT_TRUE(GetParam().no_rename_flags);
      EXPECT_EQ(contents(folder / "out.old-peft"), old) << message;
      return;
    }
    EXPECT_EQ(contents(folder / "out"), old) << message;
    EXPECT_EQ(fs::exists(folder / "out"), GetParam().overwrite || GetParam().empty_folder) << message;
    expect_clean(folder);
  }
};

TEST_P(StagedOutputFaults, EachCallThatFailsLeavesTheOldState) {
  for (const auto& [persistent, error] : {std::pair{false, EIO}, std::pair{true, ENOSPC}}) {
    int n = 0;
    for (bool reached = true; reached;) {
      ++n;
      SCOPED_TRACE(testing::Message() << "call " << n << " errno " << error << (persistent ? " persistent" : ""));
      const TestFolder folder;
      const auto old = prepare(folder);
      std::optional<Error> thrown;
      {
        Faults faults;
        faults.fail_at = n;
        faults.error = error;
        faults.persistent = persistent;
        faults.no_rename_flags = GetParam().no_rename_flags;
        thrown = error_of([&] { write_all(folder, options()); });
        reached = faults.number >= n;
      }
      expect_old_or_complete(folder, thrown, old);
      ASSERT_FALSE(HasFailure());
      EXPECT_TRUE(reached || !thrown);
    }
    EXPECT_GT(n, 35) << "calls of a whole run";
  }
}

TEST_P(StagedOutputFaults, AProcessKilledAnywhereLeavesOldOrNew) {
  for (int n = 1;; ++n) {
    SCOPED_TRACE(testing::Message() << "call " << n);
    const TestFolder folder;
    const auto old = prepare(folder);
    const pid_t child = ::fork();
    if (child == 0) {
      Faults faults;
      faults.fail_at = n;
      faults.die = true;
      faults.no_rename_flags = GetParam().no_rename_flags;
      write_all(folder, options());
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    const auto now = contents(folder / "out");
    // Without renameat2's flags there is a moment in which the old folder has its other name.
    const auto aside = contents(folder / "out.old-peft");
    EXPECT_TRUE(now == old || now == complete() || (GetParam().no_rename_flags && aside == old));
    if (WEXITSTATUS(status) == 0) break;
    if (!fs::exists(folder / "out.old-peft")) {
      write_all(folder, {.overwrite = true});  // the next run
      EXPECT_EQ(contents(folder / "out"), complete());
      expect_clean(folder);
    }
    ASSERT_FALSE(HasFailure());
  }
}

INSTANTIATE_TEST_SUITE_P(All, StagedOutputFaults,
                         testing::Values(Scenario{"fresh", false, false, false}, Scenario{"empty", false, true, false},
                                         Scenario{"overwrite", true, false, false},
                                         Scenario{"fresh_no_flags", false, false, true},
                                         Scenario{"overwrite_no_flags", true, false, true}),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(StagedOutput, ShortAndInterruptedCallsChangeNothing) {
  const TestFolder folder;
  folder.write("in/copy.bin", std::string(300, 'c'));
  Faults faults;
  faults.stutter = true;
  write_all(folder, {});
  EXPECT_EQ(contents(folder / "out"), complete());
  EXPECT_GT(faults.number, 1000);
}

TEST(StagedOutput, FileSystemsThatCannotReserve) {
  const TestFolder folder;
  folder.write("in/copy.bin", std::string(300, 'c'));
  for (const int error : {EOPNOTSUPP, ENOSYS}) {
    Faults faults;
    faults.error = error;
    for (int n = 1; n < 30; ++n) {
      fs::remove_all(folder / "out");
      faults.number = 0;
      faults.fail_at = n;
      const auto thrown = error_of([&] { write_all(folder, {}); });
      EXPECT_TRUE(thrown.has_value() || contents(folder / "out") == complete());
    }
  }
}

TEST(StagedOutput, SeveralThreadsWriteOneFile) {
  const TestFolder folder;
  StagedOutput output(folder / "out", {}, {});
  constexpr std::size_t kSize = 1 << 20, kPiece = 4096;
  NewFile& file = output.add_file("x.bin", kSize);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t at = t * kPiece; at < kSize; at += 4 * kPiece)
        file.write_at(at, bytes_of(std::string(kPiece, static_cast<char>('a' + at / kPiece % 26))));
    });
  }
  for (auto& thread : threads) thread.join();
  output.commit();
  const std::string written = read_text(folder / "out/x.bin");
  ASSERT_EQ(written.size(), kSize);
  for (std::size_t at = 0; at < kSize; ++at) ASSERT_EQ(written[at], static_cast<char>('a' + at / kPiece % 26));
}

TEST(StagedOutput, AfterAFailedWriteNothingIsCommitted) {
  const TestFolder folder;
  Faults faults;
  StagedOutput output(folder / "out", {}, {});
  NewFile& file = output.add_file("x", 4);
  faults.fail_at = faults.number + 1;
  EXPECT_TRUE(error_of([&] { file.write_at(0, bytes_of("1234")); }).has_value());
  file.write_at(0, bytes_of("1234"));  // works again
  expect_error(error_of([&] { output.commit(); }), IO_WRITE, {"an earlier write"});
  EXPECT_FALSE(fs::exists(folder / "out"));
}

TEST(StagedOutput, WritesStayInTheFile) {
  const TestFolder folder;
  StagedOutput output(folder / "out", {}, {});
  NewFile& file = output.add_file("x", 4);
  expect_error(error_of([&] { file.write_at(2, bytes_of("123")); }), INTERNAL, {"at most 4 bytes"});
  expect_error(error_of([&] { file.write_at(~0ull, bytes_of("123")); }), INTERNAL, {"at most 4 bytes"});
  for (const char* name : {"../x", "/x", "a/../../x", "", ".", "a/", "a/./b"}) {
    expect_error(error_of([&] { output.add_text(name, "x"); }), INTERNAL, {"leaves the output folder"});
  }
}

TEST(StagedOutput, AliasesOfInputs) {
  const TestFolder folder;
  const std::string input = folder.write("in/adapter_model.safetensors", "x");
  fs::create_directory_symlink("in", folder / "link");
  fs::create_directory(folder / "hard");
  fs::create_hard_link(input, folder / "hard/model.safetensors");
  folder.write("blob", "x");
  fs::create_directory(folder / "cache");
  fs::create_symlink("../blob", folder / "cache/adapter_model.safetensors");
  for (const bool overwrite : {false, true}) {
    const auto error = [&](const std::string& out, const std::string& in) {
      return error_of([&] { StagedOutput(out, {.overwrite = overwrite}, {in}); });
    };
    for (const char* out : {"in", "in/", "./in", "link", "in/../in", "hard"}) {
      expect_error(error(folder / out, input), OUT_ALIAS, {input, "--out"});
    }
    expect_error(error(folder.path(), input), OUT_ALIAS, {input});
    expect_error(error(folder / "in", folder / "link/adapter_model.safetensors"), OUT_ALIAS, {"link"});
    expect_error(error(folder / "cache", folder / "cache/adapter_model.safetensors"), OUT_ALIAS, {"cache"});
    EXPECT_EQ(error(folder / "in/merged", input), std::nullopt) << "a new folder inside of the input's";
    EXPECT_EQ(error(folder / "in2", input), std::nullopt);
  }
  EXPECT_EQ(read_text(input), "x");
}

TEST(StagedOutput, ExistingOutputs) {
  const TestFolder folder;
  folder.write("out/a", "1");
  folder.write("out/b", "2");
  const auto error = [&](const char* out, bool overwrite) {
    return error_of([&] { StagedOutput(folder / out, {.overwrite = overwrite}, {}); });
  };
  expect_error(error("out", false), OUT_EXISTS, {folder / "out", "2 files", "--overwrite"});
  EXPECT_EQ(error("out", true), std::nullopt);
  folder.write("file", "x");
  expect_error(error("file", true), OUT_EXISTS, {"a file"});
  fs::create_symlink("nowhere", folder / "dangling");
  expect_error(error("dangling", true), OUT_EXISTS, {"leads to nothing"});
  expect_error(error("none/out", false), IO_WRITE, {"none/out", "No such file", "--out"});
  EXPECT_EQ(contents(folder / "out").size(), 2u);

  const fs::path former = fs::current_path();
  folder.write("out/config.json", "{}");
  fs::create_directory(folder / "out/here");
  fs::current_path(folder / "out/here");
  expect_error(error("out", true), OUT_EXISTS, {"the current folder"});
  fs::current_path(former);
}

TEST(StagedOutput, AnOutputThatAppearsMeanwhileIsNotReplaced) {
  const TestFolder folder;
  StagedOutput output(folder / "out", {}, {});
  output.add_text("x", "new");
  folder.write("out/x", "theirs");
  expect_error(error_of([&] { output.commit(); }), OUT_EXISTS, {folder / "out"});
  EXPECT_EQ(read_text(folder / "out/x"), "theirs");
}

TEST(StagedOutput, ALinkedOutputFolderIsFollowed) {
  const TestFolder folder;
  fs::create_directory(folder / "real");
  fs::create_directory_symlink("real", folder / "out");
  StagedOutput output(folder / "out", {}, {});
  output.add_text("x", "new");
  output.commit();
  EXPECT_TRUE(fs::is_symlink(folder / "out"));
  EXPECT_EQ(read_text(folder / "real/x"), "new");
}

TEST(StagedOutput, OneRunAtATimeAndLeftoversOfAKilledOne) {
  const TestFolder folder;
  folder.write(std::string("out") + kPartial + "/half.safetensors", "half");
  folder.write(std::string("out") + kPartial + "/sub/deep", "half");
  {
    StagedOutput first(folder / "out", {}, {});
    expect_error(error_of([&] { StagedOutput(folder / "out", {}, {}); }), OUT_LOCKED, {folder / "out", "another run"});
    first.add_text("x", "1");
    first.commit();
  }
  EXPECT_EQ(contents(folder / "out"), (std::map<std::string, std::string>{{"x", "1"}}));
  EXPECT_FALSE(fs::exists(folder / (std::string("out") + kPartial)));
}

TEST(StagedOutput, SpaceIsCheckedBeforeAnythingIsWritten) {
  const TestFolder folder;
  Faults faults;
  faults.free_bytes = 1 << 20;
  expect_error(error_of([&] { StagedOutput(folder / "out", {.expected_bytes = 2 << 20}, {}); }), OUT_SPACE,
               {"2097152 bytes", "1048576 bytes free"});
  StagedOutput output(folder / "out", {}, {});
  expect_error(error_of([&] { output.add_file("x", 2 << 20); }), OUT_SPACE, {"2097152 bytes"});
  EXPECT_EQ(contents(folder / (std::string("out") + kPartial)).size(), 1u) << "the folder for the files";
}

TEST(StagedOutput, PermissionsFollowTheUmask) {
  const TestFolder folder;
  for (const mode_t mask : {022u, 077u, 002u}) {
    const mode_t former = ::umask(mask);
    fs::remove_all(folder / "out");
    StagedOutput output(folder / "out", {.sync = false}, {});
    output.add_text("x", "1");
    output.commit();
    ::umask(former);
    struct stat file {
    }, directory{};
    ASSERT_EQ(::stat((folder / "out/x").c_str(), &file), 0);
    ASSERT_EQ(::stat((folder / "out").c_str(), &directory), 0);
    EXPECT_EQ(file.st_mode & 07777, 0666u & ~mask);
    EXPECT_EQ(directory.st_mode & 07777, 0777u & ~mask);
  }
}

TEST(StagedOutput, AReplacedFolderKeepsItsPermissions) {
  const TestFolder folder;
  folder.write("out/config.json", "old");
  ASSERT_EQ(::chmod((folder / "out").c_str(), 0750), 0);
  StagedOutput output(folder / "out", {.overwrite = true}, {});
  output.add_text("config.json", "new");
  output.commit();
  struct stat status {};
  ASSERT_EQ(::stat((folder / "out").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0750u);
  EXPECT_TRUE(output.warnings().empty());
}

TEST(StagedOutput, CopiesOfWhatIsNoFile) {
  const TestFolder folder;
  StagedOutput output(folder / "out", {}, {});
  expect_error(error_of([&] { output.copy_file("x", folder.path()); }), IO_KIND, {"a folder"});
  expect_error(error_of([&] { output.copy_file("x", folder / "none"); }), IO_OPEN, {"none"});
}

TEST(StagedOutput, WithoutSyncNothingIsFlushed) {
  const TestFolder folder;
  folder.write("in/copy.bin", std::string(300, 'c'));
  class NoFlush final : public SystemCalls {
   public:
    int fsync(int) override { return flushes++, 0; }
    int fdatasync(int) override { return flushes++, 0; }
    int flushes = 0;
  } calls;
  SystemCalls* former = SystemCalls::replace(&calls);
  write_all(folder, {.sync = false});
  EXPECT_EQ(calls.flushes, 0);
  fs::remove_all(folder / "out");
  write_all(folder, {});
  EXPECT_EQ(calls.flushes, 4 + 3);  // four files; the subfolder, the folder and the one it lies in
  SystemCalls::replace(former);
}

TEST(NewFile, CallsOfTheSystemEndWhereBlocksOfTheFileDo) {
  const TestFolder folder;
  const std::string text(3 * NewFile::kBlock, 'x');
  Faults faults;
  std::vector<std::size_t> sizes;
  faults.judge = [&](const Call& call) {
    if (call.kind == Kind::pwritev) sizes.push_back(call.size);
    return Faults::kPass;
  };
  NewFile file(folder / "file", 2 * text.size());
  file.write_at(1000, bytes_of(text));
  EXPECT_EQ(sizes, (std::vector<std::size_t>{NewFile::kBlock - 1000, NewFile::kBlock, NewFile::kBlock, 1000}));
  std::string back(text.size(), ' ');
  file.read_at(1000, std::as_writable_bytes(std::span(back)));
  EXPECT_EQ(back, text);
}

}  // namespace
}  // namespace peft::safetensors
