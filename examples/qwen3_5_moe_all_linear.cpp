// LoRA on every linear layer and on the fused experts: what is made, what it is called, how it is shaped and why.
//
//   example_qwen3_5_moe_all_linear                          a small model, with weights: made, run, saved, loaded
//   example_qwen3_5_moe_all_linear CONFIG [options]         a model of any size from its config.json, without weights
//     --targets q_proj,v_proj    instead of all-linear      --alpha N    lora_alpha, 32
//     --inference                nothing is trainable       --all        every tensor, not one line per kind
#include <ATen/ATen.h>
#include <peft/nn/peft_model.h>
#include <peft/peft.h>

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <map>
#include <sstream>

#include "qwen3_5_moe_config.h"

namespace {

using namespace peft;

struct Options {
  std::string config_file, targets = nn::all_linear;
  double alpha = 32;
  bool inference = false, all = false;
};

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&] {
      return i + 1 < argc ? std::string(argv[++i]) : throw std::invalid_argument(word + " needs a value");
    };
    if (word == "--targets")
      options.targets = value();
    else if (word == "--alpha")
      options.alpha = std::stod(value());
    else if (word == "--inference")
      options.inference = true;
    else if (word == "--all")
      options.all = true;
    else if (word.starts_with("--"))
      throw std::invalid_argument("there is no " + word);
    else
      options.config_file = word;
  }
  return options;
}

nn::LoraConfig lora_config(const Options& options) {
  nn::LoraConfig config;
  config.r = 8;
  config.lora_alpha = {options.alpha};
  config.task_type = "CAUSAL_LM";
  config.use_rslora = false;
  config.use_dora = false;
  config.target_modules = options.targets;
  if (options.targets != nn::all_linear) {
    std::vector<std::string> names;
    std::istringstream list(options.targets);
    for (std::string name; std::getline(list, name, ',');) names.push_back(name);
    config.target_modules = names;
  }
  config.target_parameters = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  if (options.inference) config.set("inference_mode", "true");
  return config;
}

std::string shape_text(at::IntArrayRef shape) {
  std::ostringstream text;
  text << shape;
  return text.str();
}

// What the two sizes of a LoRA tensor are. PEFT stacks the factors of all experts: r x experts rows of lora_A, and as
// many columns of lora_B. The parameter registered first is the inner wrapper, under base_layer.
std::string meaning(const Target& target, bool is_a) {
  if (!target.parameter) return is_a ? "[r, in]" : "[out, r]";
  const std::string stacked = std::to_string(target.rank) + " x " + std::to_string(target.shape.front());
  const bool gate_up = target.name.ends_with("gate_up_proj");
  if (is_a) return "[" + stacked + ", " + (gate_up ? "hidden" : "intermediate") + "]";
  return std::string("[") + (gate_up ? "2 x intermediate" : "hidden") + ", " + stacked + "]";
}

// "model.layers.3.mlp" -> "model.layers.*.mlp"
std::string kind_of(const std::string& key) {
  std::string kind, part;
  for (std::istringstream parts(key); std::getline(parts, part, '.');) {
    const bool number =
        !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c); });
    kind += (kind.empty() ? "" : ".") + (number ? "*" : part);
  }
  return kind;
}

void print_tensors(const nn::PeftModel& lora, const std::vector<Target>& targets, bool all) {
  std::map<std::string, const Target*> by_key;
  for (const Target& target : targets) by_key["base_model.model." + target.key] = &target;
  std::map<std::string, int> seen;
  const auto tensors = lora.state_dict();
  for (const auto& [name, tensor] : tensors) ++seen[kind_of(name)];
  for (const auto& [name, tensor] : tensors) {
    const std::string kind = kind_of(name);
    if (!all && seen[kind] == 0) continue;
    const auto at = name.find(".lora_");
    const Target& target = *by_key.at(name.substr(0, at));
    if (!all) std::cout << std::setw(4) << seen[kind] << " x ";
    std::cout << (all ? name : kind) << " " << shape_text(tensor.sizes()) << " = "
              << meaning(target, name[at + 6] == 'A') << " of " << kind_of(target.name) << "\n";
    if (!all) seen[kind] = 0;
  }
}

void show(const std::shared_ptr<nn::CausalLM>& base, const nn::PeftModel& lora, const Options& options,
          const std::string& source) {
  const Model model = describe({.base = source});
  const auto resolved = resolve_targets(lora.peft_config(), base->tree(), model, Generation::v5);
  print_tensors(lora, resolved.targets, options.all);
  std::cout << "target_modules of the saved config:";
  for (const auto& name : std::get<std::vector<std::string>>(resolved.config_after.target_modules))
    std::cout << " " << name;
  std::cout << "\n";
  lora.print_trainable_parameters();
}

int with_weights(const Options& options) {
  const TinyModel files(64, 32);
  const auto base = nn::init_model(files.base(), {.seed = 7});
  const at::Tensor ids = at::tensor({1, 5, 248319, 17}, at::kLong).unsqueeze(0);
  const auto lora = nn::get_peft_model(base, lora_config(options), {.seed = 11});
  show(base, *lora, options, files.base());
  lora->save_pretrained(files.adapter(), {.save_embedding_layers = false});  // safetensors: there is no other form
  const auto loaded = nn::PeftModel::from_pretrained(nn::init_model(files.base(), {.seed = 7}), files.adapter());
  const bool same = lora->logits(ids).equal(loaded->logits(ids));
  std::cout << "lora == loaded: " << (same ? "yes" : "NO") << "\n";
  return same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = read_options(argc, argv);
  if (options.config_file.empty()) return with_weights(options);
  const auto base = nn::init_model(options.config_file, {.device = "meta"});
  const auto lora = nn::get_peft_model(base, lora_config(options));
  show(base, *lora, options, options.config_file);
} catch (const peft::Error& error) {
  std::cerr << error.what() << "\n";
  return peft::info(error.code()).exit_code;
} catch (const std::invalid_argument& error) {
  std::cerr << error.what() << "\n";
  return 2;
}
