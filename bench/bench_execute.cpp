// File to file: a made-up adapter of 128 experts x 48 layers fused and unfused, against cp of the same bytes.
//
//   bench_execute DIR [--rounds N] [--layers L] [--rank R] [--durable]
//
// Candidates alternate, each into a new file; the best of all rounds counts. Default: no sync, no read-back, against
// cp.
// --durable: synced and read back, against cp + sync + cmp.
#include <fmt/format.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "peft/execute.h"
#include "synthetic.h"

namespace {

namespace fs = std::filesystem;
using peft::Plan;
using peft::bench::Shape;

double wall() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double cpu() {
  double seconds = 0;
  for (const int who : {RUSAGE_SELF, RUSAGE_CHILDREN}) {
    rusage usage{};
    getrusage(who, &usage);
    for (const timeval& t : {usage.ru_utime, usage.ru_stime})
      seconds += static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  }
  return seconds;
}

struct Best {
  double wall = 1e9, cpu = 1e9;
};

struct Candidate {
  std::string name;
  std::function<void(const std::string& out)> run;
  Best best;
};

void shell(const std::string& command) {
  if (std::system(command.c_str()) != 0) std::exit(1);
}

// Alternates the candidates; each round writes to fresh files.
void race(std::vector<Candidate>& candidates, int rounds, const fs::path& dir) {
  for (int round = 0; round <= rounds; ++round) {
    for (Candidate& candidate : candidates) {
      const std::string out = (dir / "out").string();
      fs::remove_all(out);
      const double wall_before = wall(), cpu_before = cpu();
      candidate.run(out);
      const double wall_time = wall() - wall_before, cpu_time = cpu() - cpu_before;
      if (round == 0) continue;  // warm-up
      candidate.best.wall = std::min(candidate.best.wall, wall_time);
      candidate.best.cpu = std::min(candidate.best.cpu, cpu_time);
    }
  }
  fs::remove_all(dir / "out");
}

std::function<void(const std::string&)> converting(const Plan& plan, int threads, bool durable) {
  return [&plan, threads, durable](const std::string& out) {
    peft::execute(plan, out, {.threads = threads, .sync = durable, .readback = durable});
  };
}

std::function<void(const std::string&)> copying(const std::string& path, bool durable) {
  return [path, durable](const std::string& out) {
    fs::create_directories(out);
    const std::string copy = out + "/copy";
    shell(durable ? fmt::format("cp {0} {1} && sync {1} && cmp {0} {1}", path, copy)
                  : fmt::format("cp {} {}", path, copy));
  };
}

void compare(const std::string& title, const std::string& path, const Plan& plan, int rounds, bool durable,
             const fs::path& dir) {
  std::vector<Candidate> candidates = {{durable ? "cp + sync + cmp" : "cp", copying(path, durable), {}},
                                       {"1 thread", converting(plan, 1, durable), {}},
                                       {"2 threads", converting(plan, 2, durable), {}}};
  race(candidates, rounds, dir);
  fmt::print("{}: {:.0f} MB in, {:.0f} MB out, {} tensors\n", title, static_cast<double>(plan.bytes_in) / 1e6,
             static_cast<double>(plan.bytes_out) / 1e6, plan.files[0].tensors.size());
  // Input and output differ in size (zeros of the block-diagonal form): compared per byte written.
  const double copied = static_cast<double>(fs::file_size(path)), written = static_cast<double>(plan.bytes_out);
  const double reference = candidates[0].best.wall / copied;
  for (const Candidate& c : candidates) {
    const double bytes = &c == &candidates[0] ? copied : written;
    fmt::print("  {:<16} {:7.1f} ms  {:5.2f} GB/s  {:5.2f} x cp   {:6.1f} ms CPU\n", c.name, c.best.wall * 1e3,
               bytes / c.best.wall / 1e9, reference / (c.best.wall / bytes), c.best.cpu * 1e3);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2)
    return fmt::print(stderr, "usage: bench_execute DIR [--rounds N] [--layers L] [--rank R] [--durable]\n"), 2;
  const fs::path dir = argv[1];
  Shape shape;
  int rounds = 5;
  bool durable = false;
  for (int i = 2; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--durable") durable = true;
    if (i + 1 == argc) break;
    if (flag == "--rounds") rounds = std::atoi(argv[i + 1]);
    if (flag == "--layers") shape.layers = std::atoi(argv[i + 1]);
    if (flag == "--rank") shape.rank = std::atoi(argv[i + 1]);
  }
  fs::create_directories(dir);
  const std::string per_expert = (dir / "per_expert.safetensors").string();
  const std::string fused = (dir / "fused" / "adapter_model.safetensors").string();
  peft::bench::write_per_expert(per_expert, shape);
  const Plan fuse = peft::bench::plan_fuse(per_expert, shape);
  peft::execute(fuse, (dir / "fused").string(), {.sync = false, .overwrite = true});
  const Plan unfuse = peft::bench::plan_unfuse(fused, shape);
  compare("fuse", per_expert, fuse, rounds, durable, dir);
  compare("unfuse", fused, unfuse, rounds, durable, dir);
  peft::execute(unfuse, (dir / "back").string(), {.sync = false, .overwrite = true});
  shell(fmt::format("cmp {} {}", per_expert, (dir / "back" / "adapter_model.safetensors").string()));
  fmt::print("fused and unfused again: the same bytes\n");
  fs::remove_all(dir);
  return 0;
}
