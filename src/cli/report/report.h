// peft merge --report: one page that says what changed where, for a reader who was not there.
#pragma once

#include <string>

#include "peft/execute.h"
#include "peft/verbs.h"

namespace peft::cli {

struct ReportFacts {
  std::string file = {};  // where the page goes
  std::string out = {};
  MergeOptions options = {};
  std::string command = {};  // as typed, for the record
  bool synced = true, read_back = true;
  std::string finished = {};  // "2026-11-25 21:40:12 UTC"
};
// The page, from the template report.html. Names are untrusted: all text is escaped. Nothing in the page is loaded from
// elsewhere.
std::string merge_report(const MergePlan& merge, const ExecuteReport& done, const ReportFacts& facts);

// Before anything is written: throws IO_WRITE where the page could not be put.
void check_report(const std::string& path);
void write_report(const ReportFacts& facts, const MergePlan& merge, const ExecuteReport& done);

}  // namespace peft::cli
