// peft docs (hidden): Markdown pages made from the program's own tables; `make docs` writes them to docs/.
#pragma once

#include <string>

namespace peft::cli {

struct DocsCommand {
  std::string page;  // errors, layouts, families, config_fields
};
int run(const DocsCommand& command);

}  // namespace peft::cli
