// Opening and writing a header of 138,728 tensors (20 MB; the adapter of a model with 61 x 384 experts), as ratios to
// a copy of the same bytes and to a general JSON library. Each job runs several times in turn; the best counts.
// Processor time of the one thread, so that a busy machine does not distort the ratios.
#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "peft/safetensors.h"
#include "results.h"

namespace {

constexpr int kRounds = 15;

std::vector<peft::NewTensor> many_tensors() {
  std::vector<peft::NewTensor> tensors;
  for (int layer = 0; layer < 61; ++layer) {
    for (int expert = 0; expert < 384; ++expert) {
      for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
        for (const char* side : {"lora_A", "lora_B"}) {
          tensors.push_back({fmt::format("base_model.model.model.layers.{}.mlp.experts.{}.{}.{}.weight", layer, expert,
                                         projection, side),
                             peft::Dtype::bf16,
                             {1, 1}});
        }
      }
    }
  }
  tensors.resize(138'728, tensors.front());
  return tensors;
}

struct Job {
  const char* name;
  std::function<void()> run;
  double first = 0, best = 1e9;  // milliseconds
};

double milliseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

void measure(std::vector<Job>& jobs) {
  for (int round = 0; round < kRounds; ++round) {
    for (Job& job : jobs) {
      const double start = milliseconds();
      job.run();
      const double ms = milliseconds() - start;
      if (round == 0) job.first = ms;
      job.best = std::min(job.best, ms);
    }
  }
}

}  // namespace

int main() {
  const std::vector<peft::NewTensor> tensors = many_tensors();
  const peft::FileLayout layout = peft::layout_file(tensors);
  const std::string& head = layout.head;
  std::vector<std::byte> image(layout.file_bytes());
  std::memcpy(image.data(), head.data(), head.size());
  std::string copy(head.size(), ' ');
  std::size_t sink = 0;

  std::vector<Job> jobs = {
      {"open", [&] { sink += peft::TensorFile::parse(image, "bench.safetensors")->tensors().size(); }},
      {"emit", [&] { sink += peft::layout_file(tensors).head.size(); }},
      {"memcpy",
       [&] {
         std::memcpy(copy.data(), head.data(), head.size());
         sink += static_cast<unsigned char>(copy[head.size() / 2]);
       }},
      {"nlohmann", [&] { sink += nlohmann::json::parse(head.begin() + 8, head.end()).size(); }},
  };
  measure(jobs);
  const double memcpy_ms = jobs[2].best, nlohmann_ms = jobs[3].best;
  fmt::print("header: {} tensors, {} bytes ({})\n", tensors.size(), head.size(), sink % 10);
  fmt::print("{:10} {:>10} {:>10} {:>12} {:>12}\n", "", "first ms", "best ms", "x memcpy", "x nlohmann");
  for (const Job& job : jobs) {
    if (std::string_view(job.name) == "open") {
      peft::bench::record({"header", "open", "memcpy", job.best, memcpy_ms, "ms", job.best / memcpy_ms});
      peft::bench::record({"header", "open, against a JSON parser", "nlohmann::json", job.best, nlohmann_ms, "ms",
                           job.best / nlohmann_ms});
    }
    fmt::print("{:10} {:10.1f} {:10.1f} {:12.1f} {:12.3f}\n", job.name, job.first, job.best, job.best / memcpy_ms,
               job.best / nlohmann_ms);
  }
}
