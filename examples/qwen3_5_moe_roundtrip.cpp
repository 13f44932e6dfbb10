// LoRA on attention, linear attention and the fused experts of a Qwen3.5-MoE: it changes the output, and what is saved
// and loaded again gives the same output, bit for bit. Twice: with the sizes of the script that this follows (hidden is
// twice the experts' intermediate size, so that a parameter in the wrong orientation would still fit), and with sizes
// where nothing fits by accident.
//
//   example_qwen3_5_moe_roundtrip
#include <ATen/ATen.h>
#include <peft/nn/peft_model.h>
#include <peft/peft.h>

#include <iostream>

#include "qwen3_5_moe_config.h"

namespace {

using namespace peft;

bool check(const char* what, bool holds) {
  std::cout << "  " << what << ": " << (holds ? "yes" : "NO") << "\n";
  return holds;
}

bool round_trip(int hidden, int intermediate) {
  std::cout << "hidden " << hidden << ", intermediate size of an expert " << intermediate << "\n";
  const TinyModel files(hidden, intermediate);
  const auto base = nn::init_model(files.base(), {.seed = 7});
  const at::Tensor ids = at::tensor({{1, 5, 248319, 17, 200000, 42, 9, 3}}, at::kLong);
  const at::Tensor without = base->logits(ids);

  nn::LoraConfig config;
  config.r = 8;
  config.lora_alpha = {16};
  config.task_type = "CAUSAL_LM";
  config.init_lora_weights = "false";  // lora_B is not zero: the adapter does something from the start
  config.target_modules = std::vector<std::string>{"q_proj", "v_proj", "in_proj_qkv"};
  config.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  const auto lora = nn::get_peft_model(base, config, {.seed = 11});
  lora->print_trainable_parameters();
  const at::Tensor with = lora->logits(ids);
  lora->save_pretrained(files.adapter());

  const auto loaded = nn::PeftModel::from_pretrained(nn::init_model(files.base(), {.seed = 7}), files.adapter());
  const bool finite = at::isfinite(with).all().item<bool>();
  bool good = check("all logits are finite", finite);
  good &= check("base != lora", !at::allclose(without, with, 1e-4, 1e-4));
  good &= check("lora == loaded", with.equal(loaded->logits(ids)));
  const auto off = loaded->disable_adapter();
  good &= check("base == loaded, with the adapter disabled", without.equal(loaded->logits(ids)));
  return good;
}

}  // namespace

int main() try {
  const bool square = round_trip(64, 32), oblong = round_trip(64, 48);
  return square && oblong ? 0 : 1;
} catch (const peft::Error& error) {
  std::cerr << error.what() << "\n";
  return peft::info(error.code()).exit_code;
}
