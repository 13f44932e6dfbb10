// What stacked files call things.
#pragma once

#include <string>
#include <string_view>

#include "peft/model.h"

namespace peft::layout {

// "w1" is gate, "w2" down, "w3" up; Projection::none for other names.
Projection stacked_projection(std::string_view name);
std::string_view stacked_name(Projection projection);

// A dense module as transformers calls it, and as Tinker does. They differ in few model types (gpt_oss: attn for
// self_attn).
std::string from_tinker(const Model& model, std::string_view module);
std::string to_tinker(const Model& model, std::string_view module);

}  // namespace peft::layout
