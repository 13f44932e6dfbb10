// The log-probabilities that a server gives the tokens of a prompt, and what they say of an adapter.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace peft::cli {

// Of each token but the first, given those before it.
using LogProbabilities = std::vector<double>;

// The body of a request to /completions that asks for them.
std::string completions_request(const std::string& model, const std::vector<std::int64_t>& ids);
// Reads them from the answer: choices[0].logprobs.token_logprobs of a prompt that is echoed, or vLLM's prompt_logprobs.
// `problem` says what is wrong where the result is empty.
LogProbabilities parse_completions(std::string_view body, const std::vector<std::int64_t>& ids, std::string& problem);

enum class ServerVerdict : std::uint8_t {
  right,
  ignored,       // the adapter changes nothing there
  wrong_scale,   // as with another scale of the adapter
  different,     // neither
  other_base,    // already without the adapter
  too_small,     // the adapter changes so little that nothing can be told
  not_readable,  // no log-probabilities in the answer
  too_late,
  closed,
};
std::string_view name(ServerVerdict verdict);  // "wrong scale"

struct Comparison {
  ServerVerdict verdict = ServerVerdict::different;
  double factor = 1;       // of wrong_scale
  double moved = 0;        // by the adapter, here: root mean square over the tokens
  double base_off = 0;     // the server's base from ours
  double adapter_off = 0;  // the server's adapter from ours
};
struct Answers {
  LogProbabilities base, adapter;
};
// `at_scale` gives our own log-probabilities with the adapter's scale multiplied; it is asked a few times at most, and
// for each of the `likely` multiples. Without it no scale is looked for.
Comparison compare(const Answers& ours, const Answers& servers, const std::vector<double>& likely,
                   const std::function<LogProbabilities(double scale)>& at_scale);

}  // namespace peft::cli
