#include "cli/endpoint/log_probabilities.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "cli/output/json.h"

namespace peft::cli {
namespace {

// Servers compute in 16 bits, which moves log-probabilities by some hundredths. What is no more than that, or no more
// than a part of what the adapter moves, is the same.
constexpr double kNoise = 0.02, kPart = 0.1, kOtherBase = 0.5;
constexpr int kSteps = 5;

double distance(const LogProbabilities& x, const LogProbabilities& y) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  return x.empty() ? 0 : std::sqrt(sum / static_cast<double>(x.size()));
}

// A scale of the adapter, and our own numbers with it.
struct Scaled {
  double scale;
  LogProbabilities values;
};

// How far to go from `to` so that the numbers come nearest to `wanted`, as the way from `from` to `to` shows; no
// further than the scale is large.
double next_step(const LogProbabilities& wanted, const Scaled& from, const Scaled& to) {
  double both = 0, own = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double slope = (to.values[i] - from.values[i]) / (to.scale - from.scale);
    both += (wanted[i] - to.values[i]) * slope;
    own += slope * slope;
  }
  const double most = std::max(1.0, std::abs(to.scale));
  return own == 0 ? 0 : std::clamp(both / own, -most, most);
}

// The scale at which our numbers are the wanted ones. Steps find it where numbers move evenly; where they do not, one
// of the likely scales may be it. Not a number where none is.
double find_scale(const LogProbabilities& wanted, const Answers& ours, double allowed,
                  const std::vector<double>& likely, const std::function<LogProbabilities(double scale)>& at_scale) {
  Scaled from{0, ours.base}, to{1, ours.adapter};
  for (int i = 0; i < kSteps; ++i) {
    const double step = next_step(wanted, from, to);
    if (!std::isfinite(step) || std::abs(step) < 1e-3) break;
    from = std::move(to);
    to = {from.scale + step, at_scale(from.scale + step)};
    if (distance(wanted, to.values) <= allowed) return to.scale;
  }
  for (const double scale : likely) {
    if (distance(wanted, at_scale(scale)) <= allowed) return scale;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

LogProbabilities of_list(const Json& list, std::size_t tokens) {
  LogProbabilities result;
  for (std::size_t i = 1; i < tokens; ++i) {
    if (i >= list.size() || !list[i].is_number()) return {};
    result.push_back(list[i].get<double>());
  }
  return result;
}

// vLLM: for each token of the prompt an object of token ids, each with its log-probability.
LogProbabilities of_objects(const Json& list, const std::vector<std::int64_t>& ids) {
  LogProbabilities result;
  for (std::size_t i = 1; i < ids.size(); ++i) {
    const std::string id = std::to_string(ids[i]);
    if (i >= list.size() || !list[i].is_object() || !list[i].contains(id)) return {};
    const Json& entry = list[i].at(id);
    const Json& value = entry.is_object() && entry.contains("logprob") ? entry.at("logprob") : entry;
    if (!value.is_number()) return {};
    result.push_back(value.get<double>());
  }
  return result;
}

}  // namespace

std::string_view name(ServerVerdict verdict) {
  static constexpr std::array<std::string_view, 9> kNames = {"right",        "ignores the adapter", "wrong scale",
                                                             "different",    "another base model",  "too small",
                                                             "not readable", "no answer",           "closed"};
  return kNames[static_cast<std::size_t>(verdict)];
}

std::string completions_request(const std::string& model, const std::vector<std::int64_t>& ids) {
  const Json request = {{"model", model},   {"prompt", ids}, {"max_tokens", 1},
                        {"temperature", 0}, {"echo", true},  {"logprobs", 1}};
  return request.dump();
}

LogProbabilities parse_completions(std::string_view body, const std::vector<std::int64_t>& ids, std::string& problem) {
  const Json answer = Json::parse(body, nullptr, false);
  if (answer.is_discarded() || !answer.is_object()) return problem = "the answer is no JSON object", LogProbabilities{};
  if (answer.contains("error")) return problem = "the server says: " + answer.at("error").dump(), LogProbabilities{};
  const Json choices = answer.contains("choices") ? answer.at("choices") : Json();
  if (!choices.is_array() || choices.empty() || !choices[0].is_object())
    return problem = "the answer has no choices", LogProbabilities{};
  const Json& choice = choices[0];
  LogProbabilities result;
  if (choice.contains("prompt_logprobs") && choice.at("prompt_logprobs").is_array())
    result = of_objects(choice.at("prompt_logprobs"), ids);
  const Json logprobs = choice.contains("logprobs") ? choice.at("logprobs") : Json();
  if (result.empty() && logprobs.is_object() && logprobs.contains("token_logprobs") &&
      logprobs.at("token_logprobs").is_array())
    result = of_list(logprobs.at("token_logprobs"), ids.size());
  if (result.empty()) problem = "the answer has no log-probabilities of the prompt (echo, logprobs)";
  for (const double value : result)
    if (!std::isfinite(value)) return problem = "a log-probability is no number", LogProbabilities{};
  return result;
}

std::optional<std::vector<LoadedAdapter>> parse_lora_adapters(std::string_view body) {
  const Json list = Json::parse(body, nullptr, false);
  if (!list.is_array()) return std::nullopt;
  std::vector<LoadedAdapter> result;
  for (const Json& entry : list) {
    const auto has = [&](const char* key) { return entry.is_object() && entry.contains(key); };
    if (!has("id") || !entry.at("id").is_number_integer() || !has("path") || !entry.at("path").is_string() ||
        !has("scale") || !entry.at("scale").is_number())
      return std::nullopt;
    result.push_back(
        {entry.at("id").get<std::int64_t>(), entry.at("path").get<std::string>(), entry.at("scale").get<double>()});
  }
  return result;
}

std::string next_token_request(const std::string& model, const NextToken& next, const std::vector<LoadedAdapter>& at) {
  constexpr double kForced = 1e9;  // added to the token's logit when the server chooses one
  Json lora = Json::array();
  for (const LoadedAdapter& adapter : at) lora.push_back({{"id", adapter.id}, {"scale", adapter.scale}});
  // What a server keeps of earlier prompts may be of another scale of the adapter: cache_prompt is off.
  const Json request = {{"model", model},        {"prompt", next.prompt},
                        {"n_predict", 1},        {"temperature", 0},
                        {"n_probs", 1},          {"post_sampling_probs", false},
                        {"cache_prompt", false}, {"logit_bias", Json::array({Json::array({next.token, kForced})})},
                        {"lora", lora},          {"response_fields", {"completion_probabilities", "tokens_evaluated"}}};
  return request.dump();
}

std::optional<double> parse_next_token(std::string_view body, const NextToken& next, std::string& problem) {
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  constexpr double kLeast = -1e30;  // what the server writes for the logarithm of zero is below
  const Json answer = Json::parse(body, nullptr, false);
  if (!answer.is_object()) return problem = "the answer is no JSON object", std::nullopt;
  if (answer.contains("error")) return problem = "the server says: " + answer.at("error").dump(), std::nullopt;
  if (!answer.contains("tokens_evaluated") || !answer.at("tokens_evaluated").is_number_integer())
    return problem = "the answer does not say how many tokens the prompt has", std::nullopt;
  if (const auto tokens = answer.at("tokens_evaluated").get<std::int64_t>(); tokens != std::ssize(next.prompt)) {
    problem = fmt::format("the server makes {} tokens of a prompt of {}", tokens, next.prompt.size());
    return std::nullopt;
  }
  const Json list = answer.contains("completion_probabilities") ? answer.at("completion_probabilities") : Json::array();
  if (list.is_array() && list.empty()) return kUnknown;
  if (!list.is_array() || !list[0].is_object() || !list[0].contains("id") || !list[0].at("id").is_number_integer() ||
      !list[0].contains("logprob") || !list[0].at("logprob").is_number())
    return problem = "the answer has no log-probability of the generated token (id, logprob)", std::nullopt;
  const double value = list[0].at("logprob").get<double>();
  return list[0].at("id").get<std::int64_t>() == next.token && value > kLeast ? value : kUnknown;
}

Comparison compare(const Answers& ours, const Answers& servers, const std::vector<double>& likely,
                   const std::function<LogProbabilities(double scale)>& at_scale) {
  Comparison result;
  result.moved = distance(ours.adapter, ours.base);
  result.base_off = distance(servers.base, ours.base);
  result.adapter_off = distance(servers.adapter, ours.adapter);
  const double same = std::max(kNoise, kPart * result.moved) + 2 * std::min(result.base_off, kNoise);
  if (result.base_off > kOtherBase) {
    result.verdict = ServerVerdict::other_base;
  } else if (result.moved < 2 * kNoise + result.base_off) {
    result.verdict = ServerVerdict::too_small;
  } else if (distance(servers.adapter, servers.base) < kPart / 2 * result.moved) {
    result.verdict = ServerVerdict::ignored;
  } else if (result.adapter_off <= same + result.base_off) {
    result.verdict = ServerVerdict::right;
  } else if (at_scale) {
    const double scale = find_scale(servers.adapter, ours, same + result.base_off, likely, at_scale);
    if (std::isfinite(scale)) result.verdict = ServerVerdict::wrong_scale, result.factor = scale;
  }
  return result;
}

}  // namespace peft::cli
