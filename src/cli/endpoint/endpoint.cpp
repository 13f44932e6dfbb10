#include "cli/endpoint/endpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "cli/endpoint/http.h"
#include "cli/endpoint/native.h"
#include "peft/adapter.h"
#include "peft/error.h"
#include "peft/model.h"

namespace peft::cli {
namespace {

constexpr std::int64_t kTokens = 24;

// Tokens from all over the vocabulary, always the same ones.
std::vector<std::int64_t> some_tokens(const std::string& base) {
  DescribeOptions options;
  options.base = resolve_path(base);
  const std::int64_t vocabulary = describe(options).vocab_size;
  if (vocabulary < 2) {
    at(base).fail(ErrorCode::MD_NEEDED, {.problem = "the size of the vocabulary is not known", .hint = "--ids 1,2,3"});
  }
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < kTokens; ++i) ids.push_back((17 + i * 104'729 + i * i * 7'919) % vocabulary);
  return ids;
}

struct Asked {
  LogProbabilities values;
  ServerVerdict failed = ServerVerdict::right;  // else why there are none
  std::string what;
};

Asked ask(const Url& url, const EndpointOptions& options, const std::string& model,
          const std::vector<std::int64_t>& ids) {
  const auto limit = std::chrono::milliseconds(static_cast<std::int64_t>(options.seconds * 1000));
  const HttpAnswer answer = post_json(url, "/completions", completions_request(model, ids), limit);
  const std::string named = fmt::format("model {}: ", printable(model));
  switch (answer.failure) {
    case HttpFailure::not_reached:
      at(options.url)
          .fail(ErrorCode::IO_OPEN, {.problem = "no server answers there: " + answer.what,
                                     .hint = "is it running, and is this its address?"});
    case HttpFailure::too_late:
      return {{}, ServerVerdict::too_late, named + answer.what};
    case HttpFailure::closed:
      return {{}, ServerVerdict::closed, named + answer.what};
    case HttpFailure::unreadable:
      return {{}, ServerVerdict::not_readable, named + answer.what};
    case HttpFailure::none:
      break;
  }
  if (answer.status != 200) {
    return {{},
            ServerVerdict::not_readable,
            fmt::format("{}status {}: {}", named, answer.status, printable(answer.body, 300))};
  }
  Asked asked;
  asked.values = parse_completions(answer.body, ids, asked.what);
  if (asked.values.empty()) asked.failed = ServerVerdict::not_readable, asked.what = named + printable(asked.what, 400);
  return asked;
}

// By how much servers take an adapter too strong or too weak: rsLoRA ignored or taken for granted, a rank that was
// doubled, a scale that was left out or applied twice.
std::vector<double> likely_factors(const std::string& adapter) {
  const AdapterConfig config = AdapterConfig::read(adapter);
  const double root = std::sqrt(static_cast<double>(std::max<std::int64_t>(config.r, 1)));
  std::vector<double> factors = {config.use_rslora ? 1 / root : root, 2, 0.5};
  if (const double scale = config.scale_for("", config.r); scale != 0 && std::isfinite(scale))
    factors.insert(factors.end(), {1 / scale, scale});
  std::erase_if(factors, [](double factor) { return std::abs(factor - 1) < 0.01; });
  return factors;
}

std::string in_words(const Comparison& comparison) {
  switch (comparison.verdict) {
    case ServerVerdict::right:
      return "the server runs the adapter as it is";
    case ServerVerdict::ignored:
      return "with the adapter the server answers as without it";
    case ServerVerdict::wrong_scale:
      return fmt::format("the server runs the adapter {:.3g} times as strong as its config says", comparison.factor);
    case ServerVerdict::other_base:
      return "already without the adapter the server has another model than --base";
    case ServerVerdict::too_small:
      return "the adapter changes so little on these tokens that nothing can be told: try others with --ids";
    default:
      return "the server runs the adapter, and not as it is";
  }
}

}  // namespace

EndpointReport ask_server(const EndpointOptions& options) {
  const Url url = parse_url(options.url);
  const std::vector<std::int64_t> ids = options.ids.empty() ? some_tokens(options.base) : options.ids;
  EndpointReport report;
  report.tokens = ids.size();
  Answers servers, ours;
  for (const auto& [model, values] : {std::pair{&options.model, &servers.base}, {&options.lora, &servers.adapter}}) {
    Asked asked = ask(url, options, *model, ids);
    if (asked.values.empty()) {
      report.comparison.verdict = asked.failed;
      report.what = asked.what;
      return report;
    }
    *values = std::move(asked.values);
  }
  const std::string adapter = resolve_path(options.adapter);
  const NativeRuntime runtime(options.base, adapter, ids);
  ours.base = runtime.base(), ours.adapter = runtime.with_adapter();
  const auto at_scale = [&](double scale) { return runtime.with_scale(scale); };
  report.comparison = runtime.has_alpha() ? compare(ours, servers, likely_factors(adapter), at_scale)
                                          : compare(ours, servers, {}, nullptr);
  report.what = in_words(report.comparison);
  return report;
}

}  // namespace peft::cli
