// F9, F10, F16, F18: bytes that change on the way, inputs that change meanwhile, workers that throw.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <stdexcept>

#include "faults/job.h"
#include "support/fault_calls.h"

namespace peft::faults {
namespace {

namespace fs = std::filesystem;

// Flips a bit of the byte at `at` of a file whose path has `name` in it.
auto flip(Kind kind, std::string name, std::uint64_t at, bool& flipped) {
  return [=, &flipped](const Call& call, std::byte* data, std::size_t size, off_t offset) {
    const auto begin = static_cast<std::uint64_t>(offset);
    if (call.kind != kind || call.path.find(name) == std::string::npos || at < begin || at >= begin + size) return;
    data[at - begin] ^= std::byte{4};
    flipped = true;
  };
}

TEST(Faults, F9ABitFlipsBetweenWritingAndReadingBack) {
  const Job job({.shards = 2, .tensors = 8, .rows = 40});
  const Plan plan = job.plan();
  ASSERT_EQ(run(job, keeping()), std::nullopt);
  std::vector<std::tuple<std::string, std::string, std::uint64_t>> places;  // file, tensor, byte
  for (const PlannedFile& file : plan.files) {
    const auto written = TensorFile::open(job.out() + "/" + file.name);
    for (const TensorInfo& tensor : written->tensors()) {
      for (const std::uint64_t at : {tensor.begin, (tensor.begin + tensor.end) / 2, tensor.end - 1})
        places.emplace_back(file.name, tensor.name, written->data_offset() + at);
    }
    places.emplace_back(file.name, "", 20);  // the header
  }
  for (const char* name : {"config.json", "tokenizer.json"}) places.emplace_back(name, "", 1);
  int points = 0;
  for (const Kind kind : {Kind::pwritev, Kind::pread}) {
    for (const auto& [file, tensor, at] : places) {
      SCOPED_TRACE(testing::Message() << name(kind) << " " << file << " " << tensor << " at " << at);
      job.clean();
      bool flipped = false;
      std::optional<Error> thrown;
      {
        FaultCalls calls;
        calls.spoil = flip(kind, file + ".unfinished", at, flipped);
        thrown = run(job, keeping(1 + points % 3));
      }
      EXPECT_TRUE(flipped);
      ASSERT_TRUE(thrown.has_value());
      EXPECT_EQ(thrown->code(), ErrorCode::OUT_READBACK) << thrown->what();
      EXPECT_NE(thrown->detail().file.find(file), std::string::npos) << thrown->what();
      EXPECT_EQ(thrown->detail().tensor, tensor);
      EXPECT_EQ(job.check(), "");
      ASSERT_EQ(run(job, resuming()), std::nullopt);
      ASSERT_TRUE(job.is_complete());
      ++points;
    }
  }
  add_row("F9", "a bit flips while it is written, or while it is read back", points,
          "OUT_READBACK, names the tensor; then identical");
}

TEST(Faults, F9ABitFlipsInAFinishedFile) {
  const Job job;
  ASSERT_EQ(run(job, keeping()), std::nullopt);
  int points = 0;
  for (const auto& [name, bytes] : job.expected()) {
    if (!name.ends_with(".safetensors")) continue;
    for (std::size_t at = 0; at < bytes.size(); at += bytes.size() / 7, ++points) {
      job.clean();
      ExecuteOptions part = resuming();
      part.part = 1, part.parts = 1;
      ASSERT_EQ(run(job, part), std::nullopt);
      std::string spoiled = bytes;
      spoiled[at] = static_cast<char>(spoiled[at] ^ 1);
      write_file(job.staging() + "/files/" + name, spoiled);
      ExecuteOptions finish = resuming();
      finish.finish = true;
      const auto error = run(job, finish);
      ASSERT_TRUE(error.has_value());
      EXPECT_EQ(error->code(), ErrorCode::RS_PARTS) << error->what();
      EXPECT_EQ(error->detail().got, name);
      ExecuteReport report;
      ASSERT_EQ(run(job, part, &report), std::nullopt);  // writes that file again
      EXPECT_EQ(report.files_written, 1u);
      ASSERT_EQ(run(job, finish), std::nullopt);
      ASSERT_TRUE(job.is_complete());
    }
  }
  add_row("F9", "a bit flips in a finished file before the run is resumed", points,
          "noticed by its digest; written again");
}

struct Change {
  const char* name;
  void (*make)(const std::string& path);
};

void replace_by_copy(const std::string& path) {
  fs::copy_file(path, path + ".new");
  fs::rename(path + ".new", path);
}

constexpr Change kChanges[] = {
    {"cut to nothing", [](const std::string& path) { fs::resize_file(path, 0); }},
    {"cut in the middle", [](const std::string& path) { fs::resize_file(path, fs::file_size(path) / 2); }},
    {"grown", [](const std::string& path) { write_file(path, read_file(path) + "x"); }},
    {"replaced by a copy", replace_by_copy},
    {"removed", [](const std::string& path) { fs::remove(path); }},
    {"written in place",
     [](const std::string& path) {
       const int fd = ::open(path.c_str(), O_WRONLY);
       EXPECT_EQ(::pwrite(fd, "changed", 7, 2000), 7);
       ::close(fd);
     }},
};

TEST(Faults, F10AnInputChangesMeanwhile) {
  const Job job;
  std::string sources[2] = {job.folder() + "/base/model-00001.safetensors",
                            job.folder() + "/base/model-00004.safetensors"};
  int points = 0;
  for (const Change& change : kChanges) {
    for (const std::string& source : sources) {
      const std::string before = read_file(source);
      for (const int at : {1, 3, 6, 8}) {
        for (const bool readback : {true, false}) {
          SCOPED_TRACE(testing::Message() << change.name << " at " << at);
          job.clean();
          std::atomic<int> calls = 0;
          ExecuteOptions options = keeping(2);
          options.readback = readback;
          options.progress = [&](std::uint64_t, std::uint64_t) {
            if (++calls == at) change.make(source);
          };
          const auto error = run(job, options);
          ASSERT_GE(calls, at);
          write_file(source, before);
          ASSERT_TRUE(error.has_value());
          EXPECT_EQ(error->code(), ErrorCode::IO_CHANGED) << error->what();
          EXPECT_EQ(error->detail().file, source);
          EXPECT_EQ(job.check(), "");
          EXPECT_FALSE(fs::exists(job.staging())) << "made of two versions of the input";
          ++points;
        }
      }
    }
  }
  job.clean();
  ASSERT_EQ(run(job, resuming()), std::nullopt);
  EXPECT_TRUE(job.is_complete());
  add_row("F10", "an input is cut, grown, replaced, removed or written in place in the middle of a run", points,
          "IO_CHANGED, no SIGBUS, nothing kept");
}

timespec modified(const std::string& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  return status.st_mtim;
}

void set_modified(const std::string& path, const timespec& time) {
  const timespec times[2] = {time, time};
  EXPECT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
}

void write_in_place(const std::string& path, off_t at) {
  const timespec before = modified(path);
  const int fd = ::open(path.c_str(), O_WRONLY);
  EXPECT_EQ(::pwrite(fd, "changed", 7, at), 7);
  ::close(fd);
  set_modified(path, before);  // as if the file system counted in seconds, or the clock had jumped
}

TEST(Faults, F18TimesThatDoNotTell) {
  const Job job;
  const std::string before = read_file(job.source());
  const timespec time = modified(job.source());
  const auto restore = [&] {
    write_file(job.source(), before);
    set_modified(job.source(), time);
  };
  int points = 0;
  for (const off_t at : {1000, 5000, 9000, 15000}) {
    job.clean();
    restore();
    std::atomic<bool> changed = false;
    ExecuteOptions options = keeping();
    options.progress = [&](std::uint64_t, std::uint64_t) {
      if (!changed.exchange(true)) write_in_place(job.source(), at);
    };
    const auto error = run(job, options);
    ASSERT_TRUE(error.has_value()) << "same size, inode and time";
    EXPECT_EQ(error->code(), ErrorCode::IO_CHANGED) << error->what();
    ++points;
  }
  // Between two runs.
  const auto between = [&](const std::function<void()>& change, bool is_part) {
    job.clean();
    restore();
    ExecuteOptions part = resuming();
    part.part = 1, part.parts = 1;
    bool stopped = false;
    {
      FaultCalls calls;
      int renames = 0;
      calls.judge = [&](const Call& call) { return call.kind == Kind::rename && ++renames == 3 ? EIO : 0; };
      stopped = run(job, is_part ? part : keeping()).has_value();
    }
    EXPECT_TRUE(stopped);
    change();
    ++points;
    const auto error = run(job, is_part ? part : resuming());
    return error ? std::optional(error->code()) : std::nullopt;
  };
  const auto change_data = [&] { write_in_place(job.source(), 9000); };
  const auto touch = [&] { set_modified(job.source(), {time.tv_sec + 1, 0}); };
  EXPECT_EQ(between(change_data, false), ErrorCode::RS_JOURNAL);
  EXPECT_EQ(between(change_data, true), ErrorCode::RS_JOURNAL);
  EXPECT_EQ(between(touch, false), ErrorCode::RS_JOURNAL);
  EXPECT_EQ(between(touch, true), std::nullopt) << "parts may read copies with other times";
  EXPECT_EQ(between([] {}, false), std::nullopt);
  restore();
  add_row("F18", "an input is written with its time, size and inode kept; or only its time changes", points,
          "IO_CHANGED or RS_JOURNAL, by samples of the data");
}

TEST(Faults, F16AWorkerThrowsWhileOthersWrite) {
  const Job job;
  int points = 0;
  for (std::size_t file = 0; file < 4; ++file) {
    for (std::size_t tensor = 0; tensor < 6; ++tensor, ++points) {
      job.clean();
      Plan plan = job.plan();
      for (Block& block : plan.files[file].tensors[tensor].blocks) block.scale = 1e39;
      std::optional<Error> thrown;
      try {
        execute(plan, job.out(), keeping(4));
      } catch (const Error& error) {
        thrown = error;
      }
      ASSERT_TRUE(thrown.has_value());
      EXPECT_EQ(thrown->code(), ErrorCode::NUM_OVERFLOW) << thrown->what();
      EXPECT_EQ(thrown->detail().tensor, plan.files[file].tensors[tensor].name);
      EXPECT_EQ(job.check(), "");
      EXPECT_FALSE(fs::exists(job.staging())) << "would overflow again";
    }
  }
  for (int at = 1; at <= 8; ++at, ++points) {
    job.clean();
    std::atomic<int> calls = 0;
    ExecuteOptions options = keeping(4);
    options.progress = [&](std::uint64_t, std::uint64_t) {
      if (++calls == at) throw std::runtime_error("a worker");
    };
    EXPECT_THROW(execute(job.plan(), job.out(), options), std::runtime_error);
    EXPECT_EQ(job.check(), "");
    ASSERT_EQ(run(job, resuming(4)), std::nullopt);
    ASSERT_TRUE(job.is_complete());
  }
  add_row("F16", "one of four workers throws", points, "all join, one error; then identical");
}

}  // namespace
}  // namespace peft::faults
