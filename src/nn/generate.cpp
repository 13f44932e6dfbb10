// Generating tokens: one step at a time, with a cache.
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "nn/config_reader.h"
#include "nn/impl.h"

namespace peft::nn {
namespace {

void check(const GenerateOptions& options) {
  const auto fail = [](const char* what, const char* expected, double got) {
    throw Error(
        ErrorCode::USAGE,
        {.tensor = what, .problem = "an option that cannot be", .expected = expected, .got = std::to_string(got)});
  };
  if (options.max_new_tokens < 1) fail("max_new_tokens", "at least 1", static_cast<double>(options.max_new_tokens));
  if (!(options.temperature >= 0) || std::isinf(options.temperature))
    fail("temperature", "0 or more", options.temperature);
  if (options.top_k < 0) fail("top_k", "0 or more", static_cast<double>(options.top_k));
  if (!(options.top_p > 0 && options.top_p <= 1)) fail("top_p", "above 0, at most 1", options.top_p);
}

// Scores of tokens that may be drawn; the others are minus infinity.
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
  Generator(const CausalLM& model, const GenerateOptions& options, const Context& context)
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
  const Context& context_;
  at::Generator random_;
  CachePtr cache_;
  Tensor mask_;
  bool padded_ = false;
  std::vector<std::vector<std::int64_t>> out_;
  std::vector<bool> done_;
  std::vector<std::int64_t> last_;
};

std::vector<std::int64_t> one_or_more(const Reader& config, const char* key) {
  if (!config.has(key)) return {};
  const std::string shown = config.show(key);
  if (shown.starts_with("[")) return config.list(key);
  return {config.whole(key, 0)};
}

}  // namespace

std::vector<std::vector<std::int64_t>> generate(const CausalLM& model, const Tensor& ids, const Tensor& mask,
                                                const GenerateOptions& options, const Context& context) {
  check(options);
  at::NoGradGuard no_gradients;
  return Generator(model, options, context).run(ids, mask);
}

std::vector<std::vector<std::int64_t>> generate(const CausalLM& model, const Tensor& ids, const Tensor& mask,
                                                const GenerateOptions& options) {
  return generate(model, ids, mask, options, Context{});
}

GenerateOptions generation_defaults(const std::string& folder) {
  GenerateOptions options;
  const std::filesystem::path root(folder);
  const bool own = std::filesystem::exists(root / "generation_config.json");
  const std::string file = (root / (own ? "generation_config.json" : "config.json")).string();
  Reader config = Reader::parse(Reader::read(file), file);
  if (!own && config.has("text_config") && !config.has("eos_token_id")) config = config.section("text_config");
  options.eos_token_ids = one_or_more(config, "eos_token_id");
  if (const auto pad = one_or_more(config, "pad_token_id"); !pad.empty()) options.pad_token_id = pad.front();
  if (own && config.flag("do_sample", false)) {
    options.temperature = config.number("temperature", 1);
    options.top_k = config.whole("top_k", 50);
    options.top_p = config.number("top_p", 1);
  }
  return options;
}

}  // namespace peft::nn
