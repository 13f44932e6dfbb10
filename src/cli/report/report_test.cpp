#include "cli/report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "cli/report/data.h"
#include "cli/report/html.h"
#include "peft/error.h"

namespace peft::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

Site dense(std::string module, std::string parameter = {}) {
  return {std::move(module), std::move(parameter), -1, Projection::none};
}

TEST(ReportData, sites_say_layer_expert_and_part) {
  SitePlace place = place_of({"model.layers.3.mlp.experts", "", 17, Projection::gate});
  EXPECT_EQ(place.layer, 3);
  EXPECT_EQ(place.expert, 17);
  EXPECT_EQ(place.part, "gate");
  place = place_of(dense("model.language_model.layers.11.self_attn.q_proj"));
  EXPECT_EQ(place.layer, 11);
  EXPECT_EQ(place.expert, -1);
  EXPECT_EQ(place.part, "q_proj");
  place = place_of(dense("model.layers.2.mlp.gate", "weight"));
  EXPECT_EQ(place.layer, 2);
  EXPECT_EQ(place.part, "gate");
  place = place_of(dense("model.layers.2.mlp.experts", "gate_up_proj_bias"));
  EXPECT_EQ(place.part, "gate_up_proj_bias");
  place = place_of(dense("lm_head"));
  EXPECT_EQ(place.layer, -1);
  EXPECT_EQ(place.part, "lm_head");
}

Site expert_down(std::int64_t expert) { return {"model.layers.0.mlp.experts", "", expert, Projection::down}; }

// Two experts of one tensor and a dense module, the second expert changed by two adapters.
struct Example {
  MergePlan merge;
  ExecuteReport done;
  ReportFacts facts;

  Example() {
    const auto tensor = [](std::string name) {
      return PlannedTensor{std::move(name), Dtype::bf16, {4, 4}, 4, 4, {}, Merge{}, false};
    };
    merge.plan.files = {
        {"model.safetensors", {tensor("experts.<b>down</b>"), tensor("model.layers.0.self_attn.q_proj.weight")}, {}}};
    merge.parts = {{0, 0, 0, expert_down(0), MergeRule::expert, false, 0, 8, 2.0},
                   {0, 0, 1, expert_down(1), MergeRule::expert, false, 0, 8, 2.0},
                   {0, 0, 2, expert_down(1), MergeRule::expert, false, 1, 16, 0.5},
                   {0, 1, 0, dense("model.layers.0.self_attn.q_proj"), MergeRule::linear, false, 0, 8, 2.0}};
    done.merged = {{0, 0, 0, 10, 0.1}, {0, 0, 1, 20, 3}, {0, 0, 2, 20, 4}, {0, 1, 0, 100, 1}};
    merge.changed = 2;
    merge.layouts = {"peft-fused", "peft-per-expert"};
    merge.digests = {"aa", "bb"};
    merge.zero_deltas = {"model.layers.1.mlp.experts.0.down"};
    facts.out = "/somewhere/merged<script>alert(1)</script>";
    facts.options.base = "base & more";
    facts.options.adapters = {{"a\"b", 1}, {"c", 0.5}};
    facts.command = "peft merge";
    facts.finished = "2026-11-25 21:40:12 UTC";
  }
};

TEST(ReportData, sums_of_squares_and_one_base_for_each_matrix) {
  const Example example;
  const ReportData data = report_data(example.merge, example.done);
  ASSERT_EQ(data.tensors.size(), 2u);
  EXPECT_EQ(data.tensors[0].change.matrices, 2);
  EXPECT_DOUBLE_EQ(data.tensors[0].change.base, 500);
  EXPECT_DOUBLE_EQ(data.tensors[0].change.delta, 0.01 + 9 + 16);
  EXPECT_EQ(data.tensors[0].ranks, "8, 16");
  EXPECT_DOUBLE_EQ(data.experts.at({0, 1}).relative(), 0.25);
  EXPECT_DOUBLE_EQ(data.experts.at({0, 0}).relative(), 0.01);
  EXPECT_DOUBLE_EQ(data.dense.at(0).at("q_proj").relative(), 0.01);
  EXPECT_EQ(data.most_experts, 2);
}

TEST(Report, colours_go_from_the_smallest_to_the_largest_change) {
  const ColourScale scale(1e-4, 1e-1);
  EXPECT_EQ(scale.step(0), "n");
  EXPECT_EQ(scale.step(1e-4), "c0");
  EXPECT_EQ(scale.step(3.2e-3), "c4");
  EXPECT_EQ(scale.step(1e-1), "c8");
  EXPECT_EQ(ColourScale(0.5, 0.5).step(0.5), "c5");
}

TEST(Report, the_page_says_everything_escapes_names_and_loads_nothing) {
  const Example example;
  const std::string page = merge_report(example.merge, example.done, example.facts);
  EXPECT_THAT(page, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(page, HasSubstr("&lt;b&gt;down&lt;/b&gt;"));
  EXPECT_THAT(page, HasSubstr("base &amp; more"));
  EXPECT_THAT(page, HasSubstr("a&quot;b"));
  EXPECT_THAT(page, HasSubstr("<title>layer 0, expert 1: 25 %</title>"));
  EXPECT_THAT(page, HasSubstr("<td class=c0>1 %</td>"));
  EXPECT_THAT(page, HasSubstr("1 matrix did not change"));
  EXPECT_THAT(page, HasSubstr("2026-11-25 21:40:12 UTC"));
  for (const char* reference : {"http://", "https://", "src=", "href=", "@import", "url("})
    EXPECT_THAT(page, Not(HasSubstr(reference)));
  EXPECT_EQ(html_escape("<a href='x'>&\x1b"), "&lt;a href=&#39;x&#39;&gt;&amp;\\u{1b}");
}

TEST(HtmlTemplate, joins_lines_and_fills_slots_once) {
  const HtmlTemplate html(
      "dropped\n<!-- row -->\n<b>{{name}}</b>\n<i>{{name}}</i>{{nl}}\n<!-- style, as it is -->\na {\n}\n");
  EXPECT_EQ(html.fill("row", {{"name", "{{nl}}"}}), "<b>{{nl}}</b><i>{{nl}}</i>\n");
  EXPECT_EQ(html.text("style"), "a {\n}\n");
  EXPECT_THROW(html.fill("row", {}), Error);
  EXPECT_THROW(html.text("page"), Error);
}

}  // namespace
}  // namespace peft::cli
