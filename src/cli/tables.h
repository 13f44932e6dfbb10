// peft layouts, peft families: the tables that the program works from.
#pragma once

#include <string>

#include "cli/table.h"
#include "peft/layout.h"

namespace peft::cli {

struct LayoutsCommand {
  bool json = false;
};
int run(const LayoutsCommand& command);

// One layout, as rows of a table with two columns.
void describe_layout(const LayoutInfo& row, Table& table);

struct FamiliesCommand {
  std::string families_file;
  bool json = false;
};
int run(const FamiliesCommand& command);

}  // namespace peft::cli
