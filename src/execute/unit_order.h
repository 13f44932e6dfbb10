// The order in which a file's units are made.
#pragma once

#include "execute/unit.h"

namespace peft::execution {

// Experts whose factors are read together (merge_gather.h) follow each other, where their group comes first in the
// file: 0, 1, 10, 100, ... as names are sorted would read each group many times. All else is in the order of the file.
// Units that span groups are cut.
void order_units(FileWork& work);

}  // namespace peft::execution
