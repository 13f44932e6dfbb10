// What is known of engines, as text, JSON, and pages of docs/.
#pragma once

#include <string>

#include "cli/output/json.h"
#include "engines/engine.h"

namespace peft::cli {

Json engine_json(const engines::Engine& engine);
void print_engine_table();
void print_engine_profile(const engines::Engine& engine);

// docs/engines.md, docs/engines/NAME.md, and the tables of README.md, as Markdown.
std::string engines_page();
std::string engine_page(const engines::Engine& engine);
std::string readme_tables();

}  // namespace peft::cli
