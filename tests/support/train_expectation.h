// What the real program gives for a case of golden/train. A sum that comes out a last place higher on another CPU can
// decide on which side of a kink a number lies (the limit of gpt-oss's activations, ReLU's zero), and the curves part
// there. For such a case tests/nn/other_roundings has the curve of the same script on such a CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/golden_root.h"

namespace peft::test {

struct TrainExpectation {
  nlohmann::json expect;
  std::filesystem::path final_tensors;
};

// Of the curves of the real program the one whose gradient norms are nearest to these.
inline TrainExpectation train_expectation(const nlohmann::json& json, const std::string& name,
                                          const std::vector<double>& grad_norms) {
  std::vector<TrainExpectation> all = {
      {json["expect"], golden_root() / "train" / name / json["expect"]["final"].get<std::string>()}};
  const auto other = std::filesystem::path(PEFT_SOURCE_DIR) / "tests/nn/other_roundings" / name;
  if (std::filesystem::exists(other)) {
    const auto found = nlohmann::json::parse(std::ifstream(other / "case.json"));
    if (found["batches"] == json["batches"]) all.push_back({found["expect"], other / "final.safetensors"});
  }
  const auto distance = [&](const TrainExpectation& one) {
    double sum = 0;
    for (std::size_t i = 0; i < grad_norms.size() && i < one.expect["steps"].size(); ++i)
      sum += std::abs(grad_norms[i] - one.expect["steps"][i]["grad_norm"].get<double>());
    return sum;
  };
  return *std::min_element(all.begin(), all.end(),
                           [&](const auto& a, const auto& b) { return distance(a) < distance(b); });
}

}  // namespace peft::test
