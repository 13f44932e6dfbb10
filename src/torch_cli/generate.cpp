#include "torch_cli/generate.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "base/text.h"
#include "cli/output/json.h"
#include "cli/output/output.h"
#include "cli/output/progress.h"
#include "cli/runtime/runtime.h"
#include "peft/adapter.h"
#include "peft/error.h"
#include "tokenizer/tokenizer.h"
#include "torch_cli/running_model.h"

namespace peft::torch_cli {
namespace {

struct Prompt {
  cli::Rows ids, mask;
};

Prompt read_prompt(const cli::GenerateCommand& command, Tokenizer* tokenizer) {
  Prompt prompt;
  if (tokenizer != nullptr) {
    prompt.ids = {tokenizer->encode(*command.prompt)};
    if (prompt.ids.front().empty()) {
      throw Error(ErrorCode::USAGE, {.problem = "--prompt is no token at all", .hint = "give some text, or --ids"});
    }
  } else {
    prompt.ids = cli::parse_ids(command.ids);
    prompt.mask = cli::parse_mask(command.mask, prompt.ids);
    cli::require_left_padding(prompt.mask);
  }
  return prompt;
}

std::unique_ptr<Tokenizer> tokenizer_for(const cli::GenerateCommand& command) {
  if (!command.prompt) return nullptr;
  if (find_invalid_utf8(*command.prompt) != std::string_view::npos) {
    throw Error(ErrorCode::USAGE, {.problem = "--prompt is not valid UTF-8", .got = *command.prompt});
  }
  return std::make_unique<Tokenizer>(resolve_path(command.model.base));
}

nn::GenerateOptions options_of(const cli::GenerateCommand& command) {
  nn::GenerateOptions options = nn::generation_defaults(resolve_path(command.model.base));
  options.max_new_tokens = command.max_new_tokens;
  options.temperature = command.temperature;
  options.top_k = command.top_k;
  options.top_p = command.top_p;
  options.seed = command.seed;
  if (command.ignore_eos) options.eos_token_ids.clear();
  return options;
}

// Prints tokens as they come: text for a prompt, ids for a single row. Several rows are printed at the end.
class Printer {
 public:
  Printer(Tokenizer* tokenizer, bool live) : live_(live) {
    if (tokenizer != nullptr) stream_.emplace(*tokenizer);
  }
  void add(std::int64_t id) {
    const std::string piece = stream_ ? stream_->add(id) : fmt::format("{}{}", count_ == 0 ? "" : " ", id);
    ++count_;
    show(piece);
  }
  void finish() { show((stream_ ? stream_->finish() : std::string()) + "\n"); }
  std::optional<std::string> text() const { return stream_ ? std::optional(stream_->text()) : std::nullopt; }

 private:
  void show(const std::string& piece) const {
    if (!live_) return;
    cli::write_out(piece);
    std::fflush(stdout);
  }
  std::optional<TextStream> stream_;
  bool live_;
  std::size_t count_ = 0;
};

// A row ends with its first end token; what follows is padding.
bool cut_at_end(std::vector<std::int64_t>& row, const std::vector<std::int64_t>& ends) {
  const auto end = std::find_first_of(row.begin(), row.end(), ends.begin(), ends.end());
  if (end == row.end()) return false;
  row.erase(end + 1, row.end());
  return true;
}

cli::Json to_json(const std::vector<std::vector<std::int64_t>>& rows, const std::vector<bool>& ended,
                  const Prompt& prompt, const std::optional<std::string>& text, double seconds) {
  cli::Json result = {{"prompt_ids", prompt.ids}, {"new_tokens", rows}, {"seconds", cli::number(seconds)}};
  cli::Json why = cli::Json::array();
  for (const bool end : ended) why.push_back(end ? "eos" : "length");
  result["finish_reason"] = std::move(why);
  if (text) result["text"] = *text;
  return result;
}

}  // namespace

int run_generate(const cli::GenerateCommand& command) {
  const auto tokenizer = tokenizer_for(command);
  const Prompt prompt = read_prompt(command, tokenizer.get());
  const RunningModel model = load(command.model);
  const at::Device device = model.base->device();
  nn::GenerateOptions options = options_of(command);
  const bool single = prompt.ids.size() == 1;
  Printer printer(tokenizer.get(), single && !command.model.json);
  const cli::InterruptGuard interrupt;
  options.on_tokens = [&](const std::vector<std::int64_t>& tokens) {
    if (single) printer.add(tokens.front());
    return !interrupt.flag()->load();
  };
  const auto start = std::chrono::steady_clock::now();
  auto rows = model.generate(tensor_of(prompt.ids, device), tensor_of(prompt.mask, device), options);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  printer.finish();
  if (interrupt.flag()->load()) throw Error(ErrorCode::INTERRUPTED, {.problem = "stopped by a signal"});
  std::vector<bool> ended;
  for (auto& row : rows) ended.push_back(cut_at_end(row, options.eos_token_ids));
  if (command.model.json) {
    cli::Json result = to_json(rows, ended, prompt, printer.text(), seconds);
    result["warnings"] = model.warnings;
    cli::print_json(result);
  } else if (!single) {
    for (const auto& row : rows) cli::write_out(fmt::format("{}\n", fmt::join(row, " ")));
  }
  return 0;
}

}  // namespace peft::torch_cli

namespace peft::cli {

int run(const GenerateCommand& command) {
  return torch_cli::run_guarded<GenerateCommand, torch_cli::run_generate>(command);
}

}  // namespace peft::cli
