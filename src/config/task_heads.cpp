#include "config/task_heads.h"

#include <algorithm>

namespace peft::config {
namespace {

struct Row {
  std::string_view task_type;
  std::vector<std::string> heads;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> kRows = {
      {"SEQ_CLS", {"classifier", "score"}},
      {"TOKEN_CLS", {"classifier", "score"}},
      {"QUESTION_ANS", {"qa_outputs"}},
  };
  return kRows;
}

}  // namespace

std::span<const std::string> task_heads(std::string_view task_type) {
  for (const Row& row : rows()) {
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

}  // namespace peft::config
