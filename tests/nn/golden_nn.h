// Golden models and golden data as tensors, on the device that PEFT_TEST_DEVICE names ("cuda"; not set: the CPU).
#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "peft/nn/model.h"

namespace peft::nn::testing {

using Json = nlohmann::json;
using Tensors = std::map<std::string, at::Tensor>;

std::filesystem::path golden_root();
// The cases of a group ("runtime"): folders with a case.json, sorted; none where the golden data is not there.
bool has_model(const std::string& name);  // the repository's own selection has some models only
std::vector<std::string> cases(const std::string& group);
Json case_json(const std::string& group, const std::string& name);
std::string device();
std::shared_ptr<CausalLM> load(const std::filesystem::path& model, at::ScalarType dtype = at::kFloat);
std::shared_ptr<CausalLM> load_golden(const std::string& model, at::ScalarType dtype = at::kFloat);  // by its name
Tensors read_tensors(const std::filesystem::path& file);
at::Tensor ids_tensor(const Json& rows);

// What a pass records, moved to [sequences, tokens, ...] and taken where the mask is one.
at::Tensor masked(const std::string& name, const at::Tensor& value, const at::Tensor& mask);

// A tolerance of the golden data is the spread of the real program on a CPU; other devices add up in another order.
double allowed(double tolerance);
// The largest difference, and the largest value of `expected`.
double max_difference(const at::Tensor& got, const at::Tensor& expected);
double peak(const at::Tensor& expected);

}  // namespace peft::nn::testing
