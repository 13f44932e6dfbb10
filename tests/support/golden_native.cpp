#include <algorithm>
#include <set>

#include "support/golden_checks.h"
#include "support/judge.h"

namespace peft::testing {
namespace fs = std::filesystem;
namespace {

constexpr const char* kWeights = "adapter_model.safetensors";

std::shared_ptr<const TensorFile> open_weights(const fs::path& folder) {
  return TensorFile::open((folder / kWeights).string());
}

// Families whose experts transformers 4 keeps as one module per expert and projection.
bool has_per_expert_form(const std::string& model_type) {
  static const std::set<std::string> types = {"mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"};
  return types.contains(model_type);
}

class NativeCase {
 public:
  // `suffix`: "" for the adapter in the folder itself, "_other" for the one in the subfolder "other".
  NativeCase(const Case& c, const fs::path& root, std::string suffix)
      : case_(c),
        suffix_(std::move(suffix)),
        facts_(facts_of(root / "models" / c.json.at("model").get<std::string>())) {
    options_.input.base = (root / "models" / c.json.at("model").get<std::string>()).string();
    if (!suffix_.empty()) options_.input.adapter_name = suffix_.substr(1);
  }

  void run() {
    const Input input = load_case();
    const OracleFactors factors = factors_of(input);
    const std::string which =
        fs::exists(case_.folder / "expected" / "right_delta.safetensors") ? "right_delta" : "delta";
    const auto expected = TensorFile::open((case_.folder / "expected" / (which + ".safetensors")).string());
    const double tolerance = case_.json.at("base_dtype") == "float32" ? 2e-6 : 6e-3;
    compare_deltas(read_deltas(*expected, facts_, suffix_), factors, tolerance);

    const OracleAdapter oracle = read_oracle(folder(), facts_, {false, right_orientation()});
    require(oracle.problems.empty(), oracle.problems.empty() ? "" : oracle.problems.front());
    compare_factors(oracle.factors, factors);
    check_ranks_and_scales(oracle);
    check_warnings(input);
    for (const LayoutInfo& layout : layouts()) {
      if (!is_program_layout(layout.layout)) {
        check_tour(input, oracle, layout);
        continue;
      }
      const TemporaryFolder there;
      ConvertOptions options = options_;
      options.input.adapter_name.clear();  // what is written is one adapter
      check_program_tour(input, options, layout.layout, oracle.factors, there.path().string());
    }
  }

 private:
  fs::path folder() const {
    const fs::path adapter = case_.folder / "adapter";
    return suffix_.empty() ? adapter : adapter / suffix_.substr(1);
  }
  std::string adapter_folder() const { return (case_.folder / "adapter").string(); }

  // How dP lies in the parameter, "" where nothing is fused. For one expert, PEFT adds B A whatever the rule for
  // many says; where that is wrong (right_delta exists) the right reading is the other one.
  std::string right_orientation() const {
    const Json& seen = case_.json.at("expect").at("orientation");
    if (seen.empty()) return "";
    const auto name = seen.begin()->at("factors_as").get<std::string>();
    const bool is_turned = case_.json.value("peft_is_wrong", std::string()).starts_with("one expert");
    return (name == "out_in") != is_turned ? "out_in" : "in_out";
  }

  // All adapted parameters have two equal sides: then the file alone may leave the orientation open.
  bool may_be_ambiguous() const {
    const Json& seen = case_.json.at("expect").at("orientation");
    return !seen.empty() && std::all_of(seen.begin(), seen.end(), [](const Json& entry) {
      const Json& shape = entry.at("parameter");
      return shape.at(1) == shape.at(2);
    });
  }

  Input load_case() {
    try {
      return load(adapter_folder(), options_.input);
    } catch (const Error& error) {
      const bool is_open = error.code() == ErrorCode::LO_LAYOUT && may_be_ambiguous();
      if (!is_open) throw;
      require(std::string(error.what()).find("--orientation") != std::string::npos,
              fmt::format("expected an error that names --orientation, got: {}", error.what()));
    }
    options_.input.read.orientation = right_orientation() == "out_in" ? "out-in" : "in-out";
    return load(adapter_folder(), options_.input);
  }

  // What the run had, except where saving sorted the patterns and so changed what the file means.
  void check_ranks_and_scales(const OracleAdapter& oracle) const {
    const Json& expect = case_.json.at("expect");
    const Json config = read_json(folder() / "adapter_config.json");
    const ScaleRule rule(config);
    std::set<std::string> stated;
    for (const auto& [key, rank] : expect.at("r").items()) {
      if (key.ends_with("_other") != !suffix_.empty()) continue;
      const std::string full = key.substr(0, key.size() - suffix_.size());
      const std::string module = full.ends_with(".weight") ? full.substr(0, full.size() - 7) : full;
      const std::string name = oracle.modules.contains(full) ? full : module;
      require(oracle.modules.contains(name), name + ": expected LoRA here, got none");
      stated.insert(name);
      require(rule.rank(name) == rank.get<std::int64_t>(), name + ": another rank");
      const double scale = expect.at("scaling").at(key).get<double>();
      const bool is_changed_by_saving = case_.id.find("pattern_order") != std::string::npos;
      require(is_changed_by_saving || std::abs(rule.scale(name, rank.get<std::int64_t>()) - scale) < 1e-12,
              fmt::format("{}: expected scaling {}, got {}", name, scale, rule.scale(name, rank.get<std::int64_t>())));
    }
    require(stated == oracle.modules, "LoRA on other modules than the run had");
  }

  // Trained biases that PEFT did not save cannot be brought back; a reader says so.
  void check_warnings(const Input& input) const {
    if (!case_.json.value("peft_is_wrong", std::string()).starts_with("the file is incomplete")) return;
    const auto& warnings = input.reading.factors.warnings;
    require(std::ranges::any_of(warnings, [](const std::string& w) { return w.find("bias") != std::string::npos; }),
            "expected a warning about biases that are not in the file, got none");
  }

  // To `layout` and back to the layout of the original: the same deltas, then the same bytes.
  void check_tour(const Input& input, const OracleAdapter& oracle, const LayoutInfo& layout) {
    try {
      tour(input, oracle, layout);
    } catch (const Failure& failure) {
      throw Failure(fmt::format("through {}: {}", layout.name, failure.what()));
    } catch (const Error& error) {
      const bool has_form = layout.layout != Layout::peft_per_expert || has_per_expert_form(facts_.model_type);
      if (error.code() == ErrorCode::LO_NO_FORM && !has_form) return;
      throw Failure(fmt::format("through {}: {}", layout.name, error.what()));
    }
  }

  void tour(const Input& input, const OracleAdapter& oracle, const LayoutInfo& layout) {
    TemporaryFolder there, back;
    convert(input, options_, layout.layout, there.path().string());
    const bool is_fused = layout.layout != Layout::peft_per_expert && !oracle.orientations.empty();
    const std::string orientation = is_fused ? orientation_of(facts_, std::string(layout.name)) : "";
    const ModelFacts v5 = in_v5(facts_);
    const OracleAdapter got =
        read_oracle(there.path(), v5,
                    {layout.layout == Layout::unsloth_grouped,
                     layout.layout == Layout::peft_per_expert ? "" : orientation_of(facts_, std::string(layout.name))});
    require(got.problems.empty(), got.problems.empty() ? "" : got.problems.front());
    compare_factors(oracle.factors, got.factors);
    const bool either = is_turned_between_generations() && layout.layout == Layout::peft_fused_0_18;
    for (const std::string& seen : got.orientations) {
      require(seen == orientation || either, fmt::format("expected factors held {}, got {}", orientation, seen));
    }
    ConvertOptions again = options_;
    again.input.adapter_name.clear();
    again.input.read = {};
    const Input converted = load_as(there.path().string(), again.input, layout.layout);
    convert(converted, again, input.reading.layout, back.path().string());
    if (is_turned_between_generations()) {  // the layout's files on transformers 4 and 5 are different ones
      compare_factors(oracle.factors, read_oracle(back.path(), v5).factors);
      return;
    }
    compare_bytes(*open_weights(folder()), *open_weights(back.path()));
  }

  // Fused in transformers 4 under other names (granitemoe) or the other way round (qwen3_vl_moe): a file of v4 is not
  // written again, and PEFT 0.18, which ran on both, has two forms.
  bool is_turned_between_generations() const {
    return case_.id.find("-tf4-") != std::string::npos || facts_.model_type == "qwen3_vl_moe";
  }

  const Case& case_;
  const std::string suffix_;
  const ModelFacts facts_;
  ConvertOptions options_;
};

}  // namespace

void check_native(const Case& c, const fs::path& root) {
  NativeCase(c, root, "").run();
  if (fs::exists(c.folder / "adapter" / "other")) NativeCase(c, root, "_other").run();
}

}  // namespace peft::testing
