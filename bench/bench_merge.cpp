// A merge of a made-up bf16 model, file to file, against cp of the same bytes; and in memory, against reading and
// writing what it changes.
//
//   bench_merge DIR [--gb N] [--rounds N] [--rank R] [--adapter BF16|F32] [--swapped] [--in-turn] [--durable]
//                   [--memory-only] [--only TEXT]
//
// Candidates alternate, each into a new file, twice in a row: the first run gets the second the pages that it will ask
// for, which a virtual machine may have given back to its host. The least and the median of all rounds are printed.
// --durable: synced and read back, against cp + sync + cmp. --in-turn: stored [in, out], gate and up in turn, as
// gpt-oss. --only: of what is run file to file, what has TEXT in its name.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "execute/merge/merger.h"
#include "peft/execute.h"
#include "results.h"

namespace {

namespace fs = std::filesystem;
using peft::Dtype;
using peft::MergeMode;
using peft::Plan;
using peft::View;

struct Options {
  fs::path dir;
  double gb = 4;
  int rounds = 5, rank = 8;
  fs::path base() const { return dir / (swapped ? "base_swapped.safetensors" : "base.safetensors"); }
  Dtype adapter = Dtype::bf16;
  bool swapped = false, in_turn = false, durable = false, memory_only = false;
  std::string only;
};

// As Qwen3-30B-A3B's gate_up_proj: [128, 1536, 2048]; or [128, 2048, 1536].
constexpr std::int64_t kExperts = 128, kOut = 1536, kIn = 2048;

double wall() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void shell(const std::string& command) {
  if (std::system(command.c_str()) != 0) std::exit(1);
}

// Numbers of about 2^-6, all different.
void write_tensors(const fs::path& path, const std::vector<peft::NewTensor>& tensors) {
  const peft::FileLayout layout = peft::layout_file(tensors);
  std::ofstream file(path, std::ios::binary);
  file.write(layout.head.data(), static_cast<std::streamsize>(layout.head.size()));
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> words(1 << 17);
  for (std::size_t i = 0; i < layout.order.size(); ++i) {
    const peft::NewTensor& tensor = tensors[layout.order[i]];
    const bool is_bf16 = tensor.dtype == Dtype::bf16;
    std::uint64_t left = i + 1 < layout.order.size() ? layout.begin[layout.order[i + 1]] : layout.data_bytes;
    left -= layout.begin[layout.order[i]];
    while (left > 0) {
      for (std::uint64_t& word : words) {
        word = is_bf16 ? (random() & 0x81FF81FF81FF81FFull) | 0x3C003C003C003C00ull
                       : (random() & 0x81FFFFFF81FFFFFFull) | 0x3C0000003C000000ull;
      }
      const std::uint64_t some = std::min<std::uint64_t>(left, words.size() * 8);
      file.write(reinterpret_cast<const char*>(words.data()), static_cast<std::streamsize>(some));
      left -= some;
    }
  }
}

Plan make_plan(const Options& options) {
  const std::int64_t layers =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(options.gb * 1e9) / (2 * kExperts * kOut * kIn));
  const std::int64_t rows = options.swapped ? kIn : kOut, cols = options.swapped ? kOut : kIn;
  std::vector<peft::NewTensor> base, adapter;
  // A matrix for each expert, or two.
  const std::int64_t parts = options.in_turn ? 2 : 1, matrices = kExperts * parts, out = kOut / parts;
  for (std::int64_t l = 0; l < layers; ++l) {
    base.push_back({fmt::format("layers.{:02}.gate_up_proj", l), Dtype::bf16, {kExperts, rows, cols}});
    for (std::int64_t m = 0; m < matrices; ++m) {
      adapter.push_back({fmt::format("layers.{:02}.{:03}.lora_A", l, m), options.adapter, {options.rank, kIn}});
      adapter.push_back({fmt::format("layers.{:02}.{:03}.lora_B", l, m), options.adapter, {out, options.rank}});
    }
  }
  write_tensors(options.dir / "adapter.safetensors", adapter);
  write_tensors(options.base(), base);
  Plan plan;
  for (const fs::path& path : {options.base(), options.dir / "adapter.safetensors"})
    plan.sources.push_back(peft::TensorFile::open(path.string()));
  plan.files.push_back({"model.safetensors", {}});
  const auto tensors = plan.sources[0]->tensors();
  const auto factor = [&](std::size_t l, std::int64_t e, const char* name, std::int64_t height, std::int64_t width) {
    const auto* info = plan.sources[1]->find(fmt::format("layers.{:02}.{:03}.{}", l, e, name));
    return View{1, static_cast<std::uint32_t>(info - plan.sources[1]->tensors().data()), 0, height, width, width, 1};
  };
  for (std::size_t l = 0; l < tensors.size(); ++l) {
    peft::PlannedTensor tensor =
        peft::copy_of(tensors[l], static_cast<std::uint32_t>(l), std::string(tensors[l].name), Dtype::bf16);
    tensor.merge.emplace();
    for (std::int64_t m = 0; m < matrices; ++m) {
      peft::Update update;
      const std::int64_t first = m / parts * kOut * kIn + m % parts;
      update.target = options.swapped ? View{0, 0, first, out, kIn, parts, kOut} : View{0, 0, first, out, kIn, kIn, 1};
      update.a = factor(l, m, "lora_A", options.rank, kIn);
      update.b = factor(l, m, "lora_B", out, options.rank);
      update.scale = 0.5;
      tensor.merge->updates.push_back(update);
    }
    plan.files[0].tensors.push_back(std::move(tensor));
  }
  return plan;
}

void set_mode(Plan& plan, MergeMode mode) {
  for (peft::PlannedTensor& tensor : plan.files[0].tensors) tensor.merge->mode = mode;
}

// Anonymous memory now, in MiB.
double anonymous() {
  std::ifstream status("/proc/self/status");
  std::string word;
  double kib = 0;
  while (status >> word) {
    if (word == "RssAnon:") status >> kib;
  }
  return kib / 1024;
}

struct Candidate {
  std::string name;
  std::function<void(const std::string& out)> run;
  std::vector<double> seconds{};
  std::shared_ptr<std::atomic<double>> memory = std::make_shared<std::atomic<double>>(0);  // the most seen while it ran
};

Candidate merging(Plan& plan, const Options& options, MergeMode mode, const char* name, int threads) {
  Candidate candidate{fmt::format("{}, {} thread{}", name, threads, threads == 1 ? "" : "s"), {}};
  candidate.run = [&plan, &options, mode, threads, memory = candidate.memory](const std::string& out) {
    set_mode(plan, mode);
    std::atomic<int> calls = 0;
    const auto sample = [&](std::uint64_t, std::uint64_t) {
      constexpr int kEvery = 128;  // a look at /proc takes as long as a good part of a unit
      if (calls++ % kEvery == kEvery - 1) *memory = std::max(memory->load(), anonymous());
    };
    peft::execute(plan, out,
                  {.threads = threads, .sync = options.durable, .readback = options.durable, .progress = sample});
  };
  return candidate;
}

void file_to_file(Plan& plan, const Options& options) {
  const std::string base = options.base().string();
  std::vector<Candidate> candidates = {
      {options.durable ? "cp + sync + cmp" : "cp", [&](const std::string& out) {
         fs::create_directories(out);
         shell(options.durable ? fmt::format("cp {0} {1}/copy && sync {1}/copy && cmp {0} {1}/copy", base, out)
                               : fmt::format("cp {} {}/copy", base, out));
       }}};
  for (int threads : {1, 2}) candidates.push_back(merging(plan, options, MergeMode::best, "best", threads));
  for (int threads : {1, 2}) candidates.push_back(merging(plan, options, MergeMode::fast, "fast", threads));
  for (int threads : {1, 2}) candidates.push_back(merging(plan, options, MergeMode::peft, "peft", threads));
  std::erase_if(candidates, [&](const Candidate& c) {
    return &c != &candidates[0] && c.name.find(options.only) == std::string::npos;
  });
  const std::string out = (options.dir / "out").string();
  for (int round = 0; round < options.rounds; ++round) {
    for (Candidate& candidate : candidates) {
      for (int run = 0; run < 2; ++run) {
        fs::remove_all(out);
        sync();
        const double before = wall();
        candidate.run(out);
        if (run == 1) candidate.seconds.push_back(wall() - before);
      }
    }
  }
  fs::remove_all(out);
  const double bytes = static_cast<double>(fs::file_size(base));
  fmt::print("file to file, {:.1f} GB, rank {}, adapter {}{}\n", bytes / 1e9, options.rank,
             peft::info(options.adapter).name,
             options.in_turn   ? ", stored [in, out], gate and up in turn"
             : options.swapped ? ", stored [in, out]"
                               : "");
  for (Candidate& c : candidates) std::sort(c.seconds.begin(), c.seconds.end());
  const auto median = [](const Candidate& c) { return c.seconds[c.seconds.size() / 2]; };
  for (const Candidate& c : candidates) {
    const double least = c.seconds.front();
    fmt::print("  {:<18} {:8.1f} ms  {:5.2f} GB/s  {:5.2f} x cp, medians {:8.1f} ms  {:5.2f} x cp", c.name, least * 1e3,
               bytes / least / 1e9, candidates[0].seconds.front() / least, median(c) * 1e3,
               median(candidates[0]) / median(c));
    if (&c != &candidates[0] && !options.in_turn && !options.swapped && !options.durable) {
      const std::size_t comma = c.name.find(',');  // "best, 2 threads" -> "best, rank 8, 2 threads"
      peft::bench::record(
          {"merge", fmt::format("{}, rank {}{}", c.name.substr(0, comma), options.rank, c.name.substr(comma)), "cp",
           least * 1e3, candidates[0].seconds.front() * 1e3, "ms", candidates[0].seconds.front() / least});
    }
    if (c.memory->load() > 0) fmt::print("  {:5.1f} MiB anonymous", c.memory->load());
    fmt::print("\n");
  }
}

// One thread over one layer, again and again: the source stays mapped, nothing is written to a file.
void in_memory(Plan& plan, const Options& options) {
  const peft::PlannedTensor& tensor = plan.files[0].tensors[0];
  const auto source = plan.sources[0]->bytes(plan.sources[0]->tensors()[0]);
  constexpr std::int64_t kRows = 256;
  std::vector<std::byte> out(static_cast<std::size_t>(kRows * tensor.cols * 2));
  const auto each = [&](const std::function<void(std::int64_t)>& slice) {
    double best = 1e9;
    for (int round = 0; round <= options.rounds; ++round) {
      const double before = wall();
      for (std::int64_t row = 0; row < tensor.rows; row += kRows) slice(row);
      best = std::min(best, wall() - before);
    }
    return best;
  };
  const double bound =
      each([&](std::int64_t row) { std::memcpy(out.data(), source.data() + row * tensor.cols * 2, out.size()); });
  fmt::print("in memory, one thread: {:.0f} MB\n  {:<18} {:8.1f} ms\n", static_cast<double>(source.size()) / 1e6,
             "memcpy", bound * 1e3);
  for (const auto& [mode, name] :
       {std::pair(MergeMode::best, "best"), std::pair(MergeMode::fast, "fast"), std::pair(MergeMode::peft, "peft")}) {
    set_mode(plan, mode);
    peft::execution::MergeStores stores;
    peft::execution::Merger merger(stores);
    const double seconds = each([&](std::int64_t row) {
      merger.render(plan, tensor, false, {row, kRows, 0, tensor.cols}, out.data());
    });
    const double operations = static_cast<double>(tensor.rows * tensor.cols) * 2 * options.rank;
    fmt::print("  {:<18} {:8.1f} ms  {:5.2f} x memcpy  {:6.1f} GFLOP/s\n", name, seconds * 1e3, bound / seconds,
               operations / seconds / 1e9);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2)
    return fmt::print(
               stderr,
               "usage: bench_merge DIR [--gb N] [--rounds N] [--rank R] [--adapter BF16|F32] [--swapped] [--in-turn] "
               "[--durable] [--memory-only] [--only TEXT]\n"),
           2;
  Options options;
  options.dir = argv[1];
  for (int i = 2; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--swapped") options.swapped = true;
    if (flag == "--in-turn") options.swapped = options.in_turn = true;
    if (flag == "--durable") options.durable = true;
    if (flag == "--memory-only") options.memory_only = true;
    if (i + 1 == argc) break;
    if (flag == "--gb") options.gb = std::atof(argv[i + 1]);
    if (flag == "--rounds") options.rounds = std::atoi(argv[i + 1]);
    if (flag == "--rank") options.rank = std::atoi(argv[i + 1]);
    if (flag == "--only") options.only = argv[i + 1];
    if (flag == "--adapter") options.adapter = peft::parse_dtype(argv[i + 1]).value_or(Dtype::bf16);
  }
  fs::create_directories(options.dir);
  Plan plan = make_plan(options);
  in_memory(plan, options);
  if (!options.memory_only) file_to_file(plan, options);
  return 0;
}
