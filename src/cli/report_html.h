// peft merge --report: one page that says what changed where, for a reader who was not there.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "peft/execute.h"
#include "peft/merge.h"

namespace peft::cli {

struct ReportFacts {
  std::string out;
  MergeOptions options;
  std::string command;  // as typed, for the record
  bool synced = true, read_back = true;
  std::string finished;  // "2026-11-25 21:40:12 UTC"
};
// Names are untrusted: all text is escaped. Nothing in the page is loaded from elsewhere.
std::string merge_report(const MergePlan& merge, const ExecuteReport& done, const ReportFacts& facts);

std::string html_escape(std::string_view text);

}  // namespace peft::cli
