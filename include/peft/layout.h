// Layouts: the forms in which programs write LoRA factors to files. A layout is a codec; nothing else knows it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/adapter.h"
#include "peft/plan.h"

namespace peft {

enum class Layout : std::uint8_t {
  peft_per_expert,    // one pair per expert and projection: transformers v4, any PEFT
  peft_fused,         // nn.Parameter wrappers, PEFT >= 0.19.1 on transformers v5
  peft_fused_0_19_0,  // PEFT 0.19.0
  peft_fused_0_18,    // PEFT 0.17 and 0.18
  unsloth_grouped,    // as peft_fused, lora_B columns grouped by expert
  gguf,               // a file for llama.cpp: experts stacked, one tensor for each projection of a layer
  tinker,             // experts stacked in three dimensions, w1, w2, w3
  mlx,                // MLX-LM
  megatron_bridge,    // experts stacked in three dimensions, gate_up_proj and down_proj
  sglang,             // the same, lora_A of gate_up_proj with a rank for each of both
  veomni,             // experts stacked in three dimensions, gate_proj, up_proj, down_proj; or one pair for all of them
  ktransformers,      // experts in a file of their own: layers.N.experts.gate_lora_a
  nemo,               // as peft_fused, with a file beside it that says so: NeMo Automodel
};

struct LayoutInfo {
  Layout layout;
  std::string_view name;  // "peft-per-expert"
  std::string_view written_by, read_by;
  std::string_view keys, a, b;  // for docs: key form, shape and axis order of lora_A and lora_B
  std::string_view notes;
  AdapterForm form = AdapterForm::peft;
  std::string_view weights_file = "adapter_model.safetensors";
};
std::span<const LayoutInfo> layouts();
const LayoutInfo& info(Layout layout);
std::optional<Layout> parse_layout(std::string_view name);

enum class Orientation : std::uint8_t { natural, reversed };  // reversed: A has the output width, B the input width
enum class BPacking : std::uint8_t { rank_major, grouped_by_expert };

// What the user says where a file leaves it open.
struct ReadOptions {
  Verb verb = Verb::merge;       // what is read for: fields of the config that it cannot do right are refused
  std::optional<Layout> layout;  // --from
  std::string orientation;       // --orientation: "", "out-in", "in-out": how dP[e] = s B_e A_e lies in the parameter
  std::optional<BPacking> b_packing;  // --b-packing
  bool ignore_unused = false;         // leave out tensors that belong to nothing
  int threads = 1;                    // 0: all cores. The reading does not depend on it
};

// What a file is, and why.
struct Reading {
  Layout layout = Layout::peft_per_expert;
  bool has_experts = false;
  std::vector<std::string> evidence;   // one sentence each, strongest first
  std::vector<std::string> anomalies;  // things a user should know (zero B, reversed, unused keys, ...)
  std::vector<std::string> unused;     // keys that belong to nothing
  Factors factors;
};

// Decodes. Throws LO_LAYOUT with the possible readings and the flag that decides when the file is ambiguous,
// LO_PAIR, LO_SHAPE, LO_EXPERT, LO_UNUSED, ... when it is wrong.
Reading read(const Adapter& adapter, const Model& model, const ReadOptions& options = {});

// Paths of the modules that an adapter is about, for DescribeOptions::names. `family`: the model's type where known.
std::vector<std::string> module_names(const Adapter& adapter, const std::string& family = {});

// What --ignore-unused left out, in one sentence that names the tensors (the first ones of many); "" when nothing.
std::string left_out(const Reading& reading);

// ---- encode --------------------------------------------------------------------------------------------------------
// Factors become an adapter: the inverse of read().
//
//   std::vector<peft::TensorInMemory> tensors = ...;                   // A and B of each matrix, wherever they lie
//   const auto file = peft::TensorFile::of(tensors, "step 12");
//   const peft::Model model = peft::describe({.base = "Qwen3-30B-A3B"});
//   peft::Factors factors;                                             // views of `file`, one Factor for each matrix
//   const peft::Plan plan = peft::encode(factors, file, model, peft::Layout::peft_fused);
//   peft::execute(plan, "my-lora");
//
// A program that keeps adapters in memory calls execute_in_memory(plan) in place of the last line.

// Plans a new adapter in layout `to`, its weights and its config. The views of `factors` are of `file`, which may lie
// in memory. `config`: what the new one says beside targets, ranks and scales, such as the base model. `dtype`: what
// factors are cast to; absent: their own.
// Nothing is computed before execute(). Throws LO_NO_FORM for what the layout cannot hold, with the way out.
Plan encode(const Factors& factors, std::shared_ptr<const TensorFile> file, const Model& model, Layout to,
            const AdapterConfig& config = {}, std::optional<Dtype> dtype = std::nullopt);

}  // namespace peft
