#include "cli/endpoint/dialect.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include "base/text.h"
#include "cli/endpoint/http.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

std::chrono::milliseconds limit(const ServerOptions& options) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(options.seconds * 1000));
}

std::string named(const std::string& model) { return fmt::format("model {}: ", printable(model)); }

// Why an answer is none: `failed` is `right` where it is one.
Asked failure_of(const HttpAnswer& answer, const ServerOptions& options, const std::string& who) {
  switch (answer.failure) {
    case HttpFailure::not_reached:
      at(options.url)
          .fail(ErrorCode::IO_OPEN, {.problem = "no server answers there: " + answer.what,
                                     .hint = "is it running, and is this its address?"});
    case HttpFailure::too_late:
      return {{}, ServerVerdict::too_late, who + answer.what};
    case HttpFailure::closed:
      return {{}, ServerVerdict::closed, who + answer.what};
    case HttpFailure::unreadable:
      return {{}, ServerVerdict::not_readable, who + answer.what};
    case HttpFailure::none:
      break;
  }
  if (answer.status == 200) return {};
  return {
      {}, ServerVerdict::not_readable, fmt::format("{}status {}: {}", who, answer.status, printable(answer.body, 300))};
}

Asked not_readable(const std::string& who, const std::string& problem) {
  return {{}, ServerVerdict::not_readable, who + printable(problem, 400)};
}

// vLLM and what answers like it: log-probabilities of the prompt; the adapter is a model with a name of its own.
class CompletionsDialect : public Dialect {
 public:
  explicit CompletionsDialect(ServerOptions options) : options_(std::move(options)), url_(parse_url(options_.url)) {}
  Asked base(const std::vector<std::int64_t>& ids) const override { return ask(options_.model, ids); }
  Asked adapter(const std::vector<std::int64_t>& ids) const override { return ask(options_.lora, ids); }

 private:
  Asked ask(const std::string& model, const std::vector<std::int64_t>& ids) const {
    const HttpAnswer answer = post_json(url_, "/completions", completions_request(model, ids), limit(options_));
    Asked asked = failure_of(answer, options_, named(model));
    if (asked.failed != ServerVerdict::right) return asked;
    std::string problem;
    asked.values = parse_completions(answer.body, ids, problem);
    return asked.values.empty() ? not_readable(named(model), problem) : asked;
  }

  ServerOptions options_;
  Url url_;
};

// llama.cpp's llama-server: log-probabilities of a generated token, so a request for each token of the prompt. Adapters
// are loaded when it starts, and a request says how strong each is.
class LlamaServerDialect : public Dialect {
 public:
  // `root`: where /completion is.
  LlamaServerDialect(ServerOptions options, Url root, std::vector<LoadedAdapter> adapters, std::size_t wanted)
      : options_(std::move(options)), root_(std::move(root)), adapter_(adapters[wanted]) {
    for (LoadedAdapter& adapter : adapters) adapter.scale = 0;
    off_ = std::move(adapters);
    on_ = off_;
    on_[wanted].scale = adapter_.scale;
  }
  Asked base(const std::vector<std::int64_t>& ids) const override { return ask(options_.model, off_, ids); }
  Asked adapter(const std::vector<std::int64_t>& ids) const override { return ask(options_.lora, on_, ids); }
  std::string note() const override {
    if (adapter_.scale == 1) return {};
    return fmt::format("; it has {} loaded with scale {:.3g} (--lora-scaled, POST /lora-adapters)",
                       printable(adapter_.path), adapter_.scale);
  }

 private:
  Asked ask(const std::string& who, const std::vector<LoadedAdapter>& scales,
            const std::vector<std::int64_t>& ids) const {
    Asked asked;
    for (std::size_t i = 1; i < ids.size(); ++i) {
      const NextToken next{{ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(i)}, ids[i]};
      const HttpAnswer answer =
          post_json(root_, "/completion", next_token_request(options_.model, next, scales), limit(options_));
      if (Asked failure = failure_of(answer, options_, named(who)); failure.failed != ServerVerdict::right)
        return failure;
      std::string problem;
      const auto value = parse_next_token(answer.body, next, problem);
      if (!value) return not_readable(named(who), problem);
      asked.values.push_back(*value);
    }
    if (2 * std::ranges::count_if(asked.values, [](double value) { return std::isfinite(value); }) <
        std::ssize(asked.values))
      return not_readable(named(who),
                          "the server does not generate the tokens that a request has it generate (logit_bias)");
    return asked;
  }

  ServerOptions options_;
  Url root_;
  LoadedAdapter adapter_;  // as the server has it
  std::vector<LoadedAdapter> off_, on_;
};

// The ways in which a user may name a loaded adapter; the first one that fits any counts.
bool is_named(const LoadedAdapter& adapter, const std::string& name, int way) {
  const std::filesystem::path path = adapter.path;
  switch (way) {
    case 0:
      return path == name;
    case 1:
      return path.filename() == name;
    case 2:
      return path.stem() == name;
    default:
      return std::to_string(adapter.id) == name;
  }
}

std::optional<std::size_t> find_adapter(const std::vector<LoadedAdapter>& adapters, const std::string& name,
                                        std::string& problem) {
  std::vector<std::size_t> found;
  for (int way = 0; way < 4 && found.empty(); ++way)
    for (std::size_t i = 0; i < adapters.size(); ++i)
      if (is_named(adapters[i], name, way)) found.push_back(i);
  if (found.size() == 1) return found[0];
  problem =
      found.empty() ? "the server has no such adapter loaded; it has " : "the server has several of that name; it has ";
  if (adapters.empty()) problem += "none (llama-server --lora FILE.gguf)";
  for (const LoadedAdapter& adapter : adapters)
    problem += fmt::format("{}{}: {}", &adapter == adapters.data() ? "" : ", ", adapter.id, adapter.path);
  if (!adapters.empty())
    problem += " (--lora takes the path, the file's name with or without its ending, or the number)";
  return std::nullopt;
}

}  // namespace

std::unique_ptr<Dialect> find_dialect(const ServerOptions& options, Asked& failure) {
  Url root = parse_url(options.url);
  if (constexpr std::string_view kApi = "/v1"; root.path.ends_with(kApi))
    root.path.resize(root.path.size() - kApi.size());
  const HttpAnswer answer = get_json(root, "/lora-adapters", limit(options));
  failure = failure_of(answer, options, "");
  if (failure.failed == ServerVerdict::too_late) return nullptr;
  const auto adapters = failure.failed == ServerVerdict::right ? parse_lora_adapters(answer.body) : std::nullopt;
  if (!adapters) return std::make_unique<CompletionsDialect>(options);
  std::string problem;
  const auto wanted = find_adapter(*adapters, options.lora, problem);
  if (wanted) return std::make_unique<LlamaServerDialect>(options, std::move(root), *adapters, *wanted);
  failure = not_readable(fmt::format("adapter {}: ", printable(options.lora)), problem);
  return nullptr;
}

}  // namespace peft::cli
