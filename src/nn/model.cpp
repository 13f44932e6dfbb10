// A forward pass from ids to logits, and what a model tells about itself.
#include <algorithm>
#include <limits>

#include "nn/impl.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  text += ']';
  return text;
}

std::string place_text(std::int64_t row, std::int64_t column) {
  std::string text = "ids[";
  text.append(std::to_string(row)).append("][").append(std::to_string(column)).append("]");
  return text;
}

[[noreturn]] void refuse(const std::string& what, const std::string& problem, const std::string& expected,
                         const std::string& got) {
  throw Error(ErrorCode::USAGE, {.tensor = what, .problem = problem, .expected = expected, .got = got});
}

// Ids of the vocabulary, and in a prompt none that stands for an image: what the model itself generates is text to it.
void check_ids(const CausalLM::Impl& model, const ForwardInput& input) {
  const Tensor& ids = input.ids;
  if (!ids.defined() || ids.dim() != 2 || ids.numel() == 0 || ids.scalar_type() != at::kLong) {
    refuse("ids", "not a batch of token ids", "int64 [sequences, tokens], none of them empty",
           ids.defined() ? shape_text(ids.sizes()) : "nothing");
  }
  const Tensor host = ids.to(at::kCPU).contiguous();
  const std::int64_t* id = host.const_data_ptr<std::int64_t>();
  const bool prompt = input.cache == nullptr || input.cache->length == 0;
  for (std::int64_t i = 0; i < host.numel(); ++i) {
    if (id[i] < 0 || id[i] >= model.config.vocab) {
      refuse(place_text(i / ids.size(1), i % ids.size(1)), "a token id outside the vocabulary",
             "0 to " + std::to_string(model.config.vocab - 1), std::to_string(id[i]));
    }
    if (prompt && std::ranges::count(model.config.media_tokens, id[i]) > 0) {
      refuse(place_text(i / ids.size(1), i % ids.size(1)), "stands for an image or a video; only text runs here",
             "text tokens", std::to_string(id[i]));
    }
  }
}

// The mask as booleans; undefined when nothing is padding.
Tensor checked_mask(const Tensor& mask, std::int64_t sequences, std::int64_t length, at::Device device) {
  if (!mask.defined()) return {};
  if (mask.dim() != 2 || mask.size(0) != sequences || mask.size(1) != length) {
    refuse("mask", "does not fit the ids", shape_text({sequences, length}), shape_text(mask.sizes()));
  }
  const Tensor host = mask.to(at::kCPU).to(at::kLong);
  if (host.ne(0).logical_and(host.ne(1)).any().item<bool>())
    refuse("mask", "holds something else than 0 and 1", "0 or 1", "other numbers");
  if (host.eq(1).all().item<bool>()) return {};
  return host.eq(1).to(device);
}

void set_adapters(Context& context, std::int64_t sequences, std::int64_t tokens, at::Device device) {
  if (context.adapter_of_sequence.empty()) return;
  if (static_cast<std::int64_t>(context.adapter_of_sequence.size()) != sequences) {
    refuse("adapters", "one is needed for each sequence", std::to_string(sequences),
           std::to_string(context.adapter_of_sequence.size()));
  }
  context.adapter_of_row = at::tensor(context.adapter_of_sequence, at::kLong).repeat_interleave(tokens).to(device);
}

Tensor run_layer(Pass& pass, const Layer& layer, const Tensor& x) {
  const ModelConfig& config = pass.model.config;
  const Norms norms = config.family->norms;
  const auto add = [&pass](const Tensor& a, Tensor b) {
    return pass.inference && !pass.recording() ? b.add_(a) : a + b;
  };
  const Tensor in = rms_norm(x, layer.input_norm->first, config.eps, norms);
  pass.record("attn_in", in);
  const Tensor mixed = layer.delta ? run_delta_net(pass, layer, in) : run_attention(pass, layer, in);
  pass.record("attn_out", mixed);
  const Tensor middle = add(x, mixed);
  const Tensor mlp_in = rms_norm(middle, layer.post_norm->first, config.eps, norms);
  pass.record("mlp_in", mlp_in);
  const Tensor mlp = layer.moe ? run_moe(pass, *layer.moe, mlp_in) : run_mlp(pass, *layer.mlp, mlp_in);
  pass.record("mlp_out", mlp);
  const Tensor out = add(middle, mlp);
  pass.record("out", out);
  return out;
}

// The rows of the last `keep` tokens of each sequence, and a context that fits them.
Tensor last_rows(const Pass& pass, const Tensor& x, std::int64_t keep, Context& context) {
  if (keep == 0 || keep >= pass.tokens) return x;
  const std::int64_t first = pass.tokens - keep;
  if (context.adapter_of_row.defined()) {
    context.adapter_of_row =
        context.adapter_of_row.view({pass.sequences, pass.tokens}).narrow(1, first, keep).reshape({-1});
  }
  return x.view({pass.sequences, pass.tokens, x.size(1)})
      .narrow(1, first, keep)
      .reshape({pass.sequences * keep, x.size(1)});
}

ForwardOutput run(const CausalLM::Impl& model, const ForwardInput& input, Context context) {
  const std::int64_t sequences = input.ids.size(0), tokens = input.ids.size(1);
  set_adapters(context, sequences, tokens, model.device);
  Pass pass{.model = model, .context = context, .sequences = sequences, .tokens = tokens};
  pass.cache = input.cache;
  pass.past = input.cache == nullptr ? 0 : input.cache->length;
  pass.inference = !at::GradMode::is_enabled();
  pass.want_router_logits = input.want_aux_loss;
  pass.padding = checked_mask(input.mask, sequences, pass.past + tokens, model.device);
  const Tensor positions = input.positions.defined()
                               ? input.positions.to(model.device)
                               : at::arange(pass.past, pass.past + tokens, at::kLong).unsqueeze(0).to(model.device);
  const Tensor ids = input.ids.to(model.device).reshape({-1});
  Tensor x = model.embed->forward(ids, context);
  pass.record_top("embeddings", x);
  set_rotary(pass, positions);
  for (const Layer& layer : model.layers) {
    x = run_layer(pass, layer, x);
    ++pass.layer;
  }
  if (pass.cache != nullptr) pass.cache->length += tokens;
  Context head_context = context;
  x = last_rows(pass, x, input.logits_to_keep, head_context);
  x = rms_norm(x, model.norm->first, model.config.eps, model.config.family->norms);
  pass.record_top("final_norm", x);
  const Tensor logits = model.lm_head->forward(x, head_context);
  ForwardOutput output{.logits = logits.view({sequences, -1, logits.size(1)}), .aux_loss = {}};
  pass.record_top("logits", output.logits);
  if (input.want_aux_loss && !pass.router_logits.empty()) output.aux_loss = load_balancing_loss(pass);
  return output;
}

}  // namespace

CausalLM::CausalLM(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CausalLM::~CausalLM() = default;

void DeleteCache::operator()(Cache* cache) const { delete cache; }

CachePtr CausalLM::new_cache() const {
  CachePtr cache(new Cache);
  cache->layers.resize(impl_->layers.size());
  return cache;
}

ForwardOutput CausalLM::forward(const ForwardInput& input, const Context& context) const {
  if (impl_->device.is_meta()) refuse("model", "has shapes only and cannot run", "a model with weights", "device meta");
  check_ids(*impl_, input);
  if (context.training && impl_->config.attention_dropout != 0) {
    refuse("attention_dropout", "dropout of attention weights is not implemented", "0 in config.json",
           std::to_string(impl_->config.attention_dropout));
  }
  if (input.cache == nullptr) return run(*impl_, input, context);
  const std::int64_t sequences = input.ids.size(0);
  if (input.cache->length > 0 && input.cache->sequences != sequences) {
    refuse("cache", "holds another number of sequences", std::to_string(input.cache->sequences),
           std::to_string(sequences));
  }
  input.cache->sequences = sequences;
  at::NoGradGuard no_gradients;  // a cache is written in place
  return run(*impl_, input, context);
}

Tensor CausalLM::logits(const Tensor& ids, const Tensor& mask) const {
  at::NoGradGuard no_gradients;
  return forward({.ids = ids, .mask = mask, .positions = {}}, {}).logits;
}

const std::string& CausalLM::folder() const { return impl_->folder; }
const std::string& CausalLM::config_json() const { return impl_->config.text; }
const std::string& CausalLM::model_type() const { return impl_->config.model_type; }
std::int64_t CausalLM::vocab_size() const { return impl_->config.vocab; }
double CausalLM::router_aux_loss_coef() const { return impl_->config.moe.aux_loss_coef; }
const std::vector<std::string>& CausalLM::warnings() const { return impl_->warnings; }
at::ScalarType CausalLM::dtype() const { return impl_->dtype; }
at::Device CausalLM::device() const { return impl_->device; }
Modules& CausalLM::modules() { return impl_->modules; }
const Modules& CausalLM::modules() const { return impl_->modules; }

ModuleTree CausalLM::tree() const {
  ModuleTree tree;
  for (const auto& module : impl_->modules.all()) {
    peft::Module entry{.name = module->name, .kind = module->kind, .class_name = module->class_name, .weight = {}};
    const Tensor* weight = module->find("weight");
    if (weight != nullptr) entry.weight = weight->sizes().vec();
    tree.modules.push_back(std::move(entry));
    if (module->kind != ModuleKind::other) continue;
    for (const Slot& slot : module->slots)
      tree.parameters.push_back({module->name, slot.name, slot.tensor->sizes().vec()});
  }
  tree.input_embedding = impl_->embed->name;
  tree.output_embedding = impl_->lm_head->name;
  tree.build_lookup();
  return tree;
}

std::vector<std::pair<std::string, Tensor>> CausalLM::parameters() const {
  std::vector<std::pair<std::string, Tensor>> all;
  for (const auto& module : impl_->modules.all()) {
    for (const Slot& slot : module->slots) {
      const bool again = impl_->tied && slot.tensor == &impl_->lm_head->weight;
      if (!again) all.emplace_back(module->name + "." + slot.name, *slot.tensor);
    }
  }
  return all;
}

std::int64_t CausalLM::parameter_count() const {
  std::int64_t count = 0;
  for (const auto& [name, tensor] : parameters()) count += tensor.numel();
  return count;
}

}  // namespace peft::nn
