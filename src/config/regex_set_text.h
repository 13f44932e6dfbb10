// A set of characters, [a-z\d], in PCRE2's words for what Python means by it.
#pragma once

#include <string>

#include "config/regex_tree.h"

namespace peft::config {

// Of a node with RegexOp::set; `flags` as in RegexTree.
std::string set_text(const RegexNode& node, unsigned flags);

}  // namespace peft::config
