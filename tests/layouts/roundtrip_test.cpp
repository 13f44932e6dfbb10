// Random adapters through every layout and back. Nothing about the function may change, and where no number had to be
// rounded the way back gives the bytes of the original.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "support/judge.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

struct Family {
  const char *model_type, *v4_experts, *v5_experts, *gate, *up, *down;  // of layer {}
};
constexpr Family kFamilies[] = {
    {"mixtral", "block_sparse_moe.experts", "mlp.experts", "w1", "w3", "w2"},
    {"phimoe", "block_sparse_moe.experts", "mlp.experts", "w1", "w3", "w2"},
    {"qwen2_moe", "mlp.experts", "mlp.experts", "gate_proj", "up_proj", "down_proj"},
    {"qwen3_moe", "mlp.experts", "mlp.experts", "gate_proj", "up_proj", "down_proj"},
    {"olmoe", "mlp.experts", "mlp.experts", "gate_proj", "up_proj", "down_proj"},
    {"flex_olmo", "mlp.experts", "mlp.experts", "gate_proj", "up_proj", "down_proj"},
};
constexpr Layout kFusedLayouts[] = {Layout::peft_fused, Layout::peft_fused_0_19_0, Layout::peft_fused_0_18,
                                    Layout::unsloth_grouped};
constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16};

// What is random about an adapter. Values are halves of small odd numbers: exact in every dtype, never zero.
class Dice {
 public:
  int roll(int low, int high) { return *rc::gen::inRange(low, high + 1); }
  bool coin(int one_in) { return roll(1, one_in) == 1; }
  template <typename T, std::size_t N>
  const T& pick(const T (&from)[N]) {
    return from[static_cast<std::size_t>(roll(0, static_cast<int>(N) - 1))];
  }
  Matrix matrix(std::int64_t rows, std::int64_t cols) {
    // One draw for a matrix: rapidcheck would spend its time on single numbers.
    auto state = static_cast<std::uint64_t>(*rc::gen::inRange<std::uint32_t>(1, 1u << 31));
    Matrix m(rows, cols);
    for (double& value : m.values) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      value = (2 * static_cast<double>(state >> 60) - 15) / 2;  // -7.5, -6.5 ... 7.5
    }
    return m;
  }
};

// No two of H, I, 2I, E and the ranks are equal, so that no axis can be taken for another.
TinyModel random_model(Dice& dice, const Family& family) {
  // Either more than ten layers or more than ten experts: numbers must not be sorted as text.
  const bool many_layers = dice.coin(8), many_experts = !many_layers && dice.coin(3);
  TinyModel model{family.model_type, 0, 0, many_experts ? dice.roll(11, 12) : dice.roll(5, 6),
                  many_layers ? 11 : dice.roll(1, 2)};
  model.intermediate = dice.roll(13, 16);
  model.hidden = dice.roll(17, 23);
  return model;
}

ModelFacts facts_for(const TinyModel& model) {
  return {model.model_type, model.experts, model.hidden, model.intermediate, false, false};
}

Json base_config(Dice& dice, std::int64_t r) {
  return {{"peft_type", "LORA"},
          {"r", r},
          {"lora_alpha", dice.roll(0, 9)},
          {"use_rslora", dice.coin(3)},
          {"rank_pattern", Json::object()},
          {"alpha_pattern", Json::object()}};
}

struct Random {
  TinyModel model;
  std::vector<NewMatrix> tensors;
  Json config;
  Dtype dtype;
};

enum class Spread { none, by_projection, by_layer, by_expert, free };

// A number that is the same for all factors of a projection, of a layer, of an expert, or for none.
std::int64_t drawn(Dice& dice, std::map<std::string, std::int64_t>& known, Spread spread, std::int64_t usual,
                   const std::string& projection, std::int64_t layer, std::int64_t expert) {
  if (spread == Spread::none) return usual;
  const std::string key = spread == Spread::by_projection ? projection
                          : spread == Spread::by_layer    ? fmt::format("{}", layer)
                          : spread == Spread::by_expert   ? fmt::format("{}", expert)
                                                          : fmt::format("{}.{}.{}", layer, expert, projection);
  const auto at = known.find(key);
  return at != known.end() ? at->second : known[key] = dice.roll(2, 4);
}

// An adapter of transformers 4: experts may be missing, projections adapted in part, ranks and alphas unequal.
Random random_per_expert(Dice& dice) {
  constexpr Spread spreads[] = {Spread::none,     Spread::none,      Spread::by_projection,
                                Spread::by_layer, Spread::by_expert, Spread::free};
  const Family& family = dice.pick(kFamilies);
  Random random{random_model(dice, family), {}, base_config(dice, dice.roll(2, 4)), dice.pick(kDtypes)};
  const TinyModel& model = random.model;
  const bool tied = dice.coin(3), some_missing = dice.coin(3);
  const int parts = dice.coin(2) ? 7 : dice.roll(1, 7);  // bits: gate, up, down
  Spread ranks = dice.pick(spreads), alphas = dice.pick(spreads);
  if (model.layers > 3 && ranks == Spread::free)
    ranks = Spread::by_layer;  // hundreds of patterns: slow, and nothing new
  if (model.layers > 3 && alphas == Spread::free) alphas = Spread::by_layer;
  std::map<std::string, std::int64_t> rank_of, alpha_of;
  std::vector<std::string> targets;
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    for (std::int64_t expert = 0; expert < model.experts; ++expert) {
      if (some_missing && expert != 1 && dice.coin(4)) continue;
      Matrix gate_a;
      for (const auto& [bit, projection] : {std::pair{1, family.gate}, {2, family.up}, {4, family.down}}) {
        if (!(parts & bit)) continue;
        const std::string name = fmt::format("model.layers.{}.{}.{}.{}", layer, family.v4_experts, expert, projection);
        const std::int64_t r = drawn(dice, rank_of, ranks, random.config.at("r"), projection, layer, expert);
        const std::int64_t alpha =
            drawn(dice, alpha_of, alphas, random.config.at("lora_alpha"), projection, layer, expert);
        if (r != random.config.at("r")) random.config["rank_pattern"][name] = r;
        if (alpha != random.config.at("lora_alpha")) random.config["alpha_pattern"][name] = alpha;
        const bool is_down = bit == 4;
        Matrix a = dice.matrix(r, is_down ? model.intermediate : model.hidden);
        if (bit == 1) gate_a = a;
        if (bit == 2 && tied && gate_a.rows == r) a = gate_a;
        random.tensors.push_back({"base_model.model." + name + ".lora_A.weight", std::move(a)});
        random.tensors.push_back({"base_model.model." + name + ".lora_B.weight",
                                  dice.matrix(is_down ? model.hidden : model.intermediate, r)});
        targets.push_back(name);
      }
    }
    const std::string query = fmt::format("model.layers.{}.self_attn.q_proj", layer);
    random.tensors.push_back(
        {"base_model.model." + query + ".lora_A.weight", dice.matrix(random.config.at("r"), model.hidden)});
    random.tensors.push_back({"base_model.model." + query + ".lora_B.weight", dice.matrix(6, random.config.at("r"))});
    targets.push_back(query);
  }
  std::ranges::sort(targets);
  random.config["target_modules"] = targets;
  return random;
}

// An adapter of transformers 5, in one of the fused layouts. Gate and up share lora_A, as a trained one does.
Random random_fused(Dice& dice, Layout layout) {
  const Family& family = dice.pick(kFamilies);
  Random random{random_model(dice, family), {}, base_config(dice, dice.roll(2, 4)), dice.pick(kDtypes)};
  const TinyModel& model = random.model;
  const int parts = dice.coin(2) ? 3 : dice.roll(1, 2);  // bits: gate_up, down
  const bool turned = layout == Layout::peft_fused_0_18 || layout == Layout::peft_fused_0_19_0;
  const bool grouped = layout == Layout::unsloth_grouped;
  std::vector<std::string> parameters;
  for (const auto& [bit, parameter] : {std::pair{1, "gate_up_proj"}, {2, "down_proj"}}) {
    if (!(parts & bit)) continue;
    parameters.push_back(std::string(family.v5_experts) + "." + parameter);
    std::int64_t r = random.config.at("r");
    if (dice.coin(3)) random.config["rank_pattern"][".*\\." + std::string(parameter)] = r = dice.roll(2, 4);
    if (dice.coin(3)) random.config["alpha_pattern"][".*\\." + std::string(parameter)] = dice.roll(0, 9);
    for (std::int64_t layer = 0; layer < model.layers; ++layer) {
      std::vector<ExpertFactors> experts;
      for (std::int64_t e = 0; e < model.experts; ++e) {
        const bool gate_up = bit == 1;
        experts.push_back({dice.matrix(r, gate_up ? model.hidden : model.intermediate),
                           dice.matrix(gate_up ? 2 * model.intermediate : model.hidden, r)});
      }
      FusedPair pair = fuse(experts, turned, grouped);
      const std::string key = fmt::format("base_model.model.model.layers.{}.{}{}", layer, family.v5_experts,
                                          bit == 1 && parts == 3 ? ".base_layer" : "");
      random.tensors.push_back({key + ".lora_A.weight", std::move(pair.a)});
      random.tensors.push_back({key + ".lora_B.weight", std::move(pair.b)});
    }
  }
  random.config["target_modules"] = Json::array();
  random.config["target_parameters"] = parameters;
  random.config["peft_version"] = layout == Layout::peft_fused_0_18     ? "0.18.1"
                                  : layout == Layout::peft_fused_0_19_0 ? "0.19.0"
                                                                        : "0.21.2";
  if (grouped) random.config["lora_B_layout"] = "grouped_by_expert";
  return random;
}

std::shared_ptr<const TensorFile> weights_in(const std::string& folder) {
  return TensorFile::open(folder + "/adapter_model.safetensors");
}

// Where a scale moved into B, by a power of two, the way back gives the same function in other numbers.
bool same_scales(const OracleFactors& want, const OracleFactors& got) {
  return std::ranges::all_of(
      want, [&](const auto& entry) { return std::abs(entry.second.scale - got.at(entry.first).scale) < 1e-12; });
}

OracleOptions how(Layout layout, const ModelFacts& facts) {
  if (layout == Layout::peft_per_expert) return {};
  return {layout == Layout::unsloth_grouped, orientation_of(facts, std::string(info(layout).name))};
}

// compare_bytes(), which says what the bytes went through.
void compare_bytes_through(const std::string& through, const TensorFile& want, const TensorFile& got) {
  try {
    compare_bytes(want, got);
  } catch (const std::exception& error) {
    require(false, through + ": " + error.what());
  }
}

// Runs a check that throws Failure, as a property of rapidcheck that shows the failure's text.
template <typename Action>
void hold(Action&& action) {
  try {
    action();
  } catch (const std::exception& error) {
    RC_FAIL(error.what());
  }
}

RC_GTEST_PROP(Roundtrip, PerExpertThroughEveryFusedLayoutAndBack, ()) {
  Dice dice;
  const Random random = random_per_expert(dice);
  RC_PRE(!random.tensors.empty());
  const TemporaryFolder folder;
  write_model(folder.path() / "base", random.model);
  write_adapter(folder.path() / "v4", random.tensors, random.dtype, random.config);
  const ModelFacts facts = facts_for(random.model);
  hold([&] {
    ConvertOptions options;
    options.input.base = folder / "base";
    const Input input = load(folder / "v4", options.input);
    const OracleAdapter want = read_oracle(folder.path() / "v4", facts);
    require(want.problems.empty(), "the test's own file is wrong");
    compare_factors(want.factors, factors_of(input));
    for (const Layout layout : kFusedLayouts) {
      const std::string there = folder / std::string(info(layout).name), back = there + "-back";
      const Plan plan = convert(input, options, layout, there);
      const bool rounded = plan.exactness == Exactness::rounded;
      const bool told = std::ranges::any_of(
          plan.warnings, [](const std::string& warning) { return warning.find("--dtype F32") != std::string::npos; });
      require(told == (rounded && info(random.dtype).bits == 16), "a coarse rounding is told, and nothing else");
      const OracleAdapter fused = read_oracle(there, facts, how(layout, facts));
      require(fused.problems.empty(), fused.problems.empty() ? "" : fused.problems.front());
      if (rounded) {
        compare_deltas(want.factors, fused.factors, rounding(random.dtype));
      } else {
        compare_factors(want.factors, fused.factors, true);
      }
      const Input again = load_as(there, options.input, layout);
      compare_factors(fused.factors, factors_of(again));
      convert(again, options, Layout::peft_per_expert, back);
      const OracleAdapter unfused = read_oracle(back, facts);
      require(unfused.problems.empty(), unfused.problems.empty() ? "" : unfused.problems.front());
      compare_factors(fused.factors, unfused.factors);
      if (!rounded && same_scales(want.factors, fused.factors))
        compare_bytes(*weights_in(folder / "v4"), *weights_in(back));
    }
  });
}

RC_GTEST_PROP(Roundtrip, FusedThroughEveryLayoutAndBack, ()) {
  Dice dice;
  const Layout own = dice.pick(kFusedLayouts);
  const Random random = random_fused(dice, own);
  const TemporaryFolder folder;
  write_model(folder.path() / "base", random.model);
  write_adapter(folder.path() / "v5", random.tensors, random.dtype, random.config);
  const ModelFacts facts = facts_for(random.model);
  hold([&] {
    ConvertOptions options;
    options.input.base = folder / "base";
    const Input input = load_as(folder / "v5", options.input, own);
    const OracleAdapter want = read_oracle(folder.path() / "v5", facts, how(own, facts));
    require(want.problems.empty(), "the test's own file is wrong");
    compare_factors(want.factors, factors_of(input));
    for (const LayoutInfo& layout : layouts()) {
      const std::string there = folder / std::string(layout.name), back = there + "-back";
      if (is_program_layout(layout.layout)) {
        const auto exactness = check_program_tour(input, options, layout.layout, want.factors, there);
        if (!exactness || !gives_bytes_back(layout.layout, *exactness)) continue;
        const Input again = load_as(there, options.input, layout.layout);
        if (!same_scales(want.factors, factors_of(again))) continue;
        convert(again, options, own, back);
        compare_bytes_through(std::string(layout.name), *weights_in(folder / "v5"), *weights_in(back));
        continue;
      }
      const Plan plan = convert(input, options, layout.layout, there);
      require(plan.exactness <= Exactness::value_exact, "a conversion that rounds");
      const OracleAdapter got = read_oracle(there, facts, how(layout.layout, facts));
      require(got.problems.empty(), got.problems.empty() ? "" : got.problems.front());
      compare_factors(want.factors, got.factors);
      convert(load_as(there, options.input, layout.layout), options, own, back);
      compare_bytes_through(std::string(layout.name), *weights_in(folder / "v5"), *weights_in(back));
    }
  });
}

// Between the files of any two programs: the function stays, and the bytes where nothing was rounded or padded. Each
// time some pairs are taken, each layout first in five of them; over the runs of the test that is every pair often.
RC_GTEST_PROP(Roundtrip, BetweenAnyTwoPrograms, ()) {
  Dice dice;
  const Random random = random_per_expert(dice);
  RC_PRE(!random.tensors.empty());
  constexpr std::size_t kOnward = 5;
  const auto turn = static_cast<std::size_t>(dice.roll(0, static_cast<int>(layouts().size()) - 1));
  const TemporaryFolder folder;
  write_model(folder.path() / "base", random.model);
  write_adapter(folder.path() / "v4", random.tensors, random.dtype, random.config);
  hold([&] {
    ConvertOptions options;
    options.input.base = folder / "base";
    const Input input = load(folder / "v4", options.input);
    const OracleFactors want = read_oracle(folder.path() / "v4", facts_for(random.model)).factors;
    for (std::size_t f = 0; f < layouts().size(); ++f) {
      const LayoutInfo& first = layouts()[f];
      const std::string there = folder / std::string(first.name);
      const auto exactness = check_program_tour(input, options, first.layout, want, there);
      if (!exactness || *exactness == Exactness::rounded) continue;
      const Input middle = load_as(there, options.input, first.layout);
      const OracleFactors kept = factors_of(middle);
      for (std::size_t k = 0; k < kOnward; ++k) {
        const LayoutInfo& second = layouts()[(f + turn + k) % layouts().size()];
        const std::string further = there + "-" + std::string(second.name);
        const auto onward = check_program_tour(middle, options, second.layout, kept, further);
        if (!onward || *onward != Exactness::bit_exact) continue;
        const Input last = load_as(further, options.input, second.layout);
        const Plan back = convert(last, options, first.layout, further + "-back");
        if (back.exactness != Exactness::bit_exact) continue;
        compare_bytes(*middle.adapter.weights,
                      *load_as(further + "-back", options.input, first.layout).adapter.weights);
      }
    }
  });
}

// lora_alpha may be 0: of all factors, or of most beside one that has another.
TEST(Roundtrip, ScalesOfZero) {
  const TinyModel model{"qwen3_moe", 20, 13, 5, 1};
  for (const Json& alphas : {Json::object(), Json{{"experts.3.up_proj", 2}}}) {
    std::vector<NewMatrix> tensors;
    double value = 0;
    const auto matrix = [&value](std::int64_t rows, std::int64_t cols) {
      Matrix m(rows, cols);
      for (double& x : m.values) x = ++value;
      return m;
    };
    for (std::int64_t e = 0; e < model.experts; ++e) {
      for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
        const bool down = std::string_view(projection) == "down_proj";
        const std::string key = fmt::format("base_model.model.model.layers.0.mlp.experts.{}.{}", e, projection);
        tensors.push_back({key + ".lora_A.weight", matrix(2, down ? model.intermediate : model.hidden)});
        tensors.push_back({key + ".lora_B.weight", matrix(down ? model.hidden : model.intermediate, 2)});
      }
    }
    const TemporaryFolder folder;
    write_model(folder.path() / "base", model);
    write_adapter(folder.path() / "v4", tensors, Dtype::f32,
                  {{"peft_type", "LORA"},
                   {"r", 2},
                   {"lora_alpha", 0},
                   {"alpha_pattern", alphas},
                   {"target_modules", {"gate_proj", "up_proj", "down_proj"}}});
    const OracleFactors want = read_oracle(folder.path() / "v4", facts_for(model)).factors;
    ConvertOptions options;
    options.input.base = folder / "base";
    for (const Layout layout : kFusedLayouts) {
      const std::string there = folder / std::string(info(layout).name), back = there + "-back";
      convert(load(folder / "v4", options.input), options, layout, there);
      compare_deltas(want, factors_of(load_as(there, options.input, layout)), rounding(Dtype::f32));
      convert(load_as(there, options.input, layout), options, Layout::peft_per_expert, back);
      compare_deltas(want, factors_of(load(back, options.input)), rounding(Dtype::f32));
    }
  }
}

}  // namespace
}  // namespace peft::testing
