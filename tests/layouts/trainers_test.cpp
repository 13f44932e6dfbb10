// Files of trainers, written by the real packages (tools/trainer_files.py): read right, and written back byte for byte.
// Forms of which no real file is there: their own shapes, and what is refused.
#include <gtest/gtest.h>

#include <filesystem>

#include "layout/stacked.h"
#include "support/judge.h"
#include "support/model_writer.h"
#include "support/test_files.h"
#include "test_paths.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using safetensors::error_of;
using safetensors::expect_error;

const fs::path kFolder = fs::path(PEFT_SOURCE_DIR) / "tests/layouts/trainers";

struct Case {
  std::string name;
  Layout layout;
  bool returns = true;  // written again in the same layout, its bytes come back
};
const Case kCases[] = {{"veomni-independent", Layout::veomni},
                       {"veomni-shared", Layout::veomni},
                       {"ktransformers", Layout::ktransformers},
                       {"nemo", Layout::nemo},
                       {"nemo-legacy", Layout::peft_fused_0_18, false}};

InputOptions with_base() {
  InputOptions options;
  options.base = (kFolder / "base").string();
  return options;
}

// The same factors as one pair for each expert, which the real program made too.
OracleFactors expected(const Case& c, const fs::path& scratch) {
  fs::create_directories(scratch);
  fs::copy_file(kFolder / (c.name + ".expected.safetensors"), scratch / "adapter_model.safetensors",
                fs::copy_options::overwrite_existing);
  write_file(
      scratch / "adapter_config.json",
      R"({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]})");
  return factors_of(load(scratch.string(), with_base()));
}

TEST(Trainers, FilesOfTheRealPackagesAreReadRight) {
  TemporaryFolder folder;
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const Input input = load((kFolder / c.name).string(), with_base());
    EXPECT_EQ(info(input.reading.layout).name, info(c.layout).name);
    compare_deltas(expected(c, folder / c.name), factors_of(input), kExact);
  }
}

TEST(Trainers, ComeBackByteForByte) {
  TemporaryFolder folder;
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const Input input = load((kFolder / c.name).string(), with_base());
    ConvertOptions options;
    options.input = with_base();
    const std::string plain = folder / (c.name + "-plain"), back = folder / (c.name + "-back");
    convert(input, options, Layout::peft_per_expert, plain);
    convert(load(plain, options.input), options, c.layout, back);
    compare_deltas(factors_of(input), factors_of(load(back, options.input)), kExact);
    if (!c.returns) continue;
    for (const auto& entry : fs::directory_iterator(kFolder / c.name)) {
      if (entry.path().extension() != ".safetensors") continue;
      EXPECT_EQ(read_file(entry.path()), read_file(fs::path(back) / entry.path().filename())) << entry.path();
    }
  }
}

TEST(Trainers, AreNamedAsTheWriters) {
  for (const auto& [name, writer] :
       {std::pair{"veomni-shared", "VeOmni"}, {"ktransformers", "KTransformers"}, {"nemo", "NeMo Automodel"}}) {
    const InspectReport report = inspect((kFolder / name).string(), with_base());
    EXPECT_EQ(report.producer, writer);
    EXPECT_EQ(report.error, "");
  }
}

// What VeOmni reads its config by is what it wrote itself.
TEST(Trainers, VeOmnisConfigIsItsOwn) {
  TemporaryFolder folder;
  for (const char* name : {"veomni-independent", "veomni-shared"}) {
    const Input input = load((kFolder / name).string(), with_base());
    ConvertOptions options;
    options.input = with_base();
    const std::string plain = folder / (std::string(name) + "-plain"), back = folder / name;
    convert(input, options, Layout::peft_per_expert, plain);
    convert(load(plain, options.input), options, Layout::veomni, back);
    EXPECT_EQ(read_json(fs::path(back) / "adapter_config.json"), read_json(kFolder / name / "adapter_config.json"));
  }
}

// ---- square parameters, which only NeMo's marker settles; every form of the table

constexpr std::int64_t kHidden = 26, kInner = 13, kExperts = 12, kRank = 3;  // gate_up is square: 26 is 2 * 13

class Forms : public ::testing::Test {
 protected:
  Forms() { write_model(folder_.path() / "base", {"qwen3_moe", kHidden, kInner, kExperts, 2}); }

  Input read(std::vector<Stored> tensors, const Json& changes = Json::object(), const std::string& marker = "") {
    const fs::path path = folder_.path() / std::to_string(count_++);
    write_lora(path, lora_config(kRank, 2 * kRank, changes), std::move(tensors));
    if (!marker.empty())
      write_file(path / "automodel_peft_config.json", R"({"paramwrapper_layout": ")" + marker + "\"}");
    InputOptions options;
    options.base = folder_ / "base";
    return load(path.string(), options);
  }
  // gate_up_proj alone, in PEFT's form: a square.
  std::vector<Stored> square() {
    Draw draw(7);
    const std::string key = "base_model.model.model.layers.1.mlp.experts.lora_";
    return {stored(key + "A.weight", "F32", draw.matrix(kExperts * kRank, kHidden, 0.125, 9)),
            stored(key + "B.weight", "F32", draw.matrix(2 * kInner, kRank * kExperts, 0.125, 9))};
  }

  TemporaryFolder folder_;
  int count_ = 0;
};

const Json kGateUp = {{"target_parameters", {"mlp.experts.gate_up_proj"}}, {"peft_version", nullptr}};

TEST_F(Forms, NeMosMarkerSettlesSquares) {
  const Input now = read(square(), kGateUp, "peft-0.19.1"), before = read(square(), kGateUp, "peft-0.18");
  EXPECT_EQ(info(now.reading.layout).name, "nemo");
  EXPECT_EQ(info(before.reading.layout).name, "peft-fused-0.18");
  const Factor &x = now.reading.factors.factors.front(), &y = before.reading.factors.factors.front();
  EXPECT_EQ(x.a.tensor, y.b.tensor) << "the sides trade places";
  expect_error(error_of([&] { read(square(), kGateUp, "peft-2"); }), ErrorCode::CF_VALUE,
               {"paramwrapper_layout", "peft-2"});
}

TEST_F(Forms, AMarkerThatShapesContradictIsRefused) {
  Draw draw(7);
  const std::string key = "base_model.model.model.layers.1.mlp.experts.lora_";
  const std::vector<Stored> down = {stored(key + "A.weight", "F32", draw.matrix(kExperts * kRank, kInner, 0.125, 9)),
                                    stored(key + "B.weight", "F32", draw.matrix(kHidden, kRank * kExperts, 0.125, 9))};
  const Json changes = {{"target_parameters", {"mlp.experts.down_proj"}}, {"peft_version", nullptr}};
  EXPECT_EQ(info(read(down, changes, "peft-0.19.1").reading.layout).name, "nemo");
  expect_error(error_of([&] { read(down, changes, "peft-0.18"); }), ErrorCode::LO_LAYOUT,
               {"automodel_peft_config.json"});
}

TEST_F(Forms, UnslothsMixedPackingIsRefusedUntilSomeoneDecides) {
  const Json mixed = {{"lora_A_layout", "grouped_by_expert"},
                      {"parameters", {{"gate_up_proj", {{"lora_B_layout", "mixed"}, {"num_experts", kExperts}}}}}};
  Json changes = kGateUp;
  changes["unsloth_fused_expert_lora"] = mixed;
  changes["peft_version"] = "0.21.2";
  expect_error(error_of([&] { read(square(), changes); }), ErrorCode::LO_LAYOUT,
               {"gate_up_proj: mixed", "--b-packing"});
  changes["lora_B_layout"] = "rank_major";
  EXPECT_NO_THROW(read(square(), changes));
}

// From one pair for each expert to every form and back: the same updates; and forms that can share a side do.
TEST_F(Forms, HoldEveryAdapter) {
  for (const bool shared : {false, true}) {
    Draw draw(11);
    std::vector<Stored> tensors;
    const Matrix same = draw.matrix(kRank, kHidden, 0.125, 9);
    for (std::int64_t e = 0; e < kExperts; ++e) {
      for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
        const bool down = std::string(projection) == "down_proj";
        const std::string key = fmt::format("base_model.model.model.layers.1.mlp.experts.{}.{}.lora_", e, projection);
        const Matrix a = shared && !down ? same : draw.matrix(kRank, down ? kInner : kHidden, 0.125, 9);
        tensors.push_back(stored(key + "A.weight", "F32", a));
        tensors.push_back(stored(key + "B.weight", "F32", draw.matrix(down ? kHidden : kInner, kRank, 0.125, 9)));
      }
    }
    const Input input = read(tensors, {{"target_modules", {"gate_proj", "up_proj", "down_proj"}}});
    const OracleFactors want = factors_of(input);
    for (const layout::StackedForm& form : layout::stacked_forms()) {
      SCOPED_TRACE(std::string(info(form.layout).name) + (shared ? ", lora_A shared" : ""));
      ConvertOptions options;
      options.input.base = folder_ / "base";
      const std::string there = folder_ / (std::string(info(form.layout).name) + (shared ? "-shared" : ""));
      convert(input, options, form.layout, there);
      const Input again = load_as(there, options.input, form.layout);
      EXPECT_EQ(info(again.reading.layout).name, info(form.layout).name);
      compare_deltas(want, factors_of(again), kExact);
      convert(again, options, form.layout, there + "-again");
      EXPECT_EQ(read_file(there + "/adapter_model.safetensors"), read_file(there + "-again/adapter_model.safetensors"));
      if (!shared || (form.layout != Layout::tinker && form.layout != Layout::sglang)) continue;
      const auto first = again.adapter.weights->tensors();
      EXPECT_TRUE(
          std::ranges::any_of(first, [](const TensorInfo& t) { return t.shape.size() == 3 && t.shape[0] == 1; }));
    }
  }
}

// SGLang's lora_A of gate and up has a rank for each; Megatron-Bridge's one for both.
TEST_F(Forms, AreToldApartByTheRankOfLoraA) {
  Draw draw(5);
  const std::string key = "base_model.model.model.layers.1.mlp.experts.gate_up_proj.lora_";
  const auto stacked = [&](const std::string& side, std::vector<std::int64_t> shape) {
    const Matrix values = draw.matrix(shape[0] * shape[1], shape[2], 0.125, 9);
    return stored(key + side + ".weight", "F32", std::move(shape), values.values);
  };
  const auto name_of = [&](std::int64_t rows) {
    return info(read({stacked("A", {kExperts, rows, kHidden}), stacked("B", {kExperts, 2 * kInner, kRank})})
                    .reading.layout)
        .name;
  };
  EXPECT_EQ(name_of(kRank), "megatron-bridge");
  EXPECT_EQ(name_of(2 * kRank), "sglang");
  expect_error(error_of([&] { name_of(2 * kRank + 1); }), ErrorCode::LO_LAYOUT, {"SGLang"});
  expect_error(error_of([&] {
                 read({stacked("A", {kExperts, kRank, kHidden}), stacked("B", {kExperts, 2 * kInner + 1, kRank})});
               }),
               ErrorCode::LO_SHAPE, {"gate and up"});
}

// What the names say is one program's, and its shapes are not.
TEST_F(Forms, StacksOfWrongShapesAreRefused) {
  const auto refused = [&](const std::string& name, std::vector<std::int64_t> a, std::vector<std::int64_t> b,
                           ErrorCode code, const std::vector<std::string>& words) {
    Draw draw(3);
    const auto values = [&](const std::vector<std::int64_t>& shape) {
      std::int64_t rows = 1;
      for (const std::int64_t size : shape) rows *= size;
      return draw.matrix(rows / shape.back(), shape.back(), 0.125, 9).values;
    };
    const std::string key = "base_model.model.model.layers.1.mlp.experts." + name + ".lora_";
    SCOPED_TRACE(name + fmt::format(" {}", a.front()));
    expect_error(error_of([&] {
                   read({stored(key + "A.weight", "F32", a, values(a)), stored(key + "B.weight", "F32", b, values(b))});
                 }),
                 code, words);
  };
  using enum ErrorCode;
  refused("gate_proj", {1, kRank, kHidden}, {kExperts, kInner, kRank}, LO_SHAPE, {"different numbers of experts"});
  refused("gate_proj", {kExperts - 1, kRank, kHidden}, {kExperts - 1, kInner, kRank}, LO_EXPERT, {"11 experts"});
  refused("gate_proj", {kExperts, kRank, kHidden}, {kExperts, kInner, kRank + 1}, LO_SHAPE, {});
  refused("up_proj", {kRank, kHidden}, {kInner, kRank + 1}, LO_LAYOUT, {"no program"});
  refused("w1", {kRank, kHidden}, {kInner, kRank}, LO_LAYOUT, {"no program"});
  refused("gate_up_proj", {1, kRank, kHidden}, {kExperts, 2 * kInner, kRank}, LO_LAYOUT, {"no program"});
  refused("down_proj", {kExperts, kRank, kHidden}, {kExperts, kInner, kRank}, LO_LAYOUT, {"--from"});
}

// Megatron-Bridge's shared outer side: once for all experts, beside one tensor for each of them.
TEST_F(Forms, ASharedSideServesTheExpertsBesideIt) {
  Draw draw(9);
  const std::string experts = "base_model.model.model.layers.1.mlp.experts.";
  const Matrix a = draw.matrix(kRank, kHidden, 0.125, 9), down_b = draw.matrix(kHidden, kRank, 0.125, 9);
  std::vector<Stored> outer = {stored(experts + "gate_proj.lora_A.weight", "F32", {1, kRank, kHidden}, a.values),
                               stored(experts + "down_proj.lora_B.weight", "F32", {1, kHidden, kRank}, down_b.values)};
  std::vector<Stored> plain;
  for (std::int64_t e = 0; e < kExperts; ++e) {
    const std::string expert = experts + std::to_string(e) + ".";
    outer.push_back(stored(expert + "gate_proj.lora_B.weight", "F32", draw.matrix(kInner, kRank, 0.125, 9)));
    plain.push_back(outer.back());
    plain.push_back(stored(expert + "gate_proj.lora_A.weight", "F32", a));
    outer.push_back(stored(expert + "down_proj.lora_A.weight", "F32", draw.matrix(kRank, kInner, 0.125, 9)));
    plain.push_back(outer.back());
    plain.push_back(stored(expert + "down_proj.lora_B.weight", "F32", down_b));
  }
  const Json changes = {{"target_modules", {"gate_proj", "down_proj"}}};
  compare_deltas(factors_of(read(plain, changes)), factors_of(read(outer, changes)), kExact);
  outer.erase(outer.begin() + 2);  // an expert without its own side has no pair
  EXPECT_EQ(factors_of(read(outer, changes)).size(), static_cast<std::size_t>(2 * kExperts - 1));
  expect_error(error_of([&] { read({outer.front()}, changes); }), ErrorCode::LO_PAIR, {"gate_proj.lora_B"});
  const std::string magnitude = experts + "gate_proj.lora_magnitude_vector";
  expect_error(error_of([&] { read({stored(magnitude, "F32", draw.matrix(1, kInner, 0.125, 9))}, changes); }),
               ErrorCode::LO_PAIR, {"gate_proj"});
}

// One pair for each expert and projection, with values of its own.
std::vector<Stored> per_expert(std::initializer_list<const char*> projections, std::uint64_t seed) {
  Draw draw(seed);
  std::vector<Stored> tensors;
  for (std::int64_t e = 0; e < kExperts; ++e) {
    for (const std::string projection : projections) {
      const bool down = projection == "down_proj";
      const std::string key = fmt::format("base_model.model.model.layers.1.mlp.experts.{}.{}.lora_", e, projection);
      tensors.push_back(stored(key + "A.weight", "F32", draw.matrix(kRank, down ? kInner : kHidden, 0.125, 9)));
      tensors.push_back(stored(key + "B.weight", "F32", draw.matrix(down ? kHidden : kInner, kRank, 0.125, 9)));
    }
  }
  return tensors;
}

TEST_F(Forms, NeMoHasOneRankAndOneScale) {
  const Json all = {{"target_modules", {"gate_proj", "up_proj", "down_proj"}}};
  Json rslora = all, patterns = all;
  rslora["use_rslora"] = true;
  patterns["alpha_pattern"] = {{"down_proj", 5}};
  for (const Json& changes : {all, rslora, patterns}) {
    SCOPED_TRACE(changes.dump());
    const Input input = read(per_expert({"gate_proj", "up_proj", "down_proj"}, 3), changes);
    ConvertOptions options;
    options.input.base = folder_ / "base";
    const std::string out = folder_ / fmt::format("nemo-{}", count_);
    const Plan plan = convert(input, options, Layout::nemo, out);
    const Json config = read_json(fs::path(out) / "adapter_config.json");
    EXPECT_EQ(config.at("r"), 2 * kRank) << "gate and up share no lora_A";
    for (const char* key : {"use_rslora", "rank_pattern", "alpha_pattern", "peft_version"})
      EXPECT_FALSE(config.contains(key)) << key;
    const Input again = load(out, options.input);
    EXPECT_EQ(info(again.reading.layout).name, "nemo");
    compare_deltas(factors_of(input), factors_of(again),
                   plan.exactness == Exactness::rounded ? rounding(Dtype::f32) : kExact);
    EXPECT_EQ(plan.exactness == Exactness::rounded, changes == patterns) << "only two scales need a rounding";
  }
}

// Nothing in a dense adapter is NeMo's but its config and its marker: both are written.
TEST_F(Forms, ADenseAdapterGetsNeMosConfigAndMarker) {
  Draw draw(8);
  const std::string key = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
  const Input input = read({stored(key + "A.weight", "F32", draw.matrix(kRank, kHidden, 0.125, 9)),
                            stored(key + "B.weight", "F32", draw.matrix(6, kRank, 0.125, 9))},
                           {{"target_modules", {"q_proj"}}, {"use_rslora", true}});
  ConvertOptions options;
  options.input.base = folder_ / "base";
  convert(input, options, Layout::nemo, folder_ / "dense");
  const fs::path out = folder_.path() / "dense";
  EXPECT_EQ(read_json(out / "automodel_peft_config.json").at("paramwrapper_layout"), "peft-0.19.1");
  EXPECT_FALSE(read_json(out / "adapter_config.json").contains("use_rslora"));
  const Input again = load(out.string(), options.input);
  compare_factors(factors_of(input), factors_of(again));
  convert(again, options, Layout::nemo, folder_ / "copied");  // as it is, with the marker that is there
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json", "automodel_peft_config.json"})
    EXPECT_EQ(read_file(out / name), read_file(folder_.path() / "copied" / name)) << name;
}

TEST_F(Forms, NeMoHoldsNoSavedModules) {
  Draw draw(8);
  const std::string key = "base_model.model.";
  const Input input =
      read({stored(key + "model.layers.0.self_attn.q_proj.lora_A.weight", "F32", draw.matrix(kRank, kHidden, 0.125, 9)),
            stored(key + "model.layers.0.self_attn.q_proj.lora_B.weight", "F32", draw.matrix(6, kRank, 0.125, 9)),
            stored(key + "lm_head.weight", "F32", draw.matrix(7, kHidden, 0.125, 9))},
           {{"target_modules", {"q_proj"}}, {"modules_to_save", {"lm_head"}}});
  ConvertOptions options;
  options.to = Layout::nemo;
  expect_error(error_of([&] { plan_convert(input, options); }), ErrorCode::LO_NO_FORM, {"lm_head", "merge"});
  expect_error(error_of([&] { convert_config(input.adapter.folder, options); }), ErrorCode::USAGE, {"nemo"});
}

// down_proj alone looks the same in three forms, and means the same.
TEST_F(Forms, StacksThatSeveralProgramsWriteAlikeAreNotGuessed) {
  const Json down = {{"target_modules", {"down_proj"}}};
  const Input input = read(per_expert({"down_proj"}, 4), down);
  ConvertOptions options;
  options.input.base = folder_ / "base";
  for (const Layout layout : {Layout::megatron_bridge, Layout::sglang, Layout::veomni}) {
    SCOPED_TRACE(std::string(info(layout).name));
    const std::string out = folder_ / ("down-" + std::string(info(layout).name));
    convert(input, options, layout, out);
    if (layout != Layout::veomni) {  // whose config says what it is
      expect_error(error_of([&] { load(out, options.input); }), ErrorCode::LO_LAYOUT,
                   {"--from megatron-bridge", "--from sglang", "--from veomni"});
    }
    const Input again = load_as(out, options.input, layout);
    EXPECT_EQ(info(again.reading.layout).name, info(layout).name);
    compare_factors(factors_of(input), factors_of(again));
  }
}

// Rows of zeros stand for a projection without LoRA: lora_A serves both, and the rank stays.
TEST_F(Forms, GateAloneKeepsItsRank) {
  for (const char* projection : {"gate_proj", "up_proj"}) {
    const Input input = read(per_expert({projection}, 6), {{"target_modules", {projection}}});
    for (const layout::StackedForm& form : layout::stacked_forms()) {
      SCOPED_TRACE(std::string(projection) + " " + std::string(info(form.layout).name));
      ConvertOptions options;
      options.input.base = folder_ / "base";
      const std::string out = folder_ / (std::string(projection) + std::string(info(form.layout).name));
      const Plan plan = convert(input, options, form.layout, out);
      const bool zeros = form.by_layer || form.tensors.front().projections.size() > 1;
      EXPECT_EQ(plan.exactness, zeros ? Exactness::value_exact : Exactness::bit_exact);
      const Input again = load_as(out, options.input, form.layout);
      compare_deltas(factors_of(input), factors_of(again), kExact);
      EXPECT_EQ(again.reading.factors.factors.front().rank, kRank);
    }
  }
}

// Gate and up that share no lora_A get a half of the rank each, and come back with theirs.
TEST_F(Forms, MegatronBridgesHalvesAreFoundAgain) {
  std::vector<Stored> tensors = per_expert({"gate_proj", "up_proj", "down_proj"}, 12);
  Draw draw(2);
  const std::string query = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
  tensors.push_back(stored(query + "A.weight", "F32", draw.matrix(7, kHidden, 0.125, 9)));
  tensors.push_back(stored(query + "B.weight", "F32", draw.matrix(6, 7, 0.125, 9)));
  const Input input = read(tensors, {{"target_modules", {"q_proj", "gate_proj", "up_proj", "down_proj"}},
                                     {"rank_pattern", {{"q_proj", 7}}},
                                     {"alpha_pattern", {{"q_proj", 14}}}});
  ConvertOptions options;
  options.input.base = folder_ / "base";
  convert(input, options, Layout::megatron_bridge, folder_ / "there");
  EXPECT_EQ(read_json(folder_.path() / "there" / "adapter_config.json").at("r"), 7) << "2 * 3 have room in 7";
  const Input there = load(folder_ / "there", options.input);
  compare_deltas(factors_of(input), factors_of(there), kExact);
  for (const Factor& factor : there.reading.factors.factors) {
    const bool halved = factor.site.projection == Projection::gate || factor.site.projection == Projection::up;
    EXPECT_EQ(factor.rank, halved ? 3 : 7) << describe(factor.site);
  }
  convert(there, options, Layout::peft_per_expert, folder_ / "plain");
  convert(load(folder_ / "plain", options.input), options, Layout::megatron_bridge, folder_ / "again");
  EXPECT_EQ(read_file(folder_.path() / "there/adapter_model.safetensors"),
            read_file(folder_.path() / "again/adapter_model.safetensors"));
}

// A file of PEFT is none of a trainer's, and the other way round, whatever --from says.
TEST_F(Forms, AreNotTakenForEachOther) {
  const Input input = read(per_expert({"gate_proj", "up_proj", "down_proj"}, 5),
                           {{"target_modules", {"gate_proj", "up_proj", "down_proj"}}});
  ConvertOptions options;
  options.input.base = folder_ / "base";
  for (const LayoutInfo& written : layouts()) {
    if (written.form != AdapterForm::peft) continue;
    const std::string out = folder_ / ("as-" + std::string(written.name));
    convert(input, options, written.layout, out);
    EXPECT_EQ(info(load(out, options.input).reading.layout).name, written.name);
    for (const layout::StackedForm& asked : layout::stacked_forms()) {
      if (asked.layout == written.layout) continue;
      SCOPED_TRACE(fmt::format("{} --from {}", written.name, info(asked.layout).name));
      InputOptions named = options.input;
      named.read.layout = asked.layout;
      expect_error(error_of([&] { load(out, named); }), ErrorCode::LO_LAYOUT, {std::string(info(asked.layout).name)});
    }
  }
}

TEST_F(Forms, ATensorInTwoFilesIsRefused) {
  const fs::path path = folder_.path() / "twice";
  fs::create_directories(path);
  for (const char* file : {"adapter_model.safetensors", "fused_expert_lora.safetensors"})
    fs::copy_file(kFolder / "ktransformers/fused_expert_lora.safetensors", path / file);
  fs::copy_file(kFolder / "ktransformers/adapter_config.json", path / "adapter_config.json");
  expect_error(error_of([&] { load(path.string(), with_base()); }), ErrorCode::IX_DUP,
               {"two files", "layers.0.experts"});
}

}  // namespace
}  // namespace peft::testing
