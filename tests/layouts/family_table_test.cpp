// Families x layouts x what is special about an adapter: one-sided targets, rsLoRA, patterns, routers, shared experts.
// The families are those of transformers 5 whose experts are stacked; the models are described by their configs at
// small sizes, where no two dimensions are equal and there are eleven experts or more where the class lets one choose.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>
#include <map>

#include "support/adapter_maker.h"
#include "support/judge.h"
#include "support/model_writer.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kRank = 3;

// A model, and one of its layers that has experts.
struct Family {
  std::string type;
  Model model;
  InputOptions options;
  const Experts* experts = nullptr;
  const Module *attention = nullptr, *router = nullptr, *shared = nullptr;
};

bool is_in(const std::string& path, std::string_view part) { return path.find(part) != std::string::npos; }

Family describe_family(const fs::path& tree_file, const TemporaryFolder& folder) {
  const Json tree = read_json(tree_file);
  Family family;
  family.type = tree.at("model_type");
  Json config = tree.at("config");
  config["model_type"] = family.type;
  write_file(folder.path() / family.type / "config.json", config.dump());
  family.options.base = folder / family.type;
  family.model = describe({.base = family.options.base});
  if (family.model.experts.empty() || !family.model.v5 || !family.model.v5->complete) return family;
  const Experts& last = family.model.experts.back();
  if (last.v5_module.empty() || last.num_experts == 0 || last.hidden == 0 || last.intermediate == 0) return family;
  const auto& parameters = last.form->v5;
  // Of dbrx's parameters none says which rows are gate's.
  if (std::ranges::all_of(parameters, [](const auto& parameter) { return parameter.projections.empty(); }))
    return family;
  // longcat_flash: gate_up_proj has the experts that add nothing, too, and down_proj has not.
  if (family.type == "longcat_flash") return family;
  family.experts = &last;
  const std::string block = last.v5_module.substr(0, last.v5_module.rfind('.') + 1);
  for (const Module& module : family.model.v5->modules) {
    if (module.weight.size() != 2 || (module.kind != ModuleKind::linear && module.kind != ModuleKind::other)) continue;
    const bool here = module.name.starts_with(block);
    if (here && module.weight[0] == last.num_experts && module.weight[1] == last.hidden) family.router = &module;
    if (here && is_in(module.name, "shared_expert") && module.name.ends_with("down_proj")) family.shared = &module;
    const bool of_text = !is_in(module.name, "vision") && !is_in(module.name, "audio");
    if (module.kind == ModuleKind::linear && of_text && module.name.ends_with("attn.q_proj"))
      family.attention = &module;
  }
  return family;
}

enum class Special { plain, gate_and_up_alone, down_alone, rslora, scales_differ, ranks_differ, router, shared_expert };
constexpr std::array<std::string_view, 8> kSpecials{
    "plain", "gate and up alone", "down alone", "rsLoRA", "scales differ", "ranks differ", "router", "shared expert"};

class AdapterOf {
 public:
  AdapterOf(const Family& family, Special special) : family_(family), special_(special) {
    for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
      const bool down = projection == Projection::down;
      if (special == (down ? Special::gate_and_up_alone : Special::down_alone)) continue;
      const auto has = [&](const auto& parameter) {
        return std::ranges::count(parameter.projections, projection) != 0;
      };
      if (std::ranges::none_of(family.experts->form->v5, has)) continue;  // experts of two layers have no gate
      for (std::int64_t e = 0; e < family.experts->num_experts; ++e) {
        const Experts& experts = *family.experts;
        add({experts_module(experts), "", e, projection}, down ? experts.hidden : experts.intermediate,
            down ? experts.intermediate : experts.hidden, down);
      }
    }
    add_dense(family.attention);
    if (special == Special::router) add_dense(family.router);
    if (special == Special::shared_expert) add_dense(family.shared);
  }

  Input input() {
    Input input = maker_.input();
    input.model = family_.model;
    input.reading.layout = Layout::peft_fused;
    input.reading.has_experts = true;
    input.reading.factors.expert_counts.push_back({experts_module(*family_.experts), family_.experts->num_experts});
    input.adapter.config = AdapterConfig::parse(
        R"({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"], "peft_version": "0.21.2"})",
        "adapter_config.json");
    return input;
  }

 private:
  double scale(bool down) const {
    if (special_ == Special::rslora) return 6 / std::sqrt(3.0);
    return special_ == Special::scales_differ && down ? 5 : 2;
  }
  void add_dense(const Module* module) {
    if (module != nullptr) add({module->name, "", -1, Projection::none}, module->weight[0], module->weight[1], false);
  }
  void add(const Site& site, std::int64_t out, std::int64_t in, bool down) {
    const std::int64_t rank = special_ == Special::ranks_differ && down ? kRank + 1 : kRank;
    seed_ += 2;
    maker_.pair(site, random_dense(rank, in, seed_), random_dense(out, rank, seed_ + 1), scale(down));
  }

  const Family& family_;
  Special special_;
  Maker maker_;
  std::uint64_t seed_ = 0;
};

// "" for the same function, else why the layout has no form for it.
std::string outcome(const Family& family, const Input& input, Layout layout, const OracleFactors& want) {
  const TemporaryFolder folder;
  ConvertOptions options;
  options.input = family.options;
  Plan plan;
  try {
    plan = convert(input, options, layout, folder.path().string());
  } catch (const Error& error) {
    if (error.code() != ErrorCode::LO_NO_FORM && error.code() != ErrorCode::MD_FAMILY) throw;
    require(!error.detail().hint.empty() || !error.detail().expected.empty(),
            std::string("no way out: ") + error.what());
    return error.detail().problem;
  }
  const Input again = load_as(folder.path().string(), family.options, layout);
  compare_deltas(want, factors_of(again), plan.exactness <= Exactness::value_exact ? kExact : rounding(Dtype::f32));
  for (const auto& [site, factor] : want) require(factors_of(again).contains(site), site + ": lost");
  return "";
}

// Trees whose class takes no small sizes cost minutes: their deltas are left to the other trees of their family.
constexpr std::int64_t kLargest = 512;

std::vector<std::string> trees() {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(fs::path(PEFT_SOURCE_DIR) / "tests/module_trees"))
    if (entry.path().string().ends_with(".v5.json") && is_in(read_json(entry.path()).at("config").dump(), "experts"))
      files.push_back(entry.path().string());
  std::ranges::sort(files);
  return files;
}

class FamilyTable : public ::testing::TestWithParam<std::string> {};

TEST_P(FamilyTable, EveryLayoutHoldsTheSameFunctionOrSaysThatItHasNoForm) {
  const TemporaryFolder folder;
  const Family family = describe_family(GetParam(), folder);
  if (family.experts == nullptr)
    GTEST_SKIP() << "no experts that this test can make an adapter for: describe_family() says which";
  if (std::max(family.experts->hidden, family.experts->intermediate) > kLargest) GTEST_SKIP() << "large";
  std::map<Layout, int> right;
  for (std::size_t s = 0; s < kSpecials.size(); ++s) {
    const auto special = static_cast<Special>(s);
    if (special == Special::router && family.router == nullptr) continue;
    if (special == Special::shared_expert && family.shared == nullptr) continue;
    AdapterOf adapter(family, special);
    const Input input = adapter.input();
    const OracleFactors want = factors_of(input);
    for (const LayoutInfo& layout : layouts()) {
      SCOPED_TRACE(fmt::format("{}, {}", kSpecials[s], layout.name));
      try {
        const std::string why = outcome(family, input, layout.layout, want);
        right[layout.layout] += why.empty() ? 1 : 0;
        if (!why.empty()) fmt::print("{}, {}, {}: {}\n", family.type, kSpecials[s], layout.name, why);
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
    }
  }
  EXPECT_GT(right[Layout::peft_fused], 0);
}

INSTANTIATE_TEST_SUITE_P(Trees, FamilyTable, ::testing::ValuesIn(trees()), [](const auto& test) {
  std::string name = fs::path(test.param).filename().string();
  name.resize(name.size() - std::string(".v5.json").size());
  std::ranges::replace_if(
      name, [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
});

}  // namespace
}  // namespace peft::testing
