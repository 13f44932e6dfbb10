// Every verdict that a real program gave on the golden adapters, against the profiles of data/engines.json.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "engines/judge.h"
#include "engines/read_facts.h"
#include "peft/error.h"
#include "peft/verbs.h"
#include "support/golden_root.h"

namespace peft {
namespace {

namespace fs = std::filesystem;
using engines::Answer;
using engines::Outcome;

// Adapters whose verdict no rule of an engine explains, or that cannot be judged, each with its reason.
struct Exception {
  const char *engine, *adapter, *why;
};
constexpr Exception kExceptions[] = {
    {"", "convert/mixtral-extra-expert", "not the adapter's model: our reader refuses it, as every PEFT does"},
    {"", "convert/mixtral-one-tensor-missing", "half a pair: our reader refuses the file"},
    {"peft", "native/qwen2-bias_lora_only-p0191",
     "PEFT never wrote the trained biases: the file does not show what is missing"},
};

std::string excepted(const std::string& engine, const std::string& adapter) {
  for (const Exception& row : kExceptions) {
    if (adapter.starts_with(row.adapter) && engine.starts_with(row.engine)) return row.why;
  }
  return {};
}

struct Row {
  std::string engine, mode, adapter, base, answer, recorded;
};

std::vector<Row> recorded() {
  std::ifstream file(fs::path(PEFT_SOURCE_DIR) / "tests/engines/recorded.json");
  const auto json = nlohmann::json::parse(file);
  std::vector<Row> rows;
  for (const auto& row : json.at("rows"))
    rows.push_back({row.at(0), row.at(1), row.at(2), row.at(3), row.at(4), row.at(5)});
  return rows;
}

engines::AdapterFacts facts_of(const Row& row, const fs::path& root) {
  InputOptions options;
  options.base = (root / row.base).string();
  options.read.verb = Verb::inspect;
  options.read.ignore_unused = true;
  if (row.adapter.find("-unmarked") != std::string::npos) options.read.b_packing = BPacking::grouped_by_expert;
  const Input input = load((root / row.adapter).string(), options);
  return engines::facts_of(input.adapter, input.model, input.reading);
}

Answer answer_of(const Row& row, const engines::AdapterFacts& facts) {
  const engines::Chosen chosen = engines::choose(row.engine);
  for (const engines::Profile* profile : chosen.profiles) {
    if (profile->mode == row.mode) return judge(*chosen.engine, *profile, facts);
  }
  return judge(*chosen.engine, *chosen.profiles.front(), facts);
}

std::string answer_name(Outcome outcome) {
  constexpr const char* kNames[] = {"right", "unknown", "wrong", "refused"};
  return kNames[static_cast<std::size_t>(outcome)];
}

// Whether this build can open the file at all. Forms of other programs are layouts of their own.
bool is_readable_form(const std::string& adapter) {
  if (adapter.ends_with(".gguf")) return parse_layout("gguf").has_value();
  if (adapter.starts_with("consumers/mlx_lm/")) return parse_layout("mlx").has_value();
  return true;
}

TEST(EngineVerdicts, agree_with_every_recorded_one) {
  const fs::path root = test::golden_root();
  std::map<std::string, engines::AdapterFacts> facts;
  std::map<std::string, int> walked, forms;
  int absent = 0;
  for (const Row& row : recorded()) {
    if (!fs::exists(root / row.adapter) || !fs::exists(root / row.base)) {
      ++absent;
      continue;
    }
    // A config.json alone does not say in which form transformers 4 held the experts.
    if (row.base.ends_with("-tf4") && !fs::exists(root / row.base / "model.safetensors")) continue;
    if (!is_readable_form(row.adapter)) {
      ++forms[row.engine];
      continue;
    }
    if (!excepted(row.engine, row.adapter).empty()) continue;
    SCOPED_TRACE(row.engine + " " + row.mode + " " + row.adapter + ", recorded in " + row.recorded);
    const std::string key = row.adapter + " on " + row.base;
    if (!facts.contains(key)) {
      try {
        facts[key] = facts_of(row, root);
      } catch (const Error& error) {
        ADD_FAILURE() << error.what();
        continue;
      }
    }
    const Answer answer = answer_of(row, facts.at(key));
    const engines::Judgement* decisive = answer.decisive();
    EXPECT_EQ(answer_name(answer.outcome), row.answer) << (decisive == nullptr ? "" : decisive->why);
    ++walked[row.engine];
  }
  for (const auto& [engine, count] : walked) std::printf("%s: %d verdicts\n", engine.c_str(), count);
  for (const auto& [engine, count] : forms)
    std::printf("%s: %d files of a form this build does not read\n", engine.c_str(), count);
  if (absent != 0) std::printf("%d verdicts are about adapters that are not in this selection\n", absent);
  EXPECT_GT(walked["peft@0.21.2"], 50);
  EXPECT_GT(walked["vllm@0.33"], 10);
}

// Files of the real PEFT with more than LoRA in them.
TEST(EngineVerdicts, tensors_that_are_more_than_lora_are_looked_at) {
  using enum engines::Part;
  const struct {
    std::string folder;
    std::set<engines::Part> parts;
    std::string vllm, llama_cpp;
  } cases[] = {
      {"heads/llama-seq-cls", {unnamed_head}, "refused", "refused"},
      {"heads/llama-seq-cls-new", {named_head}, "right", "refused"},
      {"heads/mixtral-seq-cls-v4", {named_head}, "right", "refused"},
      {"heads/distilbert-question-ans", {other_head}, "refused", "refused"},
      {"heads/distilbert-seq-cls", {unnamed_head, other_head}, "refused", "refused"},
      {"heads/llama-saved-embedding", {saved_embedding}, "refused", "refused"},
      {"heads/bert-all-biases", {unnamed_head, base_bias}, "refused", "refused"},
      {"heads/t5", {}, "right", "right"},
      {"convolutions/fp32-dora/adapter", {magnitude}, "refused", "refused"},
  };
  for (const auto& row : cases) {
    SCOPED_TRACE(row.folder);
    InputOptions options;
    if (row.folder.find("mixtral") != std::string::npos)
      options.family = "mixtral";  // names alone do not tell the type
    const Input input = load((fs::path(PEFT_SOURCE_DIR) / "tests" / row.folder).string(), options);
    const engines::AdapterFacts facts = engines::facts_of(input.adapter, input.model, input.reading);
    std::set<engines::Part> parts;
    for (const auto& [part, count] : facts.parts) {
      if (part >= magnitude) parts.insert(part);
    }
    EXPECT_EQ(parts, row.parts);
    const auto answer = [&](const std::string& engine) {
      const engines::Chosen chosen = engines::choose(engine);
      return answer_name(judge(*chosen.engine, *chosen.profiles.front(), facts).outcome);
    };
    EXPECT_EQ(answer("vllm"), row.vllm);
    EXPECT_EQ(answer("llama.cpp"), row.llama_cpp);
    EXPECT_EQ(answer("peft"), "right");
  }
}

// The rows of the tables in README.md and docs/engines.md are what the adapters that they name are.
TEST(EngineVerdicts, examples_have_the_facts_of_their_adapters) {
  for (const engines::Example& example : engines::examples()) {
    SCOPED_TRACE(example.title);
    const Row row{"", "", example.shown_by.substr(7) + "/adapter", "models/consumer-" + example.facts.model_type,
                  "", ""};
    if (!fs::exists(test::golden_root() / row.adapter)) continue;
    const engines::AdapterFacts facts = facts_of(row, test::golden_root());
    nlohmann::json names = nlohmann::json::array(), parts = nlohmann::json::array();
    for (const auto& info : engines::fact_info()) {
      if (facts.has(info.fact)) names.push_back(info.name);
    }
    for (const auto& [part, count] : facts.parts) parts.push_back(engines::info(part).name);
    std::set<engines::Part> have, listed;
    for (const auto& [part, count] : facts.parts) have.insert(part);
    for (const auto& [part, count] : example.facts.parts) listed.insert(part);
    EXPECT_TRUE(facts.facts == example.facts.facts && have == listed)
        << "EXAMPLE " << nlohmann::json{example.shown_by.substr(7), names, parts}.dump();
  }
}

}  // namespace
}  // namespace peft
