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
