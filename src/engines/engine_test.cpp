#include "engines/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "engines/fit.h"
#include "peft/error.h"
#include "test_paths.h"

namespace peft::engines {
namespace {

namespace fs = std::filesystem;

// A golden case of the selection in tests/golden, or of the whole data beside the checkout.
bool is_there(const std::string& shown_by) {
  const fs::path source = PEFT_SOURCE_DIR;
  const fs::path whole = source / ".." / "shared" / shown_by;
  return fs::exists(source / "tests" / shown_by) || fs::exists(whole) ||
         !fs::exists(source / ".." / "shared" / "golden");
}

TEST(Engines, every_rule_has_a_reason_and_a_source) {
  for (const Engine& engine : engines()) {
    for (const Rule& rule : engine.rules) {
      SCOPED_TRACE(engine.name + ": " + rule.why + rule.shown_by);
      EXPECT_EQ(rule.why.empty(), rule.verdict == Verdict::binds);
      EXPECT_EQ(rule.condition.all & rule.condition.none, 0u) << "no adapter has and lacks the same";
      EXPECT_FALSE(rule.shown_by.empty());
      EXPECT_EQ(rule.measured, rule.shown_by.starts_with("golden/"));
      EXPECT_TRUE(!rule.measured || is_there(rule.shown_by));
      EXPECT_TRUE(rule.way_out == "convert" || rule.way_out == "merge") << rule.way_out;
    }
  }
}

TEST(Engines, profiles_are_ordered_and_named_apart) {
  std::set<std::string> names, titles;
  for (const Engine& engine : engines()) {
    EXPECT_TRUE(names.insert(engine.name).second) << engine.name;
    ASSERT_FALSE(engine.profiles.empty());
    for (std::size_t i = 0; i < engine.profiles.size(); ++i) {
      EXPECT_TRUE(titles.insert(engine.profiles[i].title).second) << engine.profiles[i].title;
      EXPECT_FALSE(i > 0 && version_less(engine.profiles[i].version, engine.profiles[i - 1].version));
    }
    EXPECT_TRUE(engine.like.empty() || !choose(engine.like).profiles.empty());
    EXPECT_TRUE(std::ranges::is_sorted(engine.ranks));
    EXPECT_EQ(engine.ranks.empty(), engine.ranks_shown_by.empty());
  }
}

// Layouts of other programs that a form may name before they can be written.
TEST(Engines, forms_name_layouts) {
  const std::set<std::string> of_others = {"gguf", "mlx", "tinker"};
  for (const Engine& engine : engines()) {
    for (const Form& form : engine.forms) {
      EXPECT_TRUE(parse_layout(form.layout) || of_others.contains(form.layout)) << engine.name << " " << form.layout;
      EXPECT_FALSE(form.run.empty()) << engine.name;
      const bool has =
          std::ranges::any_of(engine.profiles, [&](const Profile& p) { return (p.facts & form.facts) == form.facts; });
      EXPECT_TRUE(has) << engine.name << ": no way of running has the facts that the form needs";
    }
  }
}

TEST(Engines, every_fact_and_part_has_a_name_of_its_own_and_a_meaning) {
  std::set<std::string_view> names;
  for (const FactInfo& row : fact_info()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_FALSE(row.meaning.empty());
    EXPECT_EQ(parse_fact(row.name), row.fact);
  }
  EXPECT_EQ(fact_info().size(), static_cast<std::size_t>(Fact::mixed_format) + 1) << "a fact without a row";
  for (const PartInfo& row : part_info()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_EQ(parse_part(row.name), row.part);
    EXPECT_EQ(&info(row.part), &row);
  }
}

TEST(Engines, a_version_means_the_newest_that_is_not_newer) {
  EXPECT_EQ(choose("peft").profiles.front()->version, "0.21.2");
  EXPECT_EQ(choose("peft@0.21").profiles.front()->version, "0.21.2");
  EXPECT_EQ(choose("peft@0.20.3").profiles.front()->version, "0.20.0");
  EXPECT_EQ(choose("peft@0.19").profiles.front()->version, "0.19.1");
  EXPECT_EQ(choose("vllm@0.33").profiles.size(), 2u) << "two ways of running";
  EXPECT_EQ(choose("vllm@9").profiles.front()->version, "0.33");
  for (const std::string wrong : {"gcc", "vllm@0.1", "vllm@", "vllm@new", ""}) {
    try {
      choose(wrong);
      ADD_FAILURE() << wrong;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::USAGE) << wrong;
    }
  }
  EXPECT_TRUE(version_less("0.9", "0.19.1"));
  EXPECT_FALSE(version_less("0.19", "0.19.0"));
}

AdapterFacts attention_of_rank(std::int64_t rank) {
  AdapterFacts facts;
  facts.parts[Part::attention] = {1, rank, "model.layers.0.self_attn.q_proj"};
  facts.rank = rank;
  return facts;
}

TEST(Engines, a_rank_above_every_limit_is_refused_and_one_below_gets_the_next_limit) {
  const Chosen vllm = choose("vllm");
  EXPECT_EQ(rank_limit(*vllm.engine, 17), 32);
  EXPECT_EQ(rank_limit(*vllm.engine, 512), 512);
  EXPECT_EQ(rank_limit(*vllm.engine, 513), 0);
  const Answer fits = judge(*vllm.engine, *vllm.profiles.front(), attention_of_rank(200));
  EXPECT_EQ(fits.outcome, Outcome::right);
  const Answer large = judge(*vllm.engine, *vllm.profiles.front(), attention_of_rank(1000));
  ASSERT_NE(large.decisive(), nullptr);
  EXPECT_EQ(large.decisive()->verdict, Verdict::rank_too_large);
}

TEST(Engines, refusing_is_worse_than_being_wrong) {
  const Chosen llama = choose("llama.cpp");
  AdapterFacts facts = attention_of_rank(3);
  facts.set(Fact::rslora);
  EXPECT_EQ(judge(*llama.engine, *llama.profiles.front(), facts).outcome, Outcome::wrong);
  facts.parts[Part::magnitude] = {1, 0, "model.layers.0.self_attn.q_proj"};
  const Answer both = judge(*llama.engine, *llama.profiles.front(), facts);
  EXPECT_EQ(both.outcome, Outcome::refuses);
  EXPECT_EQ(both.decisive()->part, Part::magnitude);
}

}  // namespace
}  // namespace peft::engines
