// peft layouts, peft families, and the hidden peft docs: the tables that the program works from, as text and as pages.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace peft::cli {

struct LayoutsCommand {
  bool json = false;
};
struct FamiliesCommand {
  std::string families_file;
  bool json = false;
};
// A Markdown page; `make docs` writes them to docs/.
struct DocsCommand {
  std::string page;  // errors, layouts, families, config_fields, engines, engines/NAME, readme
};
void add_layouts(CLI::App& app, LayoutsCommand& command);
void add_families(CLI::App& app, FamiliesCommand& command);
void add_docs(CLI::App& app, DocsCommand& command);
int run(const LayoutsCommand& command);
int run(const FamiliesCommand& command);
int run(const DocsCommand& command);

}  // namespace peft::cli
