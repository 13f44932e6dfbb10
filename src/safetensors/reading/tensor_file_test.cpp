// Files on disk: mapped, prefetched, and changed under the reader.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "base/system.h"
#include "safetensors/reading/mapping.h"
#include "support/test_files.h"

namespace peft::safetensors {
namespace {

constexpr std::size_t kBytes = 64 << 10;

std::string large_image() {
  return image(
      "{" + entry("a", "U8", "[32768]", "[0,32768]") + "," + entry("b", "U8", "[32768]", "[32768,65536]") + "}",
      kBytes);
}

std::uint64_t sum(std::span<const std::byte> bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), std::uint64_t{0},
                         [](std::uint64_t s, std::byte b) { return s + static_cast<std::uint64_t>(b); });
}

TEST(TensorFile, OpenReadsWhatParseReads) {
  const TestFolder folder;
  const std::string bytes = large_image();
  const auto file = TensorFile::open(folder.write("x.safetensors", bytes));
  const auto memory = parse(bytes);
  ASSERT_EQ(file->tensors().size(), memory->tensors().size());
  for (std::size_t i = 0; i < file->tensors().size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(file->bytes(file->tensors()[i]), memory->bytes(memory->tensors()[i])));
  }
  EXPECT_EQ(file->data_offset(), memory->data_offset());
  EXPECT_EQ(file->file_size(), bytes.size());
  file->prefetch(0, kBytes);
  file->prefetch(kBytes, ~std::uint64_t{0} / 2);
  file->release(0, kBytes);
  file->release(100, 50);
  EXPECT_EQ(sum(file->bytes(file->tensors()[1])), sum(memory->bytes(memory->tensors()[1])));
  file->check_unchanged();
}

std::vector<TensorInMemory> three_tensors(std::span<const std::byte> memory) {
  return {{"b", Dtype::f32, {2, 3}, memory.data() + 64},
          {"a", Dtype::bf16, {5}, memory.data()},
          {"empty", Dtype::f64, {0, 4}, nullptr}};
}

TEST(TensorFile, ReadsTensorsWhereTheyLieInMemory) {
  std::vector<std::byte> memory(128);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>(i);
  const auto file = TensorFile::of(three_tensors(memory), "tensors");
  ASSERT_EQ(file->tensors().size(), 3u);
  const TensorInfo& b = *file->find("b");
  EXPECT_EQ(file->bytes(b).data(), memory.data() + 64);
  EXPECT_EQ(b.bytes(), 24u);
  EXPECT_EQ(b.dtype_name, "F32");
  EXPECT_TRUE(std::ranges::equal(b.shape, std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(file->bytes(*file->find("a")).data(), memory.data());
  EXPECT_EQ(file->find("empty")->bytes(), 0u);
  EXPECT_EQ(file->find("c"), nullptr);
  EXPECT_EQ(file->file_size(), 34u);
  file->check_unchanged();
}

TEST(TensorFile, RefusesInMemoryWhatAFileMayNotHold) {
  const std::vector<std::byte> memory(128);
  const auto code_of = [&](TensorInMemory tensor) {
    std::vector<TensorInMemory> tensors = three_tensors(memory);
    tensors.push_back(std::move(tensor));
    const auto error = error_of([&] { TensorFile::of(tensors, "tensors", {.max_tensors = 4}); });
    return error ? std::string(info(error->code()).name) : std::string();
  };
  EXPECT_EQ(code_of({"c", Dtype::f32, {1}, memory.data()}), "");  // bytes of another tensor: fine
  EXPECT_EQ(code_of({"a", Dtype::f32, {1}, memory.data()}), "ST_DUP");
  EXPECT_EQ(code_of({"", Dtype::f32, {1}, memory.data()}), "ST_NAME");
  EXPECT_EQ(code_of({"c", Dtype::f4, {3}, memory.data()}), "ST_BITS");
  EXPECT_EQ(code_of({"c", Dtype::f32, {INT64_MAX, 4}, memory.data()}), "ST_OVERFLOW");
  EXPECT_EQ(code_of({"c", Dtype::f32, std::vector<std::int64_t>(17, 1), memory.data()}), "ST_LIMIT");
  expect_error(error_of([&] { TensorFile::of(three_tensors(memory), "tensors", {.max_tensors = 2}); }),
               ErrorCode::ST_LIMIT, {"tensors", "at most 2"});
}

TEST(TensorFile, AFileThatShrinksReadsZerosAndIsReported) {
  const TestFolder folder;
  const std::string path = folder.write("x.safetensors", large_image());
  const auto file = TensorFile::open(path);
  ASSERT_EQ(::truncate(path.c_str(), 8192), 0);
  EXPECT_EQ(sum(file->bytes(*file->find("b"))), 0u);  // would be SIGBUS
  file->prefetch(0, kBytes);
  expect_error(error_of([&] { file->check_unchanged(); }), ErrorCode::IO_CHANGED,
               {path, "8192 bytes", "is another program writing it?"});
}

// Size, inode and time are as before, but a page has been missing meanwhile.
TEST(TensorFile, AFileThatShrankForATimeIsReported) {
  const TestFolder folder;
  const std::string bytes = large_image(), path = folder.write("x.safetensors", bytes);
  struct stat before {};
  ASSERT_EQ(::stat(path.c_str(), &before), 0);
  const auto file = TensorFile::open(path);
  ASSERT_EQ(::truncate(path.c_str(), 4096), 0);
  EXPECT_EQ(sum(file->bytes(*file->find("b"))), 0u);
  folder.write("x.safetensors", bytes);
  const timespec times[] = {before.st_atim, before.st_mtim};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  expect_error(error_of([&] { file->check_unchanged(); }), ErrorCode::IO_CHANGED, {path, "could not be read"});
}

TEST(TensorFile, ManyThreadsMayHitTheMissingPages) {
  const TestFolder folder;
  const std::string path = folder.write("x.safetensors", large_image());
  std::vector<std::shared_ptr<const TensorFile>> files(100);
  for (auto& file : files) file = TensorFile::open(path);  // more than one block of guard slots
  ASSERT_EQ(::truncate(path.c_str(), 4096), 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (const auto& file : files) EXPECT_EQ(sum(file->bytes(*file->find("b"))), 0u);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& file : files) EXPECT_TRUE(error_of([&] { file->check_unchanged(); }).has_value());
}

TEST(TensorFile, ChangedReplacedGrownRemoved) {
  const TestFolder folder;
  const auto opened = [&](const char* name) { return TensorFile::open(folder.write(name, large_image())); };
  const auto grown = opened("grown.safetensors");
  std::ofstream(folder / "grown.safetensors", std::ios::app) << "x";
  expect_error(error_of([&] { grown->check_unchanged(); }), ErrorCode::IO_CHANGED, {"changed"});

  const auto replaced = opened("replaced.safetensors");
  folder.write("new", large_image());
  std::filesystem::rename(folder / "new", folder / "replaced.safetensors");
  expect_error(error_of([&] { replaced->check_unchanged(); }), ErrorCode::IO_CHANGED, {"was replaced"});

  const auto touched = opened("touched.safetensors");
  const timespec times[] = {{0, UTIME_OMIT}, {1'000'000'000, 1}};
  ASSERT_EQ(::utimensat(AT_FDCWD, (folder / "touched.safetensors").c_str(), times, 0), 0);
  expect_error(error_of([&] { touched->check_unchanged(); }), ErrorCode::IO_CHANGED, {"written since"});

  const auto removed = opened("removed.safetensors");
  std::filesystem::remove(folder / "removed.safetensors");
  expect_error(error_of([&] { removed->check_unchanged(); }), ErrorCode::IO_CHANGED, {"went away"});
}

// A SIGBUS that is not ours still ends the process, or reaches the handler that was there before.
TEST(SigbusDeathTest, OtherMappingsAreNotOurs) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto fault = [] {
    const TestFolder folder;
    const auto file = TensorFile::open(folder.write("x.safetensors", large_image()));  // installs the guard
    const int fd = ::open(folder.write("y", "y").c_str(), O_RDONLY);
    const auto* data = static_cast<const volatile char*>(::mmap(nullptr, 8192, PROT_READ, MAP_SHARED, fd, 0));
    std::exit(data[4096]);
  };
  EXPECT_EXIT(
      {
        ::signal(SIGBUS, SIG_DFL);
        fault();
      },
      testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(
      {
        ::signal(SIGBUS, [](int) { ::_exit(42); });
        fault();
      },
      testing::ExitedWithCode(42), "");
}

// Calls that are interrupted, give little, or fail.
class Flaky : public SystemCalls {
 public:
  Flaky() : former_(replace(this)) {}
  ~Flaky() override { replace(former_); }
  Flaky(const Flaky&) = delete;
  Flaky& operator=(const Flaky&) = delete;

  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
    ++calls;
    if (calls == fail_at) {
      errno = EIO;
      return -1;
    }
    if (calls % 3 == 0) {
      errno = EINTR;
      return -1;
    }
    return SystemCalls::pread(fd, data, std::min<std::size_t>(size, 1 + static_cast<std::size_t>(calls) % 7), offset);
  }
  int calls = 0, fail_at = -1;

 private:
  SystemCalls* former_;
};

TEST(TensorFile, ShortAndInterruptedReads) {
  const TestFolder folder;
  const std::string path = folder.write("x.safetensors", large_image());
  Flaky flaky;
  EXPECT_EQ(TensorFile::open(path)->tensors().size(), 2u);
  EXPECT_GT(flaky.calls, 100);
}

TEST(TensorFile, EveryReadThatFailsIsReported) {
  const TestFolder folder;
  const std::string path = folder.write("x.safetensors", large_image());
  for (int n = 1;; ++n) {
    Flaky flaky;
    flaky.fail_at = n;
    const auto error = error_of([&] { TensorFile::open(path); });
    if (flaky.calls < n) break;
    expect_error(error, ErrorCode::IO_OPEN, {path, "Input/output error"});
  }
}

}  // namespace
}  // namespace peft::safetensors
