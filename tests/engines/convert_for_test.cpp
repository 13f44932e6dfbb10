// What `convert --for ENGINE` writes: the same function, in a form that the profile calls right.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "engines/fit.h"
#include "engines/read_facts.h"
#include "model/families/index.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "support/golden_root.h"
#include "support/judge.h"

namespace peft {
namespace {

namespace fs = std::filesystem;
using engines::Outcome;

struct Source {
  std::string adapter;
  InputOptions options;
};

// The adapters of golden/consumers, those of other programs too, each with its base.
std::vector<Source> sources() {
  const fs::path root = test::golden_root();
  std::vector<Source> list;
  const auto add = [&](const fs::path& adapter, const std::string& family) {
    if (!fs::exists(adapter)) return;
    InputOptions options;
    options.base = (root / "models" / ("consumer-" + family)).string();
    options.read.verb = Verb::convert;
    if (adapter.string().find("-unmarked") != std::string::npos) options.read.b_packing = BPacking::grouped_by_expert;
    list.push_back({adapter.string(), options});
  };
  for (const std::string family : {"mixtral", "qwen3_moe", "gpt_oss", "qwen3_5_moe"}) {
    for (const std::string program : {"", "unsloth", "mlx_lm", "tinker", "llama_cpp"}) {
      const fs::path place = root / "consumers" / program / family;
      if (!fs::exists(place)) continue;
      for (const auto& entry : fs::directory_iterator(place)) {
        add(entry.path() / "adapter", family);
        add(entry.path() / "right.gguf", family);
      }
    }
  }
  return list;
}

Outcome outcome_of(const std::string& adapter, const InputOptions& options, const EngineConversion& made) {
  const Input input = load(adapter, options);
  const engines::AdapterFacts facts = engines::facts_of(input.adapter, input.model, input.reading);
  const engines::Chosen chosen = engines::choose(made.engine + "@" + made.version);
  for (const engines::Profile* profile : chosen.profiles) {
    if (profile->mode == made.mode) return judge(*chosen.engine, *profile, facts).outcome;
  }
  return Outcome::refuses;
}

TEST(ConvertFor, what_is_written_is_called_right_and_is_the_same_function) {
  std::map<std::string, int> written, refused;
  for (const Source& source : sources()) {
    const Input input = load(source.adapter, source.options);
    for (const std::string engine : {"vllm@0.32", "vllm@0.33", "sglang", "peft@0.18", "peft@0.19.1", "peft@0.20",
                                     "peft", "transformers", "unsloth", "llama.cpp", "mlx-lm", "tensorrt-llm"}) {
      SCOPED_TRACE(source.adapter + " for " + engine);
      testing::TemporaryFolder folder;
      const std::string out = (folder.path() / "out").string();
      ConvertOptions options;
      options.input = source.options;
      EngineConversion made;
      try {
        made = plan_convert_for(input, options, engine, out);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::LO_NO_FORM) << error.what();
        EXPECT_FALSE(error.detail().hint.empty());
        ++refused[engine];
        continue;
      }
      execute(made.plan, out, {.threads = 1, .sync = false, .readback = false});
      InputOptions plain = source.options;
      plain.read.b_packing.reset();
      EXPECT_EQ(outcome_of(out, plain, made), Outcome::right);
      const VerifyReport same = verify(source.adapter, out, {source.options, plain, true, 1});
      EXPECT_TRUE(same.same) << (same.differences.empty() ? "" : same.differences.front().what);
      EXPECT_FALSE(made.run.empty());
      for (const std::string& line : made.run) EXPECT_EQ(line.find('{'), std::string::npos) << line;
      ++written[engine];
    }
  }
  for (const auto& [engine, count] : written) std::printf("%s: %d written\n", engine.c_str(), count);
  for (const auto& [engine, count] : refused) std::printf("%s: %d refused\n", engine.c_str(), count);
  for (const char* engine : {"vllm@0.33", "sglang", "peft", "peft@0.18"}) EXPECT_GT(written[engine], 8) << engine;
  EXPECT_EQ(refused["vllm@0.33"], 0);
  EXPECT_EQ(refused["peft"], 0);
}

TEST(ConvertFor, one_sided_experts_get_zero_pairs_where_the_engine_needs_them) {
  const fs::path root = test::golden_root();
  const struct {
    const char *family, *adapter, *engine;
    std::size_t tensors;  // of experts in one layer
  } rows[] = {
      {"gpt_oss", "fused-gateup-only", "vllm", 4},
      {"gpt_oss", "fused-down-only", "vllm", 4},
      {"mixtral", "fused-down-only", "vllm", std::size_t{12} * 3 * 2},
      {"mixtral", "fused-gateup-only", "sglang", std::size_t{12} * 3 * 2},
      {"mixtral", "fused-down-only", "peft", 2},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(std::string(row.adapter) + " of " + row.family + " for " + row.engine);
    ConvertOptions options;
    options.input.base = (root / "models" / (std::string("consumer-") + row.family)).string();
    const Input input = load((root / "consumers" / row.family / row.adapter / "adapter").string(), options.input);
    const EngineConversion made = plan_convert_for(input, options, row.engine, "out");
    std::size_t count = 0;
    for (const PlannedTensor& tensor : made.plan.files.front().tensors)
      count += tensor.name.find("layers.1.") != std::string::npos && tensor.name.find(".experts") != std::string::npos;
    EXPECT_EQ(count, row.tensors);
  }
}

TEST(ConvertFor, scales_that_an_engine_would_ignore_are_folded_once) {
  const fs::path root = test::golden_root();
  for (const std::string name : {"perexpert-rslora", "perexpert-alphapat", "perexpert-mixedrank"}) {
    SCOPED_TRACE(name);
    ConvertOptions options;
    options.input.base = (root / "models/consumer-mixtral").string();
    const Input input = load((root / "consumers/mixtral" / name / "adapter").string(), options.input);
    const EngineConversion made = plan_convert_for(input, options, "sglang", "out");
    const auto config = nlohmann::json::parse(made.plan.texts.front().second);
    EXPECT_FALSE(config["use_rslora"]);
    EXPECT_TRUE(config["rank_pattern"].empty());
    EXPECT_TRUE(config["alpha_pattern"].empty());
    for (const PlannedTensor& tensor : made.plan.files.front().tensors) {
      const std::size_t rank_at = tensor.name.find("lora_A") != std::string::npos ? 0 : 1;
      EXPECT_EQ(tensor.shape[rank_at], config["r"].get<std::int64_t>()) << tensor.name;
    }
    EXPECT_EQ(made.plan.exactness, name == "perexpert-rslora" ? Exactness::bit_exact : Exactness::rounded);
  }
}

TEST(ConvertFor, names_of_vllm_for_gemma_4_are_read_again) {
  DescribeOptions describe_options{.family = "gemma4_text", .num_experts = 12};
  describe_options.names = {"model.layers.0.moe.experts.11.gate_proj", "model.layers.1.moe.experts.0.down_proj"};
  const Model model = describe(describe_options);
  ASSERT_EQ(model.experts.size(), 2u);
  const auto located = model.locate("model.layers.1.moe.experts.7.up_proj");
  ASSERT_TRUE(located);
  EXPECT_EQ(located->projection, Projection::up);
  EXPECT_EQ(located->expert, 7);
  EXPECT_EQ(model::expert_module(model, *located->experts, "vllm", 7, Projection::up),
            "model.layers.1.moe.experts.7.up_proj");
  EXPECT_EQ(model::expert_module(model, *located->experts, "nobody", 7, Projection::up), "");
}

TEST(ConvertFor, what_no_form_holds_names_the_way_out) {
  const fs::path dora = fs::path(PEFT_SOURCE_DIR) / "tests/golden/native/llama-dora-p0212";
  ConvertOptions options;
  options.input.base = (fs::path(PEFT_SOURCE_DIR) / "tests/golden/models/llama").string();
  if (!fs::exists(options.input.base)) options.input.base.clear();
  const Input input = load((dora / "adapter").string(), options.input);
  for (const std::string engine : {"vllm", "sglang", "ollama"}) {
    try {
      plan_convert_for(input, options, engine, "out");
      ADD_FAILURE() << engine;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::LO_NO_FORM);
      EXPECT_NE(error.detail().hint.find("peft merge"), std::string::npos) << error.what();
    }
  }
}

TEST(Doctor, names_the_part_the_reason_and_what_mends_it) {
  const fs::path root = test::golden_root();
  DoctorOptions options;
  options.input.base = (root / "models/consumer-mixtral").string();
  options.engine = "vllm";
  const DoctorReport report = doctor((root / "consumers/mixtral/fused-router/adapter").string(), options);
  ASSERT_EQ(report.engines.size(), 1u);
  EXPECT_FALSE(report.all_right);
  std::map<engines::Part, engines::Verdict> verdicts;
  for (const auto& part : report.engines.front().parts) verdicts[part.part] = part.verdict;
  EXPECT_EQ(verdicts[engines::Part::experts_gate_up], engines::Verdict::dropped);
  EXPECT_EQ(verdicts[engines::Part::experts_down], engines::Verdict::dropped);
  EXPECT_TRUE(report.engines.front().measured);
  EXPECT_NE(report.engines.front().mend.find("peft convert "), std::string::npos);
  options.engine.clear();
  const DoctorReport all = doctor((root / "consumers/mixtral/fused/adapter").string(), options);
  EXPECT_EQ(all.engines.size(), engines::engines().size());
}

}  // namespace
}  // namespace peft
