// A journal is believed as far as it is whole, and not at all when it is of another run.
#include "execute/resume/journal.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "support/test_files.h"

namespace peft::execution {
namespace {

using namespace safetensors;
namespace fs = std::filesystem;
using enum ErrorCode;

const std::string kFingerprint(32, 'f');

const std::vector<FinishedFile>& some_files() {
  static const std::vector<FinishedFile> files = {
      {"model-00001-of-00003.safetensors", 5'000'000'000, 0xdeadbeefdeadbeef, 8 << 20},
      {"a name with spaces.safetensors", 0, std::nullopt, 2 << 20},
      {"x", ~std::uint64_t{0}, 0, 0}};
  return files;
}

// The path of a journal that has them.
std::string write_journal(const StagingFolder& staging, const std::vector<FinishedFile>& files) {
  Journal journal(staging, kFingerprint, true);
  for (const FinishedFile& file : files) journal.add({file});
  return staging.journal_path();
}

TEST(Journal, SaysWhatWasWritten) {
  const TestFolder folder;
  const StagingFolder staging(folder / "out", Claim::fresh, false, "");
  EXPECT_TRUE(read_journals(staging.path(), kFingerprint).empty());
  write_journal(staging, some_files());
  EXPECT_EQ(read_journals(staging.path(), kFingerprint), some_files());
  EXPECT_TRUE(read_journals(folder / "none", kFingerprint).empty());
}

TEST(Journal, OfAnotherRunIsRefused) {
  const TestFolder folder;
  const StagingFolder staging(folder / "out", Claim::fresh, false, "");
  const std::string path = write_journal(staging, some_files());
  const std::string other(32, 'e');
  expect_error(error_of([&] { read_journals(staging.path(), other); }), RS_JOURNAL,
               {path, kFingerprint, other, "--overwrite"});
}

// Cut anywhere, it says the files whose lines are whole.
TEST(Journal, CutAtEachLength) {
  const TestFolder folder;
  const StagingFolder staging(folder / "out", Claim::fresh, false, "");
  const std::string path = write_journal(staging, some_files()), whole = read_text(path);
  for (std::size_t length = 0; length <= whole.size(); ++length) {
    fs::resize_file(path, 0);
    folder.write(fs::relative(path, folder.path()).string(), whole.substr(0, length));
    const auto lines = std::count(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length), '\n');
    const auto files = read_journals(staging.path(), kFingerprint);
    ASSERT_EQ(files.size(), static_cast<std::size_t>(std::max<std::ptrdiff_t>(0, lines - 1))) << length;
    EXPECT_TRUE(std::equal(files.begin(), files.end(), some_files().begin()));
  }
}

// A damaged byte never makes it say something else: it is an error, or the damaged line was the last.
TEST(Journal, EachFlippedByte) {
  const TestFolder folder;
  const StagingFolder staging(folder / "out", Claim::fresh, false, "");
  const std::string path = write_journal(staging, some_files()), whole = read_text(path);
  const std::size_t last_line = whole.rfind('\n', whole.size() - 2) + 1;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const int bit : {0, 3, 5, 7}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      folder.write(fs::relative(path, folder.path()).string(), damaged);
      std::vector<FinishedFile> files;
      const auto error = error_of([&] { files = read_journals(staging.path(), kFingerprint); });
      if (error) {
        EXPECT_EQ(error->code(), RS_JOURNAL) << error->what();
        EXPECT_LT(at, last_line);
      } else {
        ASSERT_LE(files.size(), 2u) << at;
        EXPECT_TRUE(std::equal(files.begin(), files.end(), some_files().begin()));
        EXPECT_GE(at, last_line - 1) << "a line is damaged, and a whole one follows";
      }
    }
  }
}

TEST(Journal, NoiseIsNeverAFile) {
  const TestFolder folder;
  const StagingFolder staging(folder / "out", Claim::fresh, false, "");
  const std::string path = write_journal(staging, {});
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    std::string noise = i % 2 == 0 ? read_text(path) : std::string();
    noise.resize(noise.size() + random() % 300);
    for (std::size_t at = i % 2 == 0 ? 60 : 0; at < noise.size(); ++at)
      noise[at] = static_cast<char>(random() % 5 == 0 ? '\n' : random());
    const auto other = folder.write("out.partial-peft/journal-noise", noise);
    error_of([&] { EXPECT_TRUE(read_journals(staging.path(), kFingerprint).empty()); });
    fs::remove(other);
  }
}

TEST(Journal, SeveralCountTogether) {
  const TestFolder folder;
  const StagingFolder first(folder / "out", Claim::share, false, "1-of-2"),
      second(folder / "out", Claim::share, false, "2-of-2");
  write_journal(first, {some_files()[0]});
  write_journal(second, {some_files()[1]});
  EXPECT_EQ(read_journals(first.path(), kFingerprint).size(), 2u);
}

TEST(Journal, AWithdrawnOneIsGone) {
  const TestFolder folder;
  const StagingFolder staging(folder / "out", Claim::fresh, false, "");
  Journal journal(staging, kFingerprint, false);
  journal.add(some_files());
  journal.withdraw();
  EXPECT_TRUE(read_journals(staging.path(), kFingerprint).empty());
}

}  // namespace
}  // namespace peft::execution
