// Every family x form of the base x layout of the adapter: merged, and compared with sums that are made here from the
// family table's JSON. Values are eighths and small integers, so every sum is exact and every bit is judged.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "peft/error.h"
#include "peft/verbs.h"
#include "support/family_models.h"
#include "support/judge.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kRank = 2;
constexpr BaseForm kForms[] = {BaseForm::v4, BaseForm::v5, BaseForm::disk};

// Numbers that repeat nowhere soon: 1/8, 2/8, ...
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
  Matrix matrix(std::int64_t rows, std::int64_t cols, double unit, int span) {
    Matrix m(rows, cols);
    for (double& value : m.values) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      value = unit * (static_cast<int>((state_ >> 33) % static_cast<std::uint64_t>(2 * span + 1)) - span);
    }
    m.values.front() = unit;  // never all zero
    return m;
  }

 private:
  std::uint64_t state_;
};

struct Logical {
  std::vector<ExpertMatrices> base, merged;
  std::map<std::pair<std::int64_t, std::string>, ExpertFactors> factors;
};

std::vector<std::string> projections_of(const FamilyKind& kind) {
  return kind.has_gate ? std::vector<std::string>{"gate", "up", "down"} : std::vector<std::string>{"up", "down"};
}

Logical make_logical(const FamilyKind& kind) {
  Logical logical;
  Numbers numbers(std::hash<std::string>{}(kind.model_type + kind.name));
  for (std::int64_t e = 0; e < kind.experts; ++e) {
    ExpertMatrices before, after;
    for (const std::string& projection : projections_of(kind)) {
      const bool down = projection == "down";
      const std::int64_t out = down ? kHidden : kIntermediate, in = down ? kIntermediate : kHidden;
      Matrix w = numbers.matrix(out, in, 0.125, 40);
      const ExpertFactors pair{numbers.matrix(kRank, in, 1, 3), numbers.matrix(out, kRank, 1, 3)};
      Matrix sum = w;
      const Matrix delta = product(pair.b, pair.a);
      for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += 2 * delta.values[i];  // alpha 4, r 2
      (down ? before.down : projection == "up" ? before.up : before.gate) = w;
      (down ? after.down : projection == "up" ? after.up : after.gate) = sum;
      logical.factors[{e, projection}] = pair;
    }
    logical.base.push_back(std::move(before));
    logical.merged.push_back(std::move(after));
  }
  return logical;
}

// The adapter as transformers 4 writes it, or as PEFT 0.19.1 does on transformers 5 where no class has such modules.
void write_source(const FamilyKind& kind, const Logical& logical, const fs::path& folder) {
  Json config = {{"peft_type", "LORA"},
                 {"r", kRank},
                 {"lora_alpha", 2 * kRank},
                 {"rank_pattern", Json::object()},
                 {"alpha_pattern", Json::object()}};
  std::vector<NewMatrix> tensors;
  const std::string prefix = "base_model.model.";
  if (per_expert_key(kind, 0, "up")) {
    std::set<std::string> targets;
    for (const auto& [place, pair] : logical.factors) {
      const std::string module = *per_expert_key(kind, place.first, place.second);
      targets.insert(module.substr(module.rfind('.') + 1));
      tensors.push_back({prefix + module + ".lora_A.weight", pair.a});
      tensors.push_back({prefix + module + ".lora_B.weight", pair.b});
    }
    config["target_modules"] = targets;
    config["peft_version"] = "0.18.1";
    return write_adapter(folder, std::move(tensors), Dtype::f32, config);
  }
  throw Failure("written fused");
}

struct FusedParameter {
  std::string module, name;
  FusedPair pair;
  std::int64_t rank = 0;
};

// One expert's pair for a parameter: of gate and up together rank 2 r, block-diagonal.
ExpertFactors pair_for(const Logical& logical, const Json& form, const std::vector<std::string>& held, std::int64_t e) {
  if (held.size() == 1) return logical.factors.at({e, held[0]});
  const ExpertFactors &gate = logical.factors.at({e, "gate"}), &up = logical.factors.at({e, "up"});
  ExpertFactors both{Matrix(2 * kRank, kHidden), Matrix(2 * kIntermediate, 2 * kRank)};
  const bool interleaved = form.value("order", std::string()).starts_with("interleaved");
  for (std::int64_t k = 0; k < kRank; ++k) {
    for (std::int64_t j = 0; j < kHidden; ++j)
      both.a.at(k, j) = gate.a.at(k, j), both.a.at(kRank + k, j) = up.a.at(k, j);
    for (std::int64_t i = 0; i < kIntermediate; ++i) {
      both.b.at(interleaved ? 2 * i : i, k) = gate.b.at(i, k);
      both.b.at(interleaved ? 2 * i + 1 : kIntermediate + i, kRank + k) = up.b.at(i, k);
    }
  }
  return both;
}

// Fused, as PEFT 0.19.1 and later: the first registered parameter of a module is the innermost.
void write_fused(const FamilyKind& kind, const Logical& logical, const fs::path& folder) {
  std::map<std::string, std::vector<FusedParameter>> modules;
  for (const Json& row : kind.v5.empty() ? kind.v4 : kind.v5) {
    const Json& form = kind.forms.at(row.at("form").get<std::string>());
    std::string path = row.at("path").get<std::string>();
    path.replace(path.find("{layer}"), 7, std::to_string(kLayer));
    for (const Json& parameter : form.at("params")) {
      const std::string own = parameter.at(0).get<std::string>();
      const auto held = parameter.at(1).size() == 3 ? held_by_parameter(kind, row, own) : std::vector<std::string>{};
      if (held.empty()) continue;
      std::vector<ExpertFactors> experts;
      for (std::int64_t e = 0; e < kind.experts; ++e) experts.push_back(pair_for(logical, form, held, e));
      modules[path].push_back({path, own, fuse(experts, false, false), experts[0].a.rows});
    }
  }
  Json ranks = Json::object(), alphas = Json::object(), targets = Json::array();
  std::vector<NewMatrix> tensors;
  for (const auto& [path, parameters] : modules) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      std::string module = "base_model.model." + path;
      for (std::size_t depth = i + 1; depth < parameters.size(); ++depth) module += ".base_layer";
      tensors.push_back({module + ".lora_A.weight", parameters[i].pair.a});
      tensors.push_back({module + ".lora_B.weight", parameters[i].pair.b});
      const std::string target = path.substr(path.rfind('.', path.rfind('.') - 1) + 1) + "." + parameters[i].name;
      targets.push_back(target);
      if (parameters[i].rank == kRank) continue;
      ranks[".*\\." + target] = parameters[i].rank;
      alphas[".*\\." + target] = 2 * parameters[i].rank;
    }
  }
  const Json config = {{"peft_type", "LORA"},          {"r", kRank},
                       {"lora_alpha", 2 * kRank},      {"rank_pattern", ranks},
                       {"alpha_pattern", alphas},      {"target_modules", Json::array()},
                       {"target_parameters", targets}, {"peft_version", "0.19.1"},
                       {"lora_ga_config", nullptr}};
  write_adapter(folder, std::move(tensors), Dtype::f32, config);
}

struct Tally {
  int merged = 0;
  std::map<std::string, std::vector<std::string>> absent;  // reason -> combinations
};

// The adapter in every layout that can hold it: where it lies, by the layout's name.
std::map<std::string, std::string> all_layouts(const FamilyKind& kind, const Logical& logical, const std::string& base,
                                               const TemporaryFolder& folder, Tally& tally) {
  const fs::path source = folder / "source";
  const bool per_expert = per_expert_key(kind, 0, "up").has_value();
  if (per_expert)
    write_source(kind, logical, source);
  else
    write_fused(kind, logical, source);
  std::map<std::string, std::string> layouts_at;
  ConvertOptions options;
  options.input.base = base;
  for (const LayoutInfo& layout : layouts()) {
    const std::string combination = fmt::format("{} {} adapter {}", kind.model_type, kind.name, layout.name);
    try {
      const Input input = load(source.string(), options.input);
      if (input.reading.layout == layout.layout) {
        layouts_at[std::string(layout.name)] = source.string();
        continue;
      }
      convert(input, options, layout.layout, folder / std::string(layout.name));
      const Input converted = load_as(folder / std::string(layout.name), options.input, layout.layout);
      const bool per_expert_file = converted.reading.layout == Layout::peft_per_expert;
      EXPECT_EQ(per_expert_file, layout.layout == Layout::peft_per_expert)
          << combination << ": written in another layout than the one asked for";
      layouts_at[std::string(layout.name)] = path_of(folder / std::string(layout.name), layout.layout);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::LO_NO_FORM) throw;
      tally.absent["the layout cannot hold the family's experts"].push_back(combination);
    }
  }
  return layouts_at;
}

void check_output(const std::string& out, const std::vector<NamedTensor>& want) {
  const Checkpoint result = Checkpoint::open(out);
  require(result.tensors().size() == want.size(), "another number of tensors");
  for (const NamedTensor& tensor : want) {
    const auto* entry = result.find(tensor.name);
    require(entry != nullptr, tensor.name + " is missing");
    require(std::ranges::equal(entry->tensor->shape, tensor.shape), tensor.name + ": another shape");
    const auto got = elements(*result.files()[entry->file], *entry->tensor);
    require(got == tensor.values, tensor.name + ": another value");
  }
}

// Beside the experts: something that no adapter touches.
std::vector<NamedTensor> with_others(std::vector<NamedTensor> tensors) {
  tensors.push_back({"lm_head.weight", {11, kHidden}, Numbers(5).matrix(11, kHidden, 0.125, 9).values});
  return tensors;
}

void merge_kind(const FamilyKind& kind, Tally& tally) {
  const Logical logical = make_logical(kind);
  for (const BaseForm form : kForms) {
    std::string why;
    const auto tensors = experts_in(kind, form, logical.base, why);
    if (!tensors) {
      tally.absent[why].push_back(fmt::format("{} {} base {}", kind.model_type, kind.name, name(form)));
      continue;
    }
    const auto want = with_others(*experts_in(kind, form, logical.merged, why));
    const TemporaryFolder folder;
    const fs::path base = folder / "base";
    write_file(base / "model.safetensors", image_of(with_others(*tensors)));
    write_file(base / "config.json", config_of(kind).dump(2));
    for (const auto& [layout, adapter] : all_layouts(kind, logical, base.string(), folder, tally)) {
      SCOPED_TRACE(fmt::format("{} {} base {} adapter {}", kind.model_type, kind.name, name(form), layout));
      try {
        MergeOptions options;
        options.base = base.string();
        options.adapters = {{adapter, 1}};
        options.input.read.layout = parse_layout(layout);
        const MergePlan merge = plan_merge(options);
        EXPECT_EQ(merge.parts.size(), logical.factors.size());
        const std::string out = folder / fmt::format("merged-{}", layout);
        materialize(merge.plan, out);
        check_output(out, want);
        ++tally.merged;
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
    }
  }
}

TEST(MergeFamilies, EveryFamilyFormAndLayout) {
  Tally tally;
  for (const FamilyKind& kind : family_kinds()) {
    SCOPED_TRACE(kind.model_type + " " + kind.name);
    if (!kind.problem.empty()) {
      tally.absent[kind.problem].push_back(kind.model_type + " " + kind.name);
      continue;
    }
    try {
      merge_kind(kind, tally);
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
  fmt::print("{} combinations merged, all bits right\n", tally.merged);
  for (const auto& [reason, combinations] : tally.absent) {
    fmt::print("{} cannot exist, {}:\n", combinations.size(), reason);
    for (const std::string& combination : combinations) fmt::print("  {}\n", combination);
  }
  EXPECT_GT(tally.merged, 500);
}

}  // namespace
}  // namespace peft::testing
