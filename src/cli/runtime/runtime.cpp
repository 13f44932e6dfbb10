#include "cli/runtime/runtime.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>

#include "cli/flags.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

namespace fs = std::filesystem;
constexpr const char* kProgram = "peft-torch";

std::vector<std::string> split_path(const char* path) {
  std::vector<std::string> folders;
  std::string text = path == nullptr ? "" : path;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find(':', begin), text.size());
    if (end > begin)
      folders.push_back(text.substr(begin, end - begin));  // an empty entry, the current folder, is unsafe
    begin = end + 1;
  }
  return folders;
}

[[noreturn]] void refuse(ErrorReason reason) { at({}).fail(ErrorCode::USAGE, std::move(reason)); }

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const auto end = text.find(separator);
    parts.push_back(trimmed(text.substr(0, end)));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::int64_t parse_number(std::string_view flag, std::size_t row, std::size_t place, std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    refuse({.problem = fmt::format("{}: row {}, place {} is not a token id", flag, row + 1, place + 1),
            .expected = "a number from 0 on",
            .got = text.empty() ? "nothing" : std::string(text)});
  }
  return value;
}

Rows parse_rows(std::string_view flag, std::string_view text) {
  Rows rows;
  for (const auto row_text : split(text, ';')) {
    std::vector<std::int64_t> row;
    for (const auto number : split(row_text, ',')) row.push_back(parse_number(flag, rows.size(), row.size(), number));
    if (!rows.empty() && row.size() != rows.front().size()) {
      refuse({.problem = fmt::format("{}: row {} is not as long as row 1", flag, rows.size() + 1),
              .expected = fmt::format("{} numbers", rows.front().size()),
              .got = std::to_string(row.size()),
              .hint = "fill up shorter rows on the left, and mark the padding with 0 in --mask"});
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

constexpr const char* kLogitsExamples = R"(Examples:
  peft logits --base Qwen3-30B-A3B --ids 1,2,3                        the likeliest next tokens
  peft logits --base Qwen3-30B-A3B --adapter my-lora --ids "1,2,3;4,5,6" --out logits.safetensors
  peft logits --base M --adapter my-lora --ids "1,2,3;0,5,6" --mask "1,1,1;0,1,1" --json

Positions are 0, 1, ... whatever the mask says, as in a plain forward pass of transformers.)";

constexpr const char* kGenerateExamples = R"(Examples:
  peft generate --base Qwen3-30B-A3B --adapter my-lora --prompt "The capital of France" --max-new-tokens 20
  peft generate --base M --ids "5,6,7" --max-new-tokens 20            token ids in, token ids out
  peft generate --base M --prompt "Once" --max-new-tokens 50 --temperature 0.8 --top-p 0.95 --seed 7

--prompt takes the text as it is, without a chat template, and needs a python3 with `tokenizers` (PEFT_PYTHON names another).)";

constexpr const char* kParamsExamples = R"(Examples:
  peft params --base Qwen3-30B-A3B                        sizes, from config.json alone
  peft params --base Qwen3-30B-A3B --adapter my-lora      as PEFT's print_trainable_parameters(), and a table
  peft params --base config.json --adapter adapter_config.json

No weight is read, so it answers at once for a model of any size.)";

void add_model_flags(CLI::App& verb, RuntimeFlags& flags, const std::string& base, const std::string& adapter) {
  verb.add_option("--base", flags.base, base)->required()->type_name("DIR");
  verb.add_option("--adapter", flags.adapters, adapter)->allow_extra_args(false)->type_name("DIR");
  add_json(verb, flags.json);
}

void add_run_flags(CLI::App& verb, RuntimeFlags& flags) {
  add_model_flags(verb, flags, "The base model's folder, as transformers 4 or 5 writes it",
                  "A LoRA adapter, in any layout; given several times, their updates add up");
  verb.add_option("--device", flags.device, "Where to run: cpu, cuda, cuda:1")->capture_default_str()->type_name("D");
  verb.add_option(
          "--dtype", flags.dtype,
          "Run in this dtype: " + CLI::detail::join(float_dtype_names(), ", ") + "; the base's own when not given")
      ->type_name("T");
  auto* residual = verb.add_flag("--base-is-residual", flags.base_is_residual,
                                 "The base is what PiSSA, OLoRA, CorDA or LoftQ left of the original");
  verb.add_flag("--change-base", flags.change_base,
                "Take the start of PiSSA or OLoRA out of the base, as PEFT does when it loads")
      ->excludes(residual);
  verb.add_option("--threads", flags.threads, "Threads; as many as libtorch takes when not given")
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1024)));
}

CLI::Option* add_ids(CLI::App& verb, std::string& ids, std::string& mask) {
  auto* option = verb.add_option("--ids", ids, "Token ids: numbers of a row by commas, rows by semicolons");
  option->type_name("IDS");
  verb.add_option("--mask", mask, "1 for each token, 0 for padding, in the shape of --ids")
      ->needs(option)
      ->type_name("MASK");
  return option;
}

}  // namespace

void add_logits(CLI::App& app, LogitsCommand& command) {
  auto& verb = *app.add_subcommand("logits", "Run a model, with or without LoRA, and write its logits");
  add_run_flags(verb, command.model);
  add_ids(verb, command.ids, command.mask)->required();
  verb.add_option("--out", command.out, "A safetensors file: `logits` F32 [rows, tokens, vocabulary]")
      ->type_name("FILE");
  verb.add_flag("--overwrite", command.overwrite, "Replace the output file if it exists");
  verb.footer(kLogitsExamples);
}

void add_generate(CLI::App& app, GenerateCommand& command) {
  auto& verb = *app.add_subcommand("generate", "Continue a text or token ids");
  add_run_flags(verb, command.model);
  auto* ids = add_ids(verb, command.ids, command.mask);
  verb.add_option("--prompt", command.prompt, "The text to continue, by the base's tokenizer.json")
      ->excludes(ids)
      ->type_name("TEXT");
  verb.add_option("--max-new-tokens", command.max_new_tokens, "How many tokens at most")
      ->required()
      ->type_name("N")
      ->check(quiet(CLI::Range(1, 1'000'000'000)));
  verb.add_option("--temperature", command.temperature, "Draw tokens; 0 takes the likeliest")
      ->capture_default_str()
      ->type_name("X")
      ->check(quiet(CLI::Range(0.0, 1000.0)));
  verb.add_option("--top-k", command.top_k, "Draw from the K likeliest; 0: from all")
      ->capture_default_str()
      ->type_name("K")
      ->check(quiet(CLI::Range(0, 1'000'000'000)));
  verb.add_option("--top-p", command.top_p, "Draw from the likeliest that have this probability together")
      ->capture_default_str()
      ->type_name("P")
      ->check(quiet(CLI::Range(0.0, 1.0)));
  verb.add_option("--seed", command.seed, "Of drawing: the same seed, the same text")
      ->capture_default_str()
      ->type_name("S");
  verb.add_flag("--ignore-eos", command.ignore_eos, "Go on after the end-of-text token");
  verb.callback([&command] {
    if (command.ids.empty() && !command.prompt) throw CLI::RequiredError("--ids or --prompt");
  });
  verb.footer(kGenerateExamples);
}

void add_params(CLI::App& app, ParamsCommand& command) {
  auto& verb = *app.add_subcommand("params", "Count the parameters that LoRA trains, and all");
  add_model_flags(verb, command.model, "The base model: its folder, or its config.json",
                  "An adapter, or an adapter_config.json; given several times, the first is the active one");
  verb.footer(kParamsExamples);
}

Rows parse_ids(std::string_view text) { return parse_rows("--ids", text); }

Rows parse_mask(std::string_view text, const Rows& ids) {
  if (trimmed(text).empty()) return {};
  Rows mask = parse_rows("--mask", text);
  if (mask.size() != ids.size() || mask.front().size() != ids.front().size()) {
    refuse({.problem = "--mask does not have the shape of --ids",
            .expected = fmt::format("{} rows of {}", ids.size(), ids.front().size()),
            .got = fmt::format("{} rows of {}", mask.size(), mask.front().size())});
  }
  for (std::size_t row = 0; row < mask.size(); ++row) {
    const auto wrong = std::find_if(mask[row].begin(), mask[row].end(), [](std::int64_t value) { return value > 1; });
    if (wrong != mask[row].end()) {
      refuse({.problem = fmt::format("--mask: row {} has another number than 0 and 1", row + 1),
              .expected = "0 or 1",
              .got = std::to_string(*wrong)});
    }
    if (std::find(mask[row].begin(), mask[row].end(), 1) == mask[row].end()) {
      refuse({.problem = fmt::format("--mask: row {} has no token", row + 1),
              .expected = "at least one 1",
              .got = "only zeros"});
    }
  }
  return mask;
}

void require_left_padding(const Rows& mask) {
  for (std::size_t row = 0; row < mask.size(); ++row) {
    if (std::is_sorted(mask[row].begin(), mask[row].end())) continue;
    refuse({.problem = fmt::format("--mask: row {} is padded on the right, or between tokens", row + 1),
            .expected = "zeros first, then ones",
            .got = "a 0 after a 1",
            .hint = "text goes on after the last token: fill up on the left"});
  }
}

std::vector<std::string> places_of_peft_torch() {
  if (const char* named = std::getenv("PEFT_TORCH"); named != nullptr && *named != '\0') return {named};
  std::vector<std::string> places;
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    places.push_back((self.parent_path() / kProgram).string());
    places.push_back((self.parent_path().parent_path() / "libexec" / "peft" / kProgram).string());
  }
  for (const auto& folder : split_path(std::getenv("PATH"))) places.push_back((fs::path(folder) / kProgram).string());
  return places;
}

}  // namespace peft::cli
