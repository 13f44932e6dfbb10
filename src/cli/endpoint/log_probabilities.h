// The log-probabilities that a server gives the tokens of a prompt, and what they say of an adapter.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace peft::cli {

// Of each token but the first, given those before it. Not a number: the server did not say.
using LogProbabilities = std::vector<double>;

// The body of a request to /completions that asks for them.
std::string completions_request(const std::string& model, const std::vector<std::int64_t>& ids);
// Reads them from the answer: choices[0].logprobs.token_logprobs of a prompt that is echoed, or vLLM's prompt_logprobs.
// `problem` says what is wrong where the result is empty.
LogProbabilities parse_completions(std::string_view body, const std::vector<std::int64_t>& ids, std::string& problem);

// An adapter that a llama-server has loaded, and how strong it is in requests that do not speak of it.
struct LoadedAdapter {
  std::int64_t id = 0;
  std::string path;
  double scale = 1;
};
// The answer to GET /lora-adapters. Nothing where it is no such list.
std::optional<std::vector<LoadedAdapter>> parse_lora_adapters(std::string_view body);
// A prompt and the token after it. llama-server gives log-probabilities of tokens that it generates, those of the model
// whatever the request makes of them: so the request has it generate this very token.
struct NextToken {
  std::vector<std::int64_t> prompt;
  std::int64_t token = 0;
};
// The body of a request to llama-server's /completion, with each adapter at its scale.
std::string next_token_request(const std::string& model, const NextToken& next, const std::vector<LoadedAdapter>& at);
// Not a number where the server generated nothing that it gives a number for, or another token: it keeps back tokens
// that are a part of a character. Nothing, and a `problem`, where the answer cannot be read.
std::optional<double> parse_next_token(std::string_view body, const NextToken& next, std::string& problem);

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
