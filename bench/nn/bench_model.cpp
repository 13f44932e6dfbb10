// Decode of one token and prefill of a model folder, without adapters; and what loading it costs.
//
//   bench_model FOLDER [--threads N] [--seconds S] [--dtype float32|bfloat16] [--tokens 512] [--context 32]
//
// One line each: what, smallest and median milliseconds. compare_transformers.py runs it beside the real program.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "nn/model/network.h"
#include "peft/nn/model.h"

namespace {

using Clock = std::chrono::steady_clock;

// With one thread the time of the processor, which other programs on the machine disturb less.
bool processor_time = true;

double now() {
  if (!processor_time) return std::chrono::duration<double, std::milli>(Clock::now().time_since_epoch()).count();
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return 1e3 * static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_nsec);
}

double milliseconds(const std::function<void()>& body) {
  const double start = now();
  body();
  return now() - start;
}

void measure(const char* what, double seconds, const std::function<void()>& body) {
  body();
  std::vector<double> times;
  const auto start = Clock::now();
  while (times.size() < 3 || std::chrono::duration<double>(Clock::now() - start).count() < seconds) {
    times.push_back(milliseconds(body));
  }
  std::sort(times.begin(), times.end());
  std::printf("%s %.4f %.4f\n", what, times.front(), times[times.size() / 2]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "bench_model FOLDER [--threads N] ...\n"), 2;
  std::map<std::string, std::string> o = {
      {"threads", "1"}, {"seconds", "3"}, {"dtype", "float32"}, {"tokens", "512"}, {"context", "32"}};
  for (int i = 2; i + 1 < argc; i += 2) o[argv[i] + 2] = argv[i + 1];
  at::set_num_threads(std::atoi(o["threads"].c_str()));
  processor_time = o["threads"] == "1";
  const double seconds = std::atof(o["seconds"].c_str());
  const at::ScalarType dtype = o["dtype"] == "bfloat16" ? at::kBFloat16 : at::kFloat;
  std::shared_ptr<peft::nn::CausalLM> model;
  std::printf("load %.4f 0\n", milliseconds([&] {
                model = peft::nn::load_model(argv[1], {.dtype = dtype, .threads = std::atoi(o["threads"].c_str())});
              }));
  const c10::NoGradGuard no_gradients;
  const std::int64_t vocabulary = model->vocab_size(), tokens = std::atoll(o["tokens"].c_str()),
                     context = std::atoll(o["context"].c_str());
  at::manual_seed(1);
  const at::Tensor prompt = at::randint(vocabulary, {1, tokens}, at::kLong),
                   token = at::randint(vocabulary, {1, 1}, at::kLong);
  measure("prefill", seconds, [&] { model->forward({.ids = prompt, .logits_to_keep = 1}, {}); });
  peft::nn::CachePtr cache;
  int steps = 0;
  const auto restart = [&] {
    cache = model->new_cache();
    model->forward({.ids = prompt.narrow(1, 0, std::min(context, tokens)), .cache = cache.get()}, {});
  };
  restart();
  measure("decode", seconds, [&] {
    if (++steps % 64 == 0) restart();
    model->forward({.ids = token, .cache = cache.get()}, {});
  });
  return 0;
}
