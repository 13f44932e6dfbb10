#include "cli/endpoint/endpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/endpoint/dialect.h"
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

// Where the server gave a number both times.
std::vector<std::size_t> known_places(const LogProbabilities& base, const LogProbabilities& adapter) {
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < base.size(); ++i)
    if (std::isfinite(base[i]) && std::isfinite(adapter[i])) places.push_back(i);
  return places;
}

LogProbabilities at_places(const LogProbabilities& values, const std::vector<std::size_t>& places) {
  LogProbabilities result;
  for (const std::size_t place : places) result.push_back(values[place]);
  return result;
}

}  // namespace

EndpointReport ask_server(const EndpointOptions& options) {
  const std::vector<std::int64_t> ids = options.ids.empty() ? some_tokens(options.base) : options.ids;
  EndpointReport report;
  report.tokens = ids.size();
  Asked base, adapter;
  const auto dialect = find_dialect(options.server, base);
  if (dialect) base = dialect->base(ids);
  if (base.failed == ServerVerdict::right) adapter = dialect->adapter(ids);
  for (const Asked* asked : {&base, &adapter}) {
    if (asked->failed == ServerVerdict::right) continue;
    report.comparison.verdict = asked->failed;
    report.what = asked->what;
    return report;
  }
  const std::vector<std::size_t> known = known_places(base.values, adapter.values);
  report.tokens -= base.values.size() - known.size();
  const std::string folder = resolve_path(options.adapter);
  const NativeRuntime runtime(options.base, folder, ids);
  const Answers ours{at_places(runtime.base(), known), at_places(runtime.with_adapter(), known)};
  const Answers servers{at_places(base.values, known), at_places(adapter.values, known)};
  const auto at_scale = [&](double scale) { return at_places(runtime.with_scale(scale), known); };
  report.comparison = runtime.has_alpha() ? compare(ours, servers, likely_factors(folder), at_scale)
                                          : compare(ours, servers, {}, nullptr);
  report.what = in_words(report.comparison) + dialect->note();
  return report;
}

}  // namespace peft::cli
