#include "nn/forward/run.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>

#include "base/text.h"
#include "model/config_json/config_section.h"
#include "nn/forward/attention.h"
#include "nn/forward/loss.h"
#include "nn/forward/moe.h"
#include "nn/forward/pass.h"
#include "nn/forward/recompute.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

std::string shape_text(at::IntArrayRef shape) { return peft::shape_text({shape.data(), shape.size()}); }

std::string place_text(std::int64_t row, std::int64_t column) {
  std::string text = "ids[";
  text.append(std::to_string(row)).append("][").append(std::to_string(column)).append("]");
  return text;
}

// Every id must be in the vocabulary. In a prompt none may stand for an image; the model itself may generate one.
void check_ids(const CausalLM::Impl& model, const ForwardInput& input) {
  const Tensor& ids = input.ids;
  if (!ids.defined() || ids.dim() != 2 || ids.numel() == 0 || ids.scalar_type() != at::kLong) {
    at({}, "ids").fail(ErrorCode::USAGE, {.problem = "not a batch of token ids",
                                          .expected = "int64 [sequences, tokens], none of them empty",
                                          .got = ids.defined() ? shape_text(ids.sizes()) : "nothing"});
  }
  const Tensor host = ids.to(at::kCPU).contiguous();
  const std::int64_t* id = host.const_data_ptr<std::int64_t>();
  const bool prompt = input.cache == nullptr || input.cache->length == 0;
  for (std::int64_t i = 0; i < host.numel(); ++i) {
    if (id[i] < 0 || id[i] >= model.config.vocab) {
      at({}, place_text(i / ids.size(1), i % ids.size(1)))
          .fail(ErrorCode::USAGE, {.problem = "a token id outside the vocabulary",
                                   .expected = "0 to " + std::to_string(model.config.vocab - 1),
                                   .got = std::to_string(id[i])});
    }
    if (prompt && std::ranges::count(model.config.media_tokens, id[i]) > 0) {
      at({}, place_text(i / ids.size(1), i % ids.size(1)))
          .fail(ErrorCode::USAGE, {.problem = "stands for an image or a video; only text runs here",
                                   .expected = "text tokens",
                                   .got = std::to_string(id[i])});
    }
  }
}

void check_embeds(const CausalLM::Impl& model, const ForwardInput& input) {
  const Tensor& embeds = input.embeds;
  if (!input.ids.defined() && embeds.dim() == 3 && embeds.numel() > 0 && embeds.size(2) == model.config.hidden) return;
  at({}, "embeds")
      .fail(ErrorCode::USAGE,
            {.problem = "not a batch of embeddings in place of ids",
             .expected = "[sequences, tokens, " + std::to_string(model.config.hidden) + "], and no ids",
             .got = shape_text(embeds.sizes()) + (input.ids.defined() ? " and ids" : "")});
}

// The mask as booleans; undefined when nothing is padding.
Tensor checked_mask(const Tensor& mask, std::int64_t sequences, std::int64_t length, at::Device device) {
  if (!mask.defined()) return {};
  if (mask.dim() != 2 || mask.size(0) != sequences || mask.size(1) != length) {
    at({}, "mask")
        .fail(ErrorCode::USAGE, {.problem = "does not fit the ids",
                                 .expected = shape_text({sequences, length}),
                                 .got = shape_text(mask.sizes())});
  }
  const Tensor host = mask.to(at::kCPU).to(at::kLong);
  if (host.ne(0).logical_and(host.ne(1)).any().item<bool>())
    at({}, "mask")
        .fail(ErrorCode::USAGE,
              {.problem = "holds something else than 0 and 1", .expected = "0 or 1", .got = "other numbers"});
  if (host.eq(1).all().item<bool>()) return {};
  return host.eq(1).to(device);
}

void check_adapters(const ForwardContext& context, std::int64_t sequences) {
  const std::size_t given = context.adapter_of_sequence.size();
  if (given == 0 || static_cast<std::int64_t>(given) == sequences) return;
  at({}, "adapters")
      .fail(ErrorCode::USAGE, {.problem = "one is needed for each sequence",
                               .expected = std::to_string(sequences),
                               .got = std::to_string(given)});
}

Tensor mix_tokens(Pass& pass, const Layer& layer, const Tensor& x) {
  return layer.delta ? run_delta_net(pass, layer, x) : run_attention(pass, layer, x);
}

// Packed documents, one after the other: no token sees another document, and no state goes on to the next.
Tensor mix_documents(const Pass& pass, const Layer& layer, const Tensor& x) {
  std::vector<Tensor> parts;
  std::int64_t first = 0;
  for (const std::int64_t length : pass.documents) {
    Pass own = pass;
    own.tokens = length, own.masks.clear();
    own.cos = pass.cos.narrow(1, first, length), own.sin = pass.sin.narrow(1, first, length);
    parts.push_back(mix_tokens(own, layer, x.narrow(0, first, length)));
    first += length;
  }
  return at::cat(parts);
}

Tensor run_layer(Pass& pass, const Layer& layer, const Tensor& x) {
  const ModelConfig& config = pass.model.config;
  const Norms norms = config.family->norms;
  const auto add = [&pass](const Tensor& a, Tensor b) {
    const bool in_place = pass.inference && !pass.recording() && a.scalar_type() == b.scalar_type();
    return in_place ? b.add_(a) : a + b;
  };
  const Tensor in = rms_norm(x, layer.input_norm->first, config.eps, norms);
  pass.record("attn_in", in);
  const Tensor mixed = pass.documents.empty() ? mix_tokens(pass, layer, in) : mix_documents(pass, layer, in);
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

// The rows of the last `keep` tokens of each sequence.
Tensor last_rows(const Pass& pass, const Tensor& x, std::int64_t keep) {
  if (keep == 0 || keep >= pass.tokens) return x;
  return x.view({pass.sequences, pass.tokens, x.size(1)})
      .narrow(1, pass.tokens - keep, keep)
      .reshape({pass.sequences * keep, x.size(1)});
}

// What the layers of a checkpointed pass need in the backward pass, when the pass itself is over.
struct KeptPass {
  ForwardContext context;
  std::unique_ptr<Pass> pass;
};

std::shared_ptr<const KeptPass> kept_pass(const Pass& pass) {
  auto kept = std::make_shared<KeptPass>();
  kept->context = pass.context;
  kept->context.recorder = nullptr;
  kept->pass = std::make_unique<Pass>(Pass{.model = pass.model, .context = kept->context});
  Pass& copy = *kept->pass;
  copy.sequences = pass.sequences, copy.tokens = pass.tokens, copy.cos = pass.cos, copy.sin = pass.sin;
  copy.padding = pass.padding, copy.want_router_logits = pass.want_router_logits, copy.documents = pass.documents;
  return kept;
}

// One layer that is computed again in the backward pass.
Tensor run_layer_again(Pass& pass, const std::shared_ptr<const KeptPass>& kept, const Layer& layer, const Tensor& x) {
  const auto chosen = std::make_shared<Tensor>();
  const std::int64_t number = pass.layer;
  const Part part = [kept, &layer, chosen, number](const Tensor& in) {
    Pass own = *kept->pass;
    own.layer = number, own.chosen_experts = chosen.get();
    std::vector<Tensor> outputs{run_layer(own, layer, in)};
    outputs.insert(outputs.end(), own.router_logits.begin(), own.router_logits.end());
    return outputs;
  };
  const std::vector<Tensor> outputs = recomputed(x, pass.context.training, part);
  if (pass.on_routing && chosen->defined()) pass.on_routing(number, *chosen);
  pass.router_logits.insert(pass.router_logits.end(), outputs.begin() + 1, outputs.end());
  return outputs.front();
}

Tensor run_layers(Pass& pass, Tensor x, bool checkpointing) {
  const bool again = checkpointing && !pass.inference && pass.cache == nullptr;
  const auto kept = again ? kept_pass(pass) : nullptr;
  for (const Layer& layer : pass.model.layers) {
    x = again ? run_layer_again(pass, kept, layer, x) : run_layer(pass, layer, x);
    ++pass.layer;
  }
  return x;
}

void check_documents(const ForwardInput& input, std::int64_t sequences, std::int64_t tokens) {
  std::int64_t sum = 0;
  bool bad = false;
  for (const std::int64_t length : input.documents) bad = bad || length < 1, sum += length;
  if (input.documents.empty() || (!bad && sum == tokens && sequences == 1 && !input.cache && !input.mask.defined()))
    return;
  at({}, "documents")
      .fail(ErrorCode::USAGE, {.problem = "packed documents are lengths that fill one sequence, without mask and cache",
                               .expected = "a sum of " + std::to_string(tokens),
                               .got = std::to_string(sum) + ", " + std::to_string(sequences) + " sequences"});
}

Tensor checked_positions(const Tensor& given, std::int64_t sequences, std::int64_t tokens) {
  const Tensor positions = given.dim() == 1 ? given.unsqueeze(0) : given;
  if (positions.dim() == 2 && (positions.size(0) == 1 || positions.size(0) == sequences) && positions.size(1) == tokens)
    return positions;
  at({}, "positions")
      .fail(ErrorCode::USAGE, {.problem = "positions are not those of the tokens",
                               .expected = fmt::format("[{}, {}], [1, {}] or [{}]", sequences, tokens, tokens, tokens),
                               .got = fmt::format("[{}]", fmt::join(given.sizes(), ", "))});
}

// Each document's positions begin with 0.
Tensor positions_of(const Pass& pass, const ForwardInput& input) {
  if (input.positions.defined())
    return checked_positions(input.positions, pass.sequences, pass.tokens).to(pass.model.device);
  if (pass.documents.empty())
    return at::arange(pass.past, pass.past + pass.tokens, at::kLong).unsqueeze(0).to(pass.model.device);
  std::vector<Tensor> parts;
  for (const std::int64_t length : pass.documents) parts.push_back(at::arange(0, length, at::kLong));
  return at::cat(parts).unsqueeze(0).to(pass.model.device);
}

// The first layer's input, [rows, hidden].
Tensor embedded(const Pass& pass, const ForwardInput& input) {
  const CausalLM::Impl& model = pass.model;
  if (!input.embeds.defined()) return model.embed->forward(input.ids.to(model.device).reshape({-1}), pass.context);
  return input.embeds.to(model.device, model.dtype).reshape({pass.sequences * pass.tokens, -1});
}

ForwardOutput run(const CausalLM::Impl& model, const ForwardInput& input, const ForwardContext& context) {
  const Tensor& shape = input.embeds.defined() ? input.embeds : input.ids;
  const std::int64_t sequences = shape.size(0), tokens = shape.size(1);
  check_adapters(context, sequences);
  check_documents(input, sequences, tokens);
  Pass pass{.model = model, .context = context, .sequences = sequences, .tokens = tokens};
  pass.cache = input.cache;
  pass.documents = input.documents;
  pass.past = input.cache == nullptr ? 0 : input.cache->length;
  pass.inference = !at::GradMode::is_enabled();
  pass.want_router_logits = input.want_aux_loss, pass.on_routing = input.on_routing;
  pass.padding = checked_mask(input.mask, sequences, pass.past + tokens, model.device);
  Tensor x = embedded(pass, input);
  pass.record_top("embeddings", x);
  set_rotary(pass, positions_of(pass, input));
  x = run_layers(pass, x, input.gradient_checkpointing);
  if (pass.cache != nullptr) pass.cache->length += tokens;
  ForwardOutput output;
  if (input.want_aux_loss && !pass.router_logits.empty()) output.aux_loss = load_balancing_loss(pass);
  if (input.labels.defined()) {
    const LearntRows learnt = learnt_rows(input.labels, input.documents);
    const Tensor rows = x.index_select(0, learnt.rows.to(x.device()));
    const Tensor hidden = rms_norm(rows, model.norm->first, model.config.eps, model.config.family->norms);
    add_loss(pass, hidden, learnt.next.to(x.device()), input.loss_divisor, output);
    return output;
  }
  x = last_rows(pass, x, input.logits_to_keep);
  x = rms_norm(x, model.norm->first, model.config.eps, model.config.family->norms);
  pass.record_top("final_norm", x);
  const Tensor logits = model.lm_head->forward(x, context);
  output.logits = logits.view({sequences, -1, logits.size(1)});
  pass.record_top("logits", output.logits);
  return output;
}

void check_options(const GenerateOptions& options) {
  const auto fail = [](const char* what, const char* expected, double got) {
    peft::at({}, what).fail(ErrorCode::USAGE,
                            {.problem = "an option that cannot be", .expected = expected, .got = std::to_string(got)});
  };
  if (options.max_new_tokens < 1) fail("max_new_tokens", "at least 1", static_cast<double>(options.max_new_tokens));
  if (!(options.temperature >= 0) || std::isinf(options.temperature))
    fail("temperature", "0 or more", options.temperature);
  if (options.top_k < 0) fail("top_k", "0 or more", static_cast<double>(options.top_k));
  if (!(options.top_p > 0 && options.top_p <= 1)) fail("top_p", "above 0, at most 1", options.top_p);
}

// The scores of the tokens that may be drawn; all others are minus infinity.
Tensor limited(const Tensor& logits, const GenerateOptions& options) {
  const double none = -std::numeric_limits<double>::infinity();
  Tensor scores = logits.to(at::kFloat) / options.temperature;
  if (options.top_k > 0 && options.top_k < scores.size(1)) {
    const Tensor least = std::get<0>(scores.topk(options.top_k, -1)).narrow(1, options.top_k - 1, 1);
    scores = scores.masked_fill(scores.lt(least), none);
  }
  if (options.top_p < 1) {
    const auto [sorted, order] = scores.sort(-1, true);
    const Tensor p = at::softmax(sorted, -1);
    const Tensor out = (p.cumsum(-1) - p).ge(options.top_p);  // what comes before already has top_p; the first stays
    scores = scores.scatter(1, order, sorted.masked_fill(out, none));
  }
  return scores;
}

class Generator {
 public:
  Generator(const CausalLM& model, const GenerateOptions& options, const ForwardContext& context)
      : model_(model),
        options_(options),
        context_(context),
        random_(at::make_generator<at::CPUGeneratorImpl>(options.seed)) {}

  std::vector<std::vector<std::int64_t>> run(const Tensor& ids, const Tensor& mask) {
    start(ids, mask);
    Tensor next_ids = ids;
    Tensor positions = (mask_.cumsum(1) - 1).clamp_min(0);
    for (std::int64_t i = 0; i < options_.max_new_tokens; ++i) {
      const ForwardInput input{.ids = next_ids,
                               .mask = padded_ ? mask_ : Tensor(),
                               .positions = positions,
                               .cache = cache_.get(),
                               .logits_to_keep = 1};
      const Tensor logits = model_.forward(input, context_).logits.select(1, -1).to(at::kCPU);
      if (options_.on_logits) options_.on_logits(logits);
      if (!take(choose(logits))) break;
      next_ids = at::tensor(last_, at::kLong).unsqueeze(1);
      mask_ = at::cat({mask_, at::ones({mask_.size(0), 1}, mask_.options())}, 1);
      positions = (mask_.sum(1, true) - 1);
    }
    return std::move(out_);
  }

 private:
  void start(const Tensor& ids, const Tensor& mask) {
    if (!ids.defined() || ids.dim() != 2) return;  // the forward pass says what is wrong
    mask_ = mask.defined() ? mask.to(at::kCPU).to(at::kLong) : at::ones(ids.sizes(), at::kLong);
    padded_ = mask.defined() && mask_.ne(1).any().item<bool>();
    const auto rows = static_cast<std::size_t>(ids.size(0));
    out_.resize(rows), done_.assign(rows, false), last_.assign(rows, 0);
    cache_ = model_.new_cache();
  }

  Tensor choose(const Tensor& logits) {
    if (options_.temperature == 0) return logits.argmax(-1);
    return at::multinomial(at::softmax(limited(logits, options_), -1), 1, false, random_).squeeze(1);
  }

  bool is_end(std::int64_t token) const { return std::ranges::count(options_.eos_token_ids, token) > 0; }

  // Keeps a step's tokens; false when all sequences have ended or the caller wants no more.
  bool take(const Tensor& chosen) {
    const std::int64_t padding =
        options_.pad_token_id.value_or(options_.eos_token_ids.empty() ? 0 : options_.eos_token_ids.front());
    for (std::size_t row = 0; row < out_.size(); ++row) {
      last_[row] = done_[row] ? padding : chosen.const_data_ptr<std::int64_t>()[row];
      out_[row].push_back(last_[row]);
      if (is_end(last_[row])) done_[row] = true;
    }
    if (options_.on_tokens && !options_.on_tokens(last_)) return false;
    return !std::ranges::all_of(done_, [](bool done) { return done; });
  }

  const CausalLM& model_;
  const GenerateOptions& options_;
  const ForwardContext& context_;
  at::Generator random_;
  CachePtr cache_;
  Tensor mask_;
  bool padded_ = false;
  std::vector<std::vector<std::int64_t>> out_;
  std::vector<bool> done_;
  std::vector<std::int64_t> last_;
};

}  // namespace

ForwardOutput run_forward(const CausalLM::Impl& model, const ForwardInput& input, const ForwardContext& context) {
  if (model.device.is_meta())
    at({}, "model")
        .fail(ErrorCode::USAGE,
              {.problem = "has shapes only and cannot run", .expected = "a model with weights", .got = "device meta"});
  if (input.embeds.defined())
    check_embeds(model, input);
  else
    check_ids(model, input);
  if (input.labels.defined()) check_labels(model, input);
  if (context.training && model.config.attention_dropout != 0) {
    at({}, "attention_dropout")
        .fail(ErrorCode::USAGE, {.problem = "dropout of attention weights is not implemented",
                                 .expected = "0 in config.json",
                                 .got = std::to_string(model.config.attention_dropout)});
  }
  if (input.cache == nullptr) return run(model, input, context);
  const std::int64_t sequences = (input.embeds.defined() ? input.embeds : input.ids).size(0);
  if (input.cache->length > 0 && input.cache->sequences != sequences) {
    at({}, "cache")
        .fail(ErrorCode::USAGE, {.problem = "holds another number of sequences",
                                 .expected = std::to_string(input.cache->sequences),
                                 .got = std::to_string(sequences)});
  }
  input.cache->sequences = sequences;
  at::NoGradGuard no_gradients;  // a cache is written in place
  return run(model, input, context);
}

std::vector<std::vector<std::int64_t>> generate(const CausalLM& model, const Tensor& ids, const Tensor& mask,
                                                const GenerateOptions& options, const ForwardContext& context) {
  check_options(options);
  at::NoGradGuard no_gradients;
  return Generator(model, options, context).run(ids, mask);
}

GenerateOptions generation_defaults(const std::string& folder) {
  GenerateOptions options;
  const std::filesystem::path root(folder);
  const bool own = std::filesystem::exists(root / "generation_config.json");
  const std::string file = (root / (own ? "generation_config.json" : "config.json")).string();
  model::ConfigSection config = model::ConfigSection::read(file);
  if (!own && config.has("text_config") && !config.has("eos_token_id")) config = config.section("text_config");
  options.eos_token_ids = config.one_or_more("eos_token_id");
  if (const auto pad = config.one_or_more("pad_token_id"); !pad.empty()) options.pad_token_id = pad.front();
  if (own && config.flag("do_sample", false)) {
    options.temperature = config.number("temperature", 1);
    options.top_k = config.whole("top_k", 50);
    options.top_p = config.number("top_p", 1);
  }
  return options;
}

}  // namespace peft::nn
