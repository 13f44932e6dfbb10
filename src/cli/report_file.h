// Where the HTML report of a merge goes.
#pragma once

#include "cli/merge.h"

namespace peft::cli {

// Before anything is written: throws USAGE or IO_WRITE where the page could not be put.
void check_report(const MergeCommand& command);
void write_report(const MergeCommand& command, const MergePlan& merge, const ExecuteReport& done);

}  // namespace peft::cli
