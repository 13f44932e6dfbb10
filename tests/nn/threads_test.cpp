// The runtime on one thread and on several: the same numbers, from one pool of threads.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <set>

#include "nn/small_models.h"
#include "peft/nn/peft_model.h"

namespace peft::nn::testing {
namespace {

using peft::testing::TemporaryFolder;

// Each loop over rows of weights or factors is worth two threads already for one token.
Json wide() {
  return qwen3_moe({{"hidden_size", 256},
                    {"moe_intermediate_size", 128},
                    {"num_experts", 8},
                    {"num_experts_per_tok", 8},
                    {"head_dim", 64}});
}

class OfThreads {
 public:
  explicit OfThreads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~OfThreads() { at::set_num_threads(before_); }
  OfThreads(const OfThreads&) = delete;

 private:
  int before_;
};

template <class Model>
void expect_the_same(const Model& model, double share) {
  const at::Tensor ids = at::arange(48, at::kLong).view({1, 48});
  for (const std::int64_t tokens : {1, 2, 4, 48}) {
    const at::Tensor some = ids.narrow(1, 0, tokens);
    std::vector<at::Tensor> logits;
    for (const int threads : {1, 2, 3}) {
      const OfThreads scope(threads);
      logits.push_back(model.logits(some));
    }
    for (const at::Tensor& other : {logits[1], logits[2]}) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens");
      // Few rows go through own loops, where a row does not know who else computes. Many go through the products of
      // libtorch, whose sums may be split otherwise.
      if (tokens == 1)
        EXPECT_TRUE(at::equal(other, logits[0]));
      else
        EXPECT_LE(max_difference(other, logits[0]), share * peak(logits[0]));
    }
  }
}

TEST(Threads, ABaseIsTheSameOnAnyNumber) {
  const TemporaryFolder folder;
  expect_the_same(*made(folder, wide(), {.dtype = at::kFloat, .seed = 3}), 1e-5);
  expect_the_same(*made(folder, wide(), {.dtype = at::kBFloat16, .seed = 3}), 0.05);
}

TEST(Threads, LoraIsTheSameOnAnyNumber) {
  const TemporaryFolder folder;
  LoraConfig config;
  config.r = 64, config.lora_alpha = {64};
  config.target_modules = all_linear;
  config.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  config.init_lora_weights = "false";
  expect_the_same(*get_peft_model(made(folder, wide(), {.dtype = at::kFloat, .seed = 3}), config), 1e-5);
}

// A second runtime would be a second pool of threads, which waits for processors that the first one has.
TEST(Threads, OneOpenMpIsInTheProcess) {
  const TemporaryFolder folder;
  made(folder, wide(), {.dtype = at::kFloat})->logits(at::zeros({1, 48}, at::kLong));
  std::set<std::string> runtimes;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const std::string name = line.substr(line.rfind('/') + 1);
    for (const char* known : {"libgomp", "libomp", "libiomp"}) {
      if (line.find('/') != std::string::npos && name.starts_with(known)) runtimes.insert(line.substr(line.find('/')));
    }
  }
  EXPECT_EQ(runtimes.size(), 1) << ::testing::PrintToString(runtimes);
}

}  // namespace
}  // namespace peft::nn::testing
