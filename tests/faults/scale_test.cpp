// F19: sizes that no test writes. Headers are real, data are holes in sparse files.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "faults/job.h"

namespace peft::faults {
namespace {

namespace fs = std::filesystem;

// A file of BF16 tensors [rows, cols] without data.
void make_sparse(const std::string& path, int tensors, std::int64_t rows, std::int64_t cols) {
  std::string header = "{";
  const std::int64_t bytes = rows * cols * 2;
  for (int t = 0; t < tensors; ++t) {
    header += fmt::format(R"({}"{}.{}":{{"dtype":"BF16","shape":[{},{}],"data_offsets":[{},{}]}})", t == 0 ? "" : ",",
                          fs::path(path).stem().string(), t, rows, cols, t * bytes, (t + 1) * bytes);
  }
  header += "}";
  const std::uint64_t length = header.size();
  write_file(path, std::string(reinterpret_cast<const char*>(&length), 8) + header);
  fs::resize_file(path, 8 + length + static_cast<std::uint64_t>(tensors * bytes));
}

// What a process has in memory of its own, in MiB.
double anonymous_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::atof(line.c_str() + 8) / 1024;
  }
  return -1;
}

Plan plan_of(const std::string& folder, int shards) {
  Plan plan;
  for (int s = 0; s < shards; ++s) {
    plan.sources.push_back(TensorFile::open(fmt::format("{}/base/{:05}.safetensors", folder, s)));
    PlannedFile file{.name = fmt::format("{:05}.safetensors", s), .tensors = {}};
    const auto tensors = plan.sources.back()->tensors();
    for (std::uint32_t t = 0; t < tensors.size(); ++t) {
      file.tensors.push_back(copy_of(tensors[t], t, std::string(tensors[t].name), Dtype::bf16));
      file.tensors.back().blocks[0].source.source = static_cast<std::uint32_t>(s);
    }
    plan.files.push_back(std::move(file));
  }
  return plan;
}

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "peft_scale_XXXXXX").string();
    path = mkdtemp(name.data());
    fs::create_directory(path + "/base");
  }
  ~Folder() { fs::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string path;
};

// Runs in a process of its own, with few descriptors; returns the exit code.
template <class Body>
int in_child(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{64, 64};
    ::setrlimit(RLIMIT_NOFILE, &limit);
    ::_exit(body());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

// 200 shards of 5 GiB: planned and checked, and refused before anything is written, unless this disk can take them.
TEST(Faults, F19ATerabyteIsPlannedAndItsSpaceChecked) {
  const Folder folder;
  make_sparse(folder.path + "/base/00000.safetensors", 4, 16, 1024);
  for (int s = 1; s <= 200; ++s) make_sparse(fmt::format("{}/base/{:05}.safetensors", folder.path, s), 500, 1024, 5243);
  const int code = in_child([&] {
    const Plan plan = plan_of(folder.path, 201);
    std::atomic<bool> cancel = false;
    ExecuteOptions options = keeping();
    options.cancel = &cancel;
    options.progress = [&](std::uint64_t, std::uint64_t) { cancel = true; };
    try {
      execute(plan, folder.path + "/out", options);
    } catch (const Error& error) {
      return error.code() == ErrorCode::OUT_SPACE || error.code() == ErrorCode::INTERRUPTED ? 0 : 1;
    }
    return 2;
  });
  EXPECT_EQ(code, 0);
  EXPECT_FALSE(fs::exists(folder.path + "/out"));
  add_row("F19", "1 TiB of sparse shards, 100,000 tensors, RLIMIT_NOFILE 64: all of it", 1, "OUT_SPACE at once");
}

// One part of it is a small file: really written, the others are not looked at.
TEST(Faults, F19APartOfATerabyteIsWritten) {
  const Folder folder;
  make_sparse(folder.path + "/base/00000.safetensors", 4, 16, 1024);
  for (int s = 1; s <= 200; ++s) make_sparse(fmt::format("{}/base/{:05}.safetensors", folder.path, s), 500, 1024, 5243);
  const int code = in_child([&] {
    const Plan plan = plan_of(folder.path, 201);
    const double planned = anonymous_mib();
    ExecuteOptions options = resuming();
    options.part = 201, options.parts = 201;
    double most = 0;
    options.progress = [&](std::uint64_t, std::uint64_t) { most = std::max(most, anonymous_mib() - planned); };
    const ExecuteReport report = execute(plan, folder.path + "/out", options);
    return report.files_written == 1 && report.bytes_out < 200'000 && most < 64 ? 0 : 1;
  });
  EXPECT_EQ(code, 0);
  add_row("F19", "part 201 of 201 of it", 1, "written; below 64 MiB besides the plan");
}

TEST(Faults, F19TwoThousandShardsWithFewDescriptors) {
  const Folder folder;
  for (int s = 0; s < 2000; ++s) make_sparse(fmt::format("{}/base/{:05}.safetensors", folder.path, s), 50, 2, 16);
  const int code = in_child([&] {
    const Plan plan = plan_of(folder.path, 2000);
    const double before = anonymous_mib();
    double most = 0;
    ExecuteOptions options = keeping(2);
    options.progress = [&](std::uint64_t done, std::uint64_t) {
      if (done % 64 == 0) most = std::max(most, anonymous_mib() - before);
    };
    const ExecuteReport report = execute(plan, folder.path + "/out", options);
    return report.files_written == 2000 && most < 64 ? 0 : 1;
  });
  EXPECT_EQ(code, 0);
  for (int s = 0; s < 2000; s += 97)
    EXPECT_EQ(fs::file_size(fmt::format("{}/out/{:05}.safetensors", folder.path, s)) % 8, 0u);
  add_row("F19", "2,000 shards, 100,000 tensors, RLIMIT_NOFILE 64", 1, "complete; below 64 MiB");
}

// More than 2^31 elements, and bytes beyond 4 GiB that must arrive.
TEST(Faults, F19OffsetsBeyondFourGibibytes) {
  const Folder folder;
  const std::string path = folder.path + "/base/00000.safetensors";
  const std::int64_t rows = std::int64_t{3} << 20, cols = 1024;  // 6 GiB
  make_sparse(path, 1, rows, cols);
  Plan plan = plan_of(folder.path, 1);
  const std::uint64_t data = plan.sources[0]->data_offset();
  const std::int64_t row = rows - 3;
  const std::string marked(static_cast<std::size_t>(cols) * 2, '\x3f');
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(data + static_cast<std::uint64_t>(row * cols * 2)));
    file << marked;
  }
  plan.sources[0] = TensorFile::open(path);
  PlannedTensor& tensor = plan.files[0].tensors[0];
  tensor.blocks[0].source = tensor.blocks[0].source.row_range(row - 1, 3);
  tensor.shape = {3, cols};
  tensor.rows = 3;
  execute(plan, folder.path + "/out", keeping(2));
  const auto written = TensorFile::open(folder.path + "/out/00000.safetensors");
  const auto bytes = written->bytes(written->tensors()[0]);
  EXPECT_EQ(std::memcmp(bytes.data() + marked.size(), marked.data(), marked.size()), 0);
  EXPECT_EQ(bytes[0], std::byte{0});
  EXPECT_EQ(bytes[2 * marked.size()], std::byte{0});
  long long points = 1;
  if (std::getenv("PEFT_FAULT_LARGE") != nullptr) {  // writes 6 GiB
    const Plan large = plan_of(folder.path, 1);
    ExecuteOptions options = keeping(2);
    options.overwrite = true;
    execute(large, folder.path + "/out", options);
    const auto whole = TensorFile::open(folder.path + "/out/00000.safetensors");
    const auto all = whole->bytes(whole->tensors()[0]);
    EXPECT_EQ(std::memcmp(all.data() + row * cols * 2, marked.data(), marked.size()), 0);
    ++points;
  }
  add_row("F19", "3 * 2^30 elements, offsets beyond 4 GiB (PEFT_FAULT_LARGE=1 writes them as well)", points,
          "right bytes");
}

}  // namespace
}  // namespace peft::faults
