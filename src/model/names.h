// What the name of a module alone says about it.
#pragma once

#include <string_view>

namespace peft::model {

bool is_embedding_name(std::string_view module);        // embed_tokens, wte, word_embeddings
bool is_token_embedding_name(std::string_view module);  // of those, the one text goes in by: no positions, no vision
bool is_norm_name(std::string_view module);             // input_layernorm, q_norm, ln_1: holds a vector, never a matrix
bool is_output_name(std::string_view module);           // lm_head, embed_out, output

}  // namespace peft::model
