// peft layouts, peft families: the tables that the program works from.
#pragma once

#include <string>

namespace peft::cli {

struct LayoutsCommand {
  bool json = false;
};
int run(const LayoutsCommand& command);

struct FamiliesCommand {
  std::string families_file;
  bool json = false;
};
int run(const FamiliesCommand& command);

}  // namespace peft::cli
