// Tiny models of every family, made from data/families.json alone: what their tensors are called and how they lie is
// read from the table's JSON by code of its own, so that a merge can be judged by it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "support/golden.h"
#include "support/matrix.h"

namespace peft::testing {

// One expert's matrices, [out, in] each. A two-layer expert has no gate.
struct ExpertMatrices {
  std::optional<Matrix> gate, up, down;
  Matrix& of(const std::string& projection);
};

// One place of a family with experts: in memory of v4, of v5, and as checkpoints name it.
struct FamilyKind {
  std::string model_type, name;  // "mixtral", and the path that tells kinds of one family apart
  std::vector<Json> v4, v5;      // rows of the table
  Json forms, conversions;       // of the table; the conversions of this family
  Json family;
  std::string config_section;
  bool has_gate = true;
  std::int64_t experts = 3;  // a few classes have a fixed number
  std::string problem;       // why nothing of it is a matrix per expert; "" when it is
};
std::vector<FamilyKind> family_kinds();

enum class BaseForm { v4, v5, disk };
const char* name(BaseForm form);

struct NamedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};
constexpr std::int64_t kHidden = 6, kIntermediate = 10, kLayer = 3;

// The tensors of one layer's experts. nullopt: there is no such form; `why` says so.
std::optional<std::vector<NamedTensor>> experts_in(const FamilyKind& kind, BaseForm form,
                                                   std::vector<ExpertMatrices> experts, std::string& why);
// Which projections a parameter of a row holds: {"gate", "up"}, {"down"}, ...
std::vector<std::string> held_by_parameter(const FamilyKind& kind, const Json& row, const std::string& parameter);
// The keys under which adapters of transformers 4 and 5 name the experts.
std::optional<std::string> per_expert_key(const FamilyKind& kind, std::int64_t expert, const std::string& projection);
Json config_of(const FamilyKind& kind);
std::string image_of(std::vector<NamedTensor> tensors);

}  // namespace peft::testing
