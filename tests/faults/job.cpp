#include "faults/job.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <new>
#include <random>

#include "peft/execute.h"
#include "plan/members.h"

namespace peft::faults {
namespace {

namespace fs = std::filesystem;

// A file of BF16 matrices [rows, 32] with random finite values.
std::string shard_image(int tensors, std::int64_t rows, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::string header = "{", data;
  const std::size_t bytes = static_cast<std::size_t>(rows) * 64;
  for (int t = 0; t < tensors; ++t) {
    header += fmt::format(R"({}"layer.{}.weight":{{"dtype":"BF16","shape":[{},32],"data_offsets":[{},{}]}})",
                          t == 0 ? "" : ",", t, rows, data.size(), data.size() + bytes);
    for (std::size_t i = 0; i < bytes; i += 2) {
      data += static_cast<char>(random());
      data += static_cast<char>(0x3c + random() % 3);  // exponents around 1: no NaN
    }
  }
  header += "}";
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string shard_name(int shard) { return fmt::format("model-{:05}.safetensors", shard + 1); }

// Every way in which the bytes of a tensor come about: a copy, a rounded product, pieces, columns of all experts.
PlannedTensor planned(int kind, std::string name, const View& view) {
  PlannedTensor tensor{std::move(name), Dtype::bf16, {view.rows, view.cols}, view.rows, view.cols, {}, {}};
  switch (kind % 4) {
    case 0:
      tensor.blocks = {{0, 0, 1, view, 1}};
      break;
    case 1:
      tensor.blocks = {{0, 0, 1, view, 0.75}};
      break;
    case 2:
      tensor.blocks = {{0, 0, 1, view.row_range(view.rows / 2, view.rows - view.rows / 2), 1},
                       {view.rows - view.rows / 2, 0, 1, view.row_range(0, view.rows / 2), 1}};
      break;
    default:
      std::vector<plan::MemberView> columns;
      for (std::int64_t c = 0; c < 4; ++c) columns.push_back({view.col_range(c * 8, 8), 1, Dtype::bf16});
      plan::append_members(tensor.blocks, {.col_step = 4, .col_shift = 1}, columns);
      break;
  }
  return tensor;
}

std::string difference(const Contents& got, const Contents& expected) {
  std::string text;
  for (const auto& [name, bytes] : expected) {
    const auto it = got.find(name);
    if (it == got.end()) {
      text += name + " is missing; ";
    } else if (it->second != bytes) {
      const auto at =
          std::mismatch(bytes.begin(), bytes.end(), it->second.begin(), it->second.end()).first - bytes.begin();
      text += fmt::format("{} differs at {} of {} bytes, has {}; ", name, at, bytes.size(), it->second.size());
    }
  }
  for (const auto& [name, bytes] : got) text += expected.contains(name) ? "" : name + " is too much; ";
  return text;
}

}  // namespace

Job::Job(const JobSize& size) : size_(size) {
  std::string name = (fs::temp_directory_path() / "peft_faults_XXXXXX").string();
  folder_ = mkdtemp(name.data());
  fs::create_directories(folder_ + "/base");
  for (int s = 0; s < size.shards; ++s) {
    write_file(folder_ + "/base/" + shard_name(s),
               shard_image(size.tensors, size.rows * (s + 1), static_cast<std::uint32_t>(s)));
  }
  write_file(folder_ + "/base/tokenizer.json", std::string(3000, 't'));
  inputs_ = contents_of(folder_ + "/base");
  const Plan plan = this->plan();
  const auto images = execute_in_memory(plan);
  for (std::size_t f = 0; f < images.size(); ++f) {
    expected_[plan.files[f].name] = {reinterpret_cast<const char*>(images[f].data()), images[f].size()};
  }
  for (const auto& [text, content] : plan.texts) expected_[text] = content;
  for (const auto& [copy, path] : plan.copies) expected_[copy] = read_file(path);
}

Job::~Job() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

Plan Job::plan() const {
  Plan plan;
  for (int s = 0; s < size_.shards; ++s) {
    plan.sources.push_back(TensorFile::open(folder_ + "/base/" + shard_name(s)));
    PlannedFile file{.name = shard_name(s), .tensors = {}};
    const auto tensors = plan.sources.back()->tensors();
    for (std::uint32_t t = 0; t < tensors.size(); ++t) {
      const View view{static_cast<std::uint32_t>(s), t, 0, tensors[t].shape[0], 32, 32, 1};
      file.tensors.push_back(planned(static_cast<int>(t), std::string(tensors[t].name), view));
    }
    plan.files.push_back(std::move(file));
  }
  plan.texts = {{"config.json", "{}"}, {"model.safetensors.index.json", R"({"weight_map": {}})"}};
  plan.copies = {{"sub/tokenizer.json", folder_ + "/base/tokenizer.json"}};
  return plan;
}

void Job::clean() const {
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.path().filename() != "base") fs::remove_all(entry.path());
  }
}

std::string Job::check() const {
  if (contents_of(folder_ + "/base") != inputs_) return "an input has changed";
  const Contents output = contents_of(out());
  if (fs::exists(out()) && output != expected_)
    return "the output is there and is not complete: " + difference(output, expected_);
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (name != "base" && name != "out" && name != "out.partial-peft") return name + " was left behind";
  }
  return "";
}

bool Job::is_complete() const { return check().empty() && contents_of(out()) == expected_ && !fs::exists(staging()); }

Contents contents_of(const std::string& folder) {
  Contents contents;
  if (!fs::exists(folder)) return contents;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_directory()) continue;
    contents[fs::relative(entry.path(), folder).string()] = read_file(entry.path().string());
  }
  return contents;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::optional<Error> run(const Job& job, const ExecuteOptions& options, ExecuteReport* report) {
  try {
    const Plan plan = job.plan();
    const ExecuteReport done = execute(plan, job.out(), options);
    if (report != nullptr) *report = done;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::OUT_MEMORY, {.file = job.folder(), .problem = "out of memory"});
  }
  return std::nullopt;
}

ExecuteOptions keeping(int threads) { return {.threads = threads, .sync = false, .unfinished = Unfinished::keep}; }

ExecuteOptions resuming(int threads) { return {.threads = threads, .sync = false, .unfinished = Unfinished::resume}; }

namespace {

struct Row {
  std::string fault, scenario, result;
  long long points;
};
std::vector<Row>& rows() {
  static std::vector<Row> rows;
  return rows;
}

class Table final : public testing::Environment {
 public:
  void TearDown() override {
    if (rows().empty()) return;
    std::stable_sort(rows().begin(), rows().end(), [](const Row& a, const Row& b) {
      return std::atoi(a.fault.c_str() + 1) < std::atoi(b.fault.c_str() + 1);
    });
    std::cout << "\n| fault | scenario | injection points | result |\n|---|---|---:|---|\n";
    for (const Row& row : rows())
      std::cout << fmt::format("| {} | {} | {} | {} |\n", row.fault, row.scenario, row.points, row.result);
  }
};
const auto* const table = testing::AddGlobalTestEnvironment(new Table);

}  // namespace

void add_row(const std::string& fault, const std::string& scenario, long long points, const std::string& result) {
  rows().push_back({fault, scenario, testing::Test::HasFailure() ? "FAILED" : result, points});
}

int runs(int usual) {
  const char* wanted = std::getenv("PEFT_FAULT_RUNS");
  return wanted == nullptr ? usual : std::max(1, std::atoi(wanted));
}

}  // namespace peft::faults
