#include "config/peft_rules.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace peft::config {
namespace {

constexpr std::string_view kPissaSteps = "pissa_niter_";

enum class Match { exact, any_case, beginning };

struct Row {
  std::string_view name;
  LoraInit init;
  Match match = Match::exact;
};

constexpr Row kRows[] = {
    {"true", LoraInit::standard},
    {"false", LoraInit::random},
    {"", LoraInit::random},
    {"gaussian", LoraInit::gaussian, Match::any_case},
    {"orthogonal", LoraInit::orthogonal},
    {"pissa", LoraInit::pissa},
    {"olora", LoraInit::olora, Match::any_case},
    {"corda", LoraInit::corda, Match::beginning},
    {"loftq", LoraInit::loftq},
    {"eva", LoraInit::eva},
    {"mica", LoraInit::mica, Match::any_case},
    {"lora_ga", LoraInit::lora_ga},
};

bool matches(std::string_view text, const Row& row) {
  switch (row.match) {
    case Match::exact:
      return text == row.name;
    case Match::beginning:
      return text.starts_with(row.name);
    case Match::any_case:
      break;
  }
  const auto same = [](unsigned char a, char b) { return std::tolower(a) == b; };
  return std::equal(text.begin(), text.end(), row.name.begin(), row.name.end(), same);
}

struct TaskRow {
  std::string_view task_type;
  std::vector<std::string> heads;
};

const std::vector<TaskRow>& task_rows() {
  static const std::vector<TaskRow> kTaskRows = {
      {"SEQ_CLS", {"classifier", "score"}},
      {"TOKEN_CLS", {"classifier", "score"}},
      {"QUESTION_ANS", {"qa_outputs"}},
  };
  return kTaskRows;
}

}  // namespace

bool is_named_like_projection(std::string_view module) {
  constexpr std::string_view kNames[] = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"};
  return std::ranges::find(kNames, module.substr(module.rfind('.') + 1)) != std::end(kNames);
}

std::optional<LoraInit> lora_init(std::string_view init_lora_weights) {
  for (const Row& row : kRows) {
    if (matches(init_lora_weights, row)) return row.init;
  }
  return pissa_iterations(init_lora_weights) ? std::optional(LoraInit::pissa) : std::nullopt;
}

std::optional<int> pissa_iterations(std::string_view init_lora_weights) {
  if (!init_lora_weights.starts_with(kPissaSteps)) return std::nullopt;
  const std::string_view number = init_lora_weights.substr(kPissaSteps.size());
  int steps = 0;
  const char* last = number.data() + number.size();
  const auto [end, error] = std::from_chars(number.data(), last, steps);
  return error == std::errc() && end == last && steps >= 0 ? std::optional(steps) : std::nullopt;
}

bool changes_base(std::string_view init_lora_weights) {
  switch (lora_init(init_lora_weights).value_or(LoraInit::standard)) {
    case LoraInit::pissa:
    case LoraInit::olora:
    case LoraInit::corda:
    case LoraInit::loftq:
    case LoraInit::lora_ga:
      return true;
    default:
      return false;
  }
}

std::span<const std::string> task_heads(std::string_view task_type) {
  for (const TaskRow& row : task_rows()) {
    if (row.task_type == task_type) return row.heads;
  }
  return {};
}

std::span<const std::string> task_heads(const AdapterConfig& config) {
  return config.task_type ? task_heads(*config.task_type) : std::span<const std::string>();
}

std::vector<std::string> saved_entries(const AdapterConfig& config) {
  std::vector<std::string> entries = config.modules_to_save.value_or(std::vector<std::string>());
  for (const std::string& head : task_heads(config)) {
    if (std::find(entries.begin(), entries.end(), head) == entries.end()) entries.push_back(head);
  }
  return entries;
}

bool is_saved_by(std::span<const std::string> entries, std::string_view module) {
  for (const std::string& entry : entries) {
    for (std::string_view path = module; !entry.empty() && !path.empty();) {
      if (path.ends_with(entry)) return true;
      const auto dot = path.rfind('.');
      path = dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
    }
  }
  return false;
}

bool is_named_by(std::string_view name, std::string_view entry) {
  if (!name.ends_with(entry)) return false;
  return name.size() == entry.size() || name[name.size() - entry.size() - 1] == '.';
}

bool is_named_by(std::string_view name, std::span<const std::string> entries) {
  return std::any_of(entries.begin(), entries.end(),
                     [&](const std::string& entry) { return is_named_by(name, entry); });
}

}  // namespace peft::config
