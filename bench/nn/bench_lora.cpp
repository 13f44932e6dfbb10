// Decode and prefill with LoRA on experts against the same model without. One table line each: milliseconds and ratio.
//
//   bench_lora [--threads N] [--seconds S] [--rank R] [--dtype float32|bfloat16] [--hidden H --inter I --experts E
//   --layers L] [--device cuda]
//
// The model is that of ../shared/tools/bench/peft_forward_train.py: Qwen3-MoE, H 512, I 256, 64 experts, top-8, 4
// layers. Base and LoRA take turns within one run; the smallest CPU time of each counts, on a GPU the smallest wall
// time.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>

#include "nn/model/network.h"
#include "peft/nn/peft_model.h"

namespace {

using peft::nn::CausalLM;
using peft::nn::PeftModel;

// CPU time of the process: it hardly notices what else runs on the machine. With one thread it is the time of the work.
// The work of a GPU is none of the process; its time ends when a value is here.
double milliseconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}
double once(const std::function<at::Tensor()>& body, bool on_gpu) {
  const clockid_t clock = on_gpu ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID;
  const double start = milliseconds(clock);
  const at::Tensor logits = body();
  if (on_gpu) logits.view({-1})[0].item();
  return milliseconds(clock) - start;
}

std::string write_config(std::map<std::string, std::string>& o) {
  const std::string folder = std::filesystem::temp_directory_path() / "peft-bench-lora";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json")
      << R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 4096, "hidden_size": )"
      << o["hidden"] << R"(, "intermediate_size": 1024, "moe_intermediate_size": )" << o["inter"]
      << R"(, "num_hidden_layers": )" << o["layers"]
      << R"(, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_experts": )" << o["experts"]
      << R"(, "num_experts_per_tok": 8, "norm_topk_prob": true, "hidden_act": "silu", "rms_norm_eps": 1e-06, )"
      << R"("rope_theta": 10000.0, "max_position_embeddings": 32768, "tie_word_embeddings": false, )"
      << R"("decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": false, "initializer_range": 0.02})";
  return folder;
}

struct Model {
  std::string name;
  std::shared_ptr<CausalLM> base;
  std::unique_ptr<PeftModel> lora;
  peft::nn::CachePtr cache;
  at::Tensor forward(const peft::nn::ForwardInput& input) const {
    return lora ? lora->forward(input).logits : base->forward(input, {}).logits;
  }
};

std::vector<Model> models(const std::string& folder, std::map<std::string, std::string>& o) {
  const auto type = o["dtype"] == "bfloat16" ? at::kBFloat16 : at::kFloat;
  std::vector<Model> made;
  for (const std::string kind : {"base", "attention", "experts", "both"}) {
    Model model{kind, peft::nn::init_model(folder, {.dtype = type, .device = o["device"]}), nullptr, nullptr};
    peft::nn::LoraConfig config;
    config.r = std::atoi(o["rank"].c_str());
    config.lora_alpha = {16};
    config.init_lora_weights = "false";
    config.target_modules = std::vector<std::string>{};
    if (kind != "experts") config.target_modules = std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj"};
    if (kind != "attention") config.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
    config.set("inference_mode", "true");
    if (kind != "base") model.lora = peft::nn::get_peft_model(model.base, config);
    made.push_back(std::move(model));
  }
  return made;
}

void compare(const char* what, std::vector<Model>& all, double seconds, const std::function<at::Tensor(Model&)>& body) {
  const bool on_gpu = !all[0].base->device().is_cpu();
  std::vector<double> best(all.size(), 1e30);
  for (Model& model : all) body(model);
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds) {
    for (std::size_t i = 0; i < all.size(); ++i)
      best[i] = std::min(best[i], once([&] { return body(all[i]); }, on_gpu));
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::printf("%-8s %-10s %9.3f ms   %.3f of base\n", what, all[i].name.c_str(), best[i], best[i] / best[0]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> o = {{"threads", "1"},     {"seconds", "4"},  {"rank", "8"},
                                          {"dtype", "float32"}, {"hidden", "512"}, {"inter", "256"},
                                          {"experts", "64"},    {"layers", "4"},   {"device", "cpu"}};
  for (int i = 1; i + 1 < argc; i += 2) o[argv[i] + 2] = argv[i + 1];
  at::set_num_threads(std::atoi(o["threads"].c_str()));
  const double seconds = std::atof(o["seconds"].c_str());
  const at::NoGradGuard no_grad;
  auto all = models(write_config(o), o);
  at::manual_seed(1);
  const at::Tensor context = at::randint(4096, {1, 32}, at::kLong), token = at::randint(4096, {1, 1}, at::kLong);
  const at::Tensor prompt = at::randint(4096, {1, 512}, at::kLong);
  compare("prefill", all, seconds,
          [&](Model& m) { return m.forward({.ids = prompt, .mask = {}, .positions = {}, .logits_to_keep = 1}); });
  int steps = 0;
  compare("decode", all, seconds, [&](Model& m) {
    if (!m.cache || ++steps % 256 == 0) {
      for (Model& each : all) {
        each.cache = each.base->new_cache();
        each.forward({.ids = context, .mask = {}, .positions = {}, .cache = each.cache.get()});
      }
    }
    return m.forward({.ids = token, .mask = {}, .positions = {}, .cache = m.cache.get()});
  });
  return 0;
}
