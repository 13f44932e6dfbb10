// A training step of a model that is made on the spot: what LoRA on attention, on experts and on both costs.
//
//   bench_train [--threads N] [--seconds S] [--dtype float32|bfloat16] [--tokens 256] [--sequences 2] [--experts 64]
//               [--hidden 512] [--inter 256] [--layers 4] [--r 8] [--kinds attention,experts,both] [--checkpointing
//               0|1]
//
// One JSON object a line, with the fields of ../shared/tools/bench/peft_forward_train.py, which measures the real PEFT
// on the same model.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "peft/nn/memory.h"
#include "peft/nn/trainer.h"

namespace {

using Clock = std::chrono::steady_clock;
using Flags = std::map<std::string, std::string>;

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// "VmRSS" or "VmHWM" of this process, in MiB. The high-water mark is set back by writing 5 to clear_refs.
double memory_mb(const std::string& what) {
  std::ifstream file("/proc/self/status");
  for (std::string name; file >> name;) {
    if (name != what + ":") continue;
    double kib = 0;
    file >> kib;
    return kib / 1024;
  }
  return 0;
}

std::string config_text(const Flags& o) {
  return R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 4096, "hidden_size": )" +
         o.at("hidden") + R"(, "intermediate_size": 1024, "moe_intermediate_size": )" + o.at("inter") +
         R"(, "num_hidden_layers": )" + o.at("layers") +
         R"(, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_experts": )" + o.at("experts") +
         R"(, "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], )"
         R"("hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false})";
}

std::unique_ptr<peft::nn::PeftModel> model_with(const std::string& kind, const Flags& o) {
  const auto folder = std::filesystem::temp_directory_path() / ("bench_train-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << config_text(o);
  const auto dtype = o.at("dtype") == "bfloat16" ? at::kBFloat16 : at::kFloat;
  const auto base = peft::nn::init_model(folder.string(), {.dtype = dtype});
  peft::nn::LoraConfig config;
  config.r = std::atoll(o.at("r").c_str()), config.lora_alpha = {16, true}, config.init_lora_weights = "false";
  config.target_modules = std::vector<std::string>{};
  if (kind != "experts") config.target_modules = std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj"};
  if (kind != "attention")
    config.target_parameters = std::vector<std::string>{"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  auto model = peft::nn::get_peft_model(base, config);
  std::filesystem::remove_all(folder);
  return model;
}

peft::train::MicroBatch random_batch(std::int64_t sequences, std::int64_t tokens) {
  std::vector<peft::train::Row> rows(static_cast<std::size_t>(sequences));
  std::vector<const peft::train::Row*> pointers;
  std::srand(1);
  for (peft::train::Row& row : rows) {
    for (std::int64_t i = 0; i < tokens / sequences; ++i) row.ids.push_back(std::rand() % 4096);
    row.labels = row.ids;
    pointers.push_back(&row);
  }
  return peft::train::collate(pointers);
}

void measure(const std::string& kind, const Flags& o) {
  const auto model = model_with(kind, o);
  peft::train::Options options;
  options.gradient_checkpointing = o.at("checkpointing") == "1", options.router_aux_loss_coef = 0;
  peft::nn::Trainer trainer(*model, options);
  const auto batch = random_batch(std::atoll(o.at("sequences").c_str()), std::atoll(o.at("tokens").c_str()));
  const double start_mb = memory_mb("VmRSS");
  std::ofstream("/proc/self/clear_refs") << "5";
  trainer.step({batch}, 1e-4);
  std::vector<double> wall, processor;
  const auto end = Clock::now() + std::chrono::duration<double>(std::atof(o.at("seconds").c_str()));
  while (wall.size() < 3 || Clock::now() < end) {
    const auto start = Clock::now();
    const double cpu = processor_seconds();
    trainer.step({batch}, 1e-4);
    wall.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    processor.push_back(processor_seconds() - cpu);
  }
  std::ranges::sort(wall), std::ranges::sort(processor);
  std::printf(
      "{\"what\": \"train\", \"lora\": \"%s\", \"ms_median\": %.3f, \"ms_min\": %.3f, \"cpu_ms_median\": %.3f, "
      "\"cpu_ms_least\": %.3f, "
      "\"model_rss_mb\": %.1f, \"peak_rss_mb\": %.1f, \"runs\": %zu, \"tokens\": %s, \"experts\": %s, "
      "\"dtype\": \"%s\", \"threads\": %s, \"checkpointing\": %s}\n",
      kind.c_str(), 1e3 * wall[wall.size() / 2], 1e3 * wall.front(), 1e3 * processor[processor.size() / 2],
      1e3 * processor.front(), start_mb, memory_mb("VmHWM"), wall.size(), o.at("tokens").c_str(),
      o.at("experts").c_str(), o.at("dtype").c_str(), o.at("threads").c_str(), o.at("checkpointing").c_str());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  Flags o = {{"threads", "1"},
             {"seconds", "3"},
             {"dtype", "float32"},
             {"tokens", "256"},
             {"sequences", "2"},
             {"experts", "64"},
             {"hidden", "512"},
             {"inter", "256"},
             {"layers", "4"},
             {"r", "8"},
             {"kinds", "attention,experts,both"},
             {"checkpointing", "0"}};
  for (int i = 1; i + 1 < argc; i += 2) o[argv[i] + 2] = argv[i + 1];
  at::set_num_threads(std::atoi(o["threads"].c_str()));
  peft::nn::reuse_memory_blocks();  // as peft train does
  const std::string kinds = o["kinds"] + ",";
  for (std::size_t begin = 0; begin < kinds.size();) {
    const std::size_t end = kinds.find(',', begin);
    measure(kinds.substr(begin, end - begin), o);
    begin = end + 1;
  }
  return 0;
}
