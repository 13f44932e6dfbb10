// config.json and the index of a merged model: the base's own text with what is no longer true changed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "peft/plan.h"

namespace peft::merging {

struct ConfigChange {
  bool untied = false;
  bool own_output = false;               // it said tied, and the file has two embeddings
  std::vector<std::string> dequantized;  // modules that are quantised no longer
  std::vector<std::string> kept;         // names of codes that are; empty: none is
  bool any_dequantized = false;
  std::optional<Dtype> dtype;  // of all weights, where they were cast
};
// nullopt: every word stays true, so the file is copied. Throws LO_QUANT where no config can say what is quantised.
std::optional<std::string> changed_config(const std::string& path, const ConfigChange& change,
                                          std::vector<std::string>& warnings);

// weight_map and totals anew; other metadata of the base's index (a path, or "") stay.
std::string index_text(const std::string& base_index, const std::vector<PlannedFile>& files);

}  // namespace peft::merging
