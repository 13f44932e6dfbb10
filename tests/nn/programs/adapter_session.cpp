// What the runtime makes of an adapter or a config, for tools/real_peft/runtime_check.py to compare with the real PEFT.
//
//   adapter_session BASE ADAPTER|CONFIG.json OUT     an adapter is loaded, a config gives a new one
//
// OUT/adapter is what save_pretrained writes, OUT/logits.json the logits for ids 1 to 9, OUT/line.txt the counts. A
// start that changes the base (PiSSA, OLoRA) is trained a little and converted on saving: OUT/adapter is for the base
// as it was.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>

#include "peft/nn/peft_model.h"

namespace {

bool changes_base(const peft::nn::LoraConfig& config) {
  return config.init_lora_weights.starts_with("pissa") || config.init_lora_weights == "olora";
}

void train(const peft::nn::PeftModel& lora) {
  const at::NoGradGuard no_grad;
  at::manual_seed(6);
  for (const peft::nn::AdapterTensor& t : lora.adapter_tensors())
    at::Tensor(t.tensor).add_(at::randn_like(t.tensor), 0.05);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    const std::string base = argv[1], given = argv[2], out = argv[3];
    const auto model = peft::nn::load_model(base, {.dtype = at::kFloat});
    const auto lora = given.ends_with(".json")
                          ? peft::nn::get_peft_model(model, peft::AdapterConfig::read(given), {.seed = 5})
                          : peft::nn::PeftModel::from_pretrained(model, given, {.is_trainable = true});
    std::filesystem::create_directories(out);
    peft::nn::SaveOptions options{.sync = false};
    const bool convert = changes_base(lora->peft_config());
    if (convert) {
      options.path_initial_model_for_weight_conversion = out + "/start";
      lora->save_pretrained(out + "/start", {.sync = false});
      train(*lora);
    }
    lora->save_pretrained(out + "/adapter", options);
    const at::Tensor logits = lora->logits(at::arange(1, 10, at::kLong).unsqueeze(0)).to(at::kDouble).contiguous();
    std::ofstream json(out + "/logits.json");
    json.precision(10);
    const auto* values = logits.const_data_ptr<double>();
    for (std::int64_t i = 0; i < logits.numel(); ++i) json << (i == 0 ? "[" : ", ") << values[i];
    json << "]\n";
    const auto counted = convert
                             ? peft::nn::PeftModel::from_pretrained(peft::nn::load_model(base, {.dtype = at::kFloat}),
                                                                    out + "/adapter", {.is_trainable = true})
                             : nullptr;
    std::ofstream(out + "/line.txt") << (counted ? *counted : *lora).trainable_parameters_line() << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
