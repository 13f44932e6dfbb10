// What conversion knows about PEFT's own conversion.
#pragma once

#include <string_view>

namespace peft::verbs {

// Whether the module's last name is one that PEFT's migration to transformers 5 takes for an expert's projection, also
// on dense and shared modules (peft issue 3711).
bool is_named_like_projection(std::string_view module);

}  // namespace peft::verbs
