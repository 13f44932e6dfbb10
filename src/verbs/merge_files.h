// The files of a merged model: shards, their index, config.json, and what is copied beside them.
#pragma once

#include <string>
#include <vector>

#include "verbs/merge_updates.h"

namespace peft::merging {

struct FileFacts {
  bool untied = false;
  bool own_output = false;                  // the base's config says tied, and its file has two embeddings
  std::vector<std::string> kept_quantized;  // names of codes that stay; empty: nothing is quantised any more
  std::vector<std::string> dequantized;     // modules and parameters that no longer are
  std::string record;                       // of merged adapters, for the metadata
};
// Moves the tensors into the plan's files and adds texts and copies. Parts get their place in the plan.
void write_files(const Base& base, std::vector<OutTensor>& tensors, const FileFacts& facts, MergePlan& result);

}  // namespace peft::merging
