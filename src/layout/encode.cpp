#include "layout/encode.h"

#include <fmt/format.h>

#include <algorithm>

#include "layout/encoder.h"
#include "layout/keys.h"

namespace peft::layout {

Generation generation_of(Layout layout, const Model& model) {
  if (layout == Layout::peft_per_expert) return Generation::v4;
  if (layout != Layout::peft_fused_0_18 || model.base_is_v5_only) return Generation::v5;
  // PEFT 0.17 and 0.18 ran on transformers 4 where that generation had fused parameters (gpt_oss, llama4, ...).
  const bool fused_in_v4 =
      std::any_of(model.experts.begin(), model.experts.end(), [](const Experts& e) { return !e.form->v4.empty(); });
  return fused_in_v4 ? Generation::v4 : Generation::v5;
}

Encoded encode(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options) {
  return Encoder(factors, model, file, options).run();
}

Encoded Encoder::run() {
  const auto& all = factors_.factors;
  if (options_.to == Layout::peft_per_expert) {
    result_.tensors.reserve(2 * all.size() + factors_.extras.size());
    result_.targets.reserve(all.size());
  }
  for (std::size_t i = 0; i < all.size();) {
    std::size_t j = i;
    while (j < all.size() && all[j].site.module == all[i].site.module) ++j;
    const Group group(all.data() + i, j - i);
    const bool on_experts = std::any_of(
        group.begin(), group.end(), [](const Factor& f) { return f.site.expert >= 0 || !f.site.parameter.empty(); });
    if (on_experts)
      experts(group);
    else
      for (const Factor& factor : group) dense(factor);
    i = j;
  }
  for (const Extra& e : factors_.extras) extra(e);
  for (const auto& [text, count] : steps_)
    result_.steps.push_back(count == 1 ? text : fmt::format("{} x {}", count, text));
  return std::move(result_);
}

void Encoder::no_form(const std::string& what, std::string problem, std::string hint) const {
  throw Error(ErrorCode::LO_NO_FORM, {.file = file_ == nullptr ? std::string() : file_->path(),
                                      .tensor = what,
                                      .problem = std::move(problem),
                                      .expected = "something that " + std::string(info(options_.to).name) + " can hold",
                                      .hint = std::move(hint)});
}

const Experts& Encoder::experts_of(const Factor& factor) const {
  const auto at = experts_.find(factor.site.module);
  if (at != experts_.end()) return *at->second;
  throw Error(ErrorCode::MD_NEEDED, {.tensor = factor.site.module,
                                     .problem = "nothing is known about these experts",
                                     .hint = "give the model with --base, or its type with --family"});
}

void Encoder::experts(Group group) {
  const Experts& experts = experts_of(group.front());
  const ExpertsForm& form = *experts.form;
  const bool has_fused = !form.v5.empty() || !form.v4.empty();
  if (options_.to == Layout::peft_per_expert) return per_expert(experts, group);
  if (!has_fused) {
    no_form(group.front().site.module,
            fmt::format("the experts of {} are modules of their own in every transformers version", model_.model_type),
            "keep the per-expert layout: PEFT on transformers 5 reads it");
  }
  fused(experts, group);
}

Dtype Encoder::dtype_of(const View& view) const {
  return file_ == nullptr ? Dtype::f32 : file_->tensors()[view.tensor].dtype;
}

void Encoder::add_matrix(std::string name, const View& view) {
  const Dtype dtype = dtype_of(view);
  add_tensor({std::move(name),
              options_.dtype.value_or(dtype),
              {view.rows, view.cols},
              view.rows,
              view.cols,
              {{0, 0, 1, view, 1.0}}},
             std::array{dtype});
}

void Encoder::add_whole(std::string name, const View& view) {
  if (file_ == nullptr) return;
  const TensorInfo& info = file_->tensors()[view.tensor];
  add_tensor(copy_of(info, view.tensor, std::move(name), options_.dtype.value_or(info.dtype)), std::array{info.dtype});
}

namespace {

bool is_widening(Dtype from, Dtype to) {
  if (to == Dtype::f64) return true;
  return to == Dtype::f32 && from != Dtype::f64;
}

}  // namespace

void Encoder::add_tensor(PlannedTensor tensor, std::span<const Dtype> source_dtypes) {
  for (const Dtype from : source_dtypes) {
    if (from == tensor.dtype) continue;
    note(is_widening(from, tensor.dtype) ? Exactness::value_exact : Exactness::rounded);
  }
  tensor.must_be_finite = true;
  if (file_ != nullptr) result_.tensors.push_back(std::move(tensor));
}

void Encoder::dense(const Factor& factor) {
  const std::string name = dense_name(factor.site.module);
  const std::string key = std::string(kPrefix) + name;
  const bool embedding = factor.kind == FactorKind::embedding;
  add_whole(key + (embedding ? ".lora_embedding_A" : ".lora_A.weight"), factor.a);
  add_whole(key + (embedding ? ".lora_embedding_B" : ".lora_B.weight"), factor.b);
  // Routers of transformers 5 own their weight: LoRA sits on the parameter.
  // Some derive from nn.Linear, but fail when they are wrapped as one (phimoe): their class tells. A config alone keeps
  // the module, as the golden migrations have it.
  const auto& tree = model_.tree(generation_);
  const Module* module = tree ? tree->find(name) : nullptr;
  const bool router = file_ != nullptr && module != nullptr && module->class_name.ends_with("Router");
  const bool parameter = router || model_.kind(generation_, name) == ModuleKind::other;
  add_target(parameter ? name + ".weight" : name, parameter, factor.rank, factor.scale);
  if (name != factor.site.module)
    step("renamed " + factor.site.module.substr(factor.site.module.rfind('.') + 1) + " pair (bit-exact)");
}

void Encoder::extra(const Extra& extra) {
  std::string name;
  if (extra.site.expert >= 0) {
    const Experts& experts = *experts_.at(extra.site.module);
    if (options_.to != Layout::peft_per_expert && !(experts.form->v4.empty() && experts.form->v5.empty())) {
      no_form(describe(extra.site),
              extra.kind == ExtraKind::magnitude ? "DoRA on experts does not exist for fused experts"
                                                 : extra.suffix + " of an expert does not exist for fused experts",
              "merge the adapter into the base model, or keep the per-expert layout");
    }
    name = experts.per_expert_module(extra.site.expert, extra.site.projection);
  } else {
    name = dense_name(extra.site.module);
    const bool lora_part = extra.kind == ExtraKind::magnitude || extra.kind == ExtraKind::lora_bias;
    if (lora_part && model_.kind(generation_, name) == ModuleKind::other) {
      no_form(name, "DoRA and lora_bias do not exist on parameters, and this module is one in the target's generation",
              "merge the adapter into the base model, or keep its layout");
    }
  }
  if (extra.kind == ExtraKind::saved_module) result_.saved_modules.push_back(name);
  if (file_ == nullptr) return;
  const TensorInfo& info = file_->tensors()[extra.tensor];
  // Weights that are carried whole keep their dtype: a cast is for LoRA factors.
  result_.tensors.push_back(copy_of(info, extra.tensor, std::string(kPrefix) + name + "." + extra.suffix, info.dtype));
}

}  // namespace peft::layout
