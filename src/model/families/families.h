// Reads the family table.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/families/table.h"

namespace peft::model {

// The built-in table, read on first use. With `file`, its rows add to the built-in ones or replace them. Throws
// MD_FAMILY, naming the row, for a file that is no family table.
std::shared_ptr<const Table> load_table(const std::string& file = {});

// Model types whose names are near `name`, nearest first, for messages.
std::vector<std::string> near_types(const Table& table, std::string_view name);

}  // namespace peft::model
