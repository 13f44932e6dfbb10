// Module-tree files, as golden/config/models has them:
//
//   {"model_type": "...", "config": {...}, "weights": {module: [class, shape]}, "parameters": {name: shape}}
//
// "{0..11}" in a name stands for one module for each number. Rows with the same range that follow each other are one
// group: all its modules of number 0, then all of number 1.
#pragma once

#include <string>

#include "model/families/index.h"
#include "model/json_file.h"
#include "peft/model.h"

namespace peft::model {

// The modules of a file, with the names that it has. Throws MD_FORM for a file of another form.
ModuleTree tree_from_file(const OrderedJson& json, const std::string& file, const Model::Index& index);

}  // namespace peft::model
