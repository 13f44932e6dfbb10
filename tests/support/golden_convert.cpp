#include <algorithm>
#include <vector>

#include "support/golden_checks.h"
#include "support/judge.h"

namespace peft::testing {
namespace fs = std::filesystem;
namespace {

constexpr const char* kWeights = "adapter_model.safetensors";
constexpr const char* kConfig = "adapter_config.json";

std::shared_ptr<const TensorFile> weights_in(const fs::path& folder) {
  return TensorFile::open((folder / kWeights).string());
}

// PEFT's answer of the newest version that got this case right.
struct PeftAnswer {
  fs::path weights, config;   // folders
  bool is_filled_up = false;  // with empty LoRA, where PEFT found no keys for what the config targets
};
std::optional<PeftAnswer> newest_right_answer(const Case& c) {
  std::string version;
  const Json& expect = c.json.at("expect");
  for (const auto& [name, answer] : expect.at("v5").items())
    if (answer.at("outcome") == "ok") version = name;  // listed from old to new
  if (version.empty()) return std::nullopt;
  const Json& converted = expect.at("files").at("converted");
  const Json same = converted.value("weights_as_in", Json::object());
  for (const auto& [folder, versions] : converted.items()) {
    if (folder == "weights_as_in" || std::find(versions.begin(), versions.end(), version) == versions.end()) continue;
    return PeftAnswer{c.folder / "expected" / same.value(folder, folder), c.folder / "expected" / folder,
                      expect.at("v5").at(version).value("missing", 0) > 0};
  }
  return std::nullopt;
}

bool begins(const Json& json, const char* key, const std::string& text) {
  return json.value(key, std::string()).starts_with(text);
}

// A file that must be refused as it is; the error names what is wrong. True when there is more to check.
bool check_refusals(const Case& c, InputOptions& options) {
  const std::string adapter = (c.folder / "adapter").string();
  if (begins(c.json, "judge", "refuse with the reason")) {  // DoRA on experts
    const Error error = expect_error("convert", [&] {
      ConvertOptions convert_options;
      convert_options.input = options;
      plan_convert(load(adapter, options), convert_options);
    });
    require(error.code() == ErrorCode::LO_NO_FORM, fmt::format("expected LO_NO_FORM, got {}", error.what()));
    return false;
  }
  if (!begins(c.json, "judge", "strict: refuse")) return true;
  const Error error = expect_error("load", [&] { load(adapter, options); });
  const std::string text = error.what();
  for (const Json& edit : c.json.at("made_by_editing")) {
    for (const char* kind : {"add", "copy"}) {
      if (!edit.contains(kind)) continue;
      std::string key = edit.at(kind).begin().key().substr(std::string("base_model.model.").size());
      key = key.substr(0, key.find(".lora_"));
      require(text.find(key) != std::string::npos, fmt::format("expected an error that names {}, got: {}", key, text));
    }
  }
  options.read.ignore_unused = true;
  return true;
}

class ConvertCase {
 public:
  ConvertCase(const Case& c, const fs::path& root, InputOptions options)
      : case_(c),
        v4_(facts_of(root / "models" / c.json.at("model").get<std::string>())),
        adapter_(c.folder / "adapter"),
        input_(load(adapter_.string(), options)) {
    options_.input = std::move(options);
    is_fused_ = case_.json.at("producer").at("transformers").get<std::string>().starts_with("5");
    const auto file = weights_in(adapter_);
    want_ = read_oracle(*file, read_json(adapter_ / kConfig), v4_, {false, orientation_of(v4_, "peft-fused")});
    if (options_.input.read.ignore_unused) want_.factors = factors_of_answer();
  }

  void run() {
    compare_deltas(want_.factors, factors_of(input_), kExact);
    fused_ = folder_ / "fused";
    const Plan plan = convert(input_, options_, Layout::peft_fused, fused_.string());
    folded_ = plan.exactness == Exactness::rounded;
    require(plan.exactness != Exactness::lossy, "a lossy conversion");
    check_exactness();
    check_fused(fused_, "peft-fused");
    check_against_peft();
    check_against_right();
    check_same_function(fused_);
    check_way_back(fused_, Layout::peft_fused);
    for (const LayoutInfo& row : layouts())
      if (is_program_layout(row.layout)) check_program(row.layout);
    for (const Layout layout : {Layout::peft_fused_0_18, Layout::peft_fused_0_19_0, Layout::unsloth_grouped}) {
      try {
        check_tour(layout);
      } catch (const Failure& failure) {
        throw Failure(fmt::format("through {}: {}", info(layout).name, failure.what()));
      }
    }
  }

 private:
  // The right answer, where the file itself holds more than the model takes.
  OracleFactors factors_of_answer() const {
    const fs::path right = case_.folder / "expected" / "right";
    const fs::path weights = fs::exists(right) ? right : newest_right_answer(case_)->weights;
    return read_fused(weights, "peft-fused").factors;
  }

  // One fused file has one scale: what the case says about it.
  bool may_fold() const { return case_.json.at("expect").value("right", Json::object()).value("folded_scale", false); }

  // The file keeps its dtype.
  double one_rounding() const { return rounding(weights_in(adapter_)->tensors().front().dtype); }
  double tolerance() const { return folded_ ? one_rounding() : kExact; }
  OracleAdapter read_fused(const fs::path& folder, const std::string& layout) const {
    const ModelFacts v5 = in_v5(v4_);
    return read_oracle(folder, v5, {layout == "unsloth-grouped", orientation_of(v5, layout)});
  }

  // Rounding is only excused where PEFT-independent facts demand it: one file, two scales.
  void check_exactness() const {
    require(!folded_ || may_fold(), "expected no rounding, got a plan that is `rounded`");
  }

  void check_fused(const fs::path& folder, const std::string& layout) const {
    const OracleAdapter got = read_fused(folder, layout);
    require(got.problems.empty(), got.problems.empty() ? "" : got.problems.front());
    compare_deltas(want_.factors, got.factors, tolerance());
    if (!folded_) compare_factors(want_.factors, got.factors, may_fold());
    const std::string orientation = orientation_of(in_v5(v4_), layout);
    for (const std::string& seen : got.orientations) {
      require(seen == orientation, fmt::format("expected factors held {}, got {}", orientation, seen));
    }
    const Json config = read_json(folder / kConfig);
    require(config.value("lora_dropout", 0.0) == 0 || !config.contains("target_parameters") ||
                config.at("target_parameters").empty(),
            "lora_dropout in a fused config");
    compare_targets(resolve(AdapterConfig::read(folder.string()), input_.model, Generation::v5), got, config);
  }

  void check_against_peft() const {
    const auto answer = newest_right_answer(case_);
    if (!answer) return;
    compare_tensors(*weights_in(answer->weights), *weights_in(fused_), answer->is_filled_up);
    if (answer->is_filled_up) return;
    compare_resolved(resolve(AdapterConfig::read(answer->config.string()), input_.model, Generation::v5),
                     resolve(AdapterConfig::read(fused_.string()), input_.model, Generation::v5));
  }

  void check_against_right() const {
    const fs::path right = case_.folder / "expected" / "right";
    if (!fs::exists(right)) return;
    const OracleAdapter want = read_fused(right, "peft-fused");
    compare_deltas(want.factors, read_fused(fused_, "peft-fused").factors, may_fold() ? 2 * one_rounding() : kExact);
    const auto want_file = weights_in(right), got_file = weights_in(fused_);
    for (const std::string& key : want.others) {  // biases, saved modules: as they were
      const TensorInfo* got = got_file->find(key);
      require(got != nullptr, key + ": expected this tensor, got none");
      require(elements(*want_file, *want_file->find(key)) == elements(*got_file, *got), key + ": other values");
    }
  }

  // verify() agrees; and sees where a wrong answer of PEFT is another function.
  void check_same_function(const fs::path& folder) const {
    VerifyOptions verify_options;
    verify_options.a = verify_options.b = options_.input;
    const VerifyReport report = verify(adapter_.string(), folder.string(), verify_options);
    require(report.same, "verify: expected the same function, got a difference at " + report.where);
    for (const auto& [version, answer] : case_.json.at("expect").at("v5").items()) {
      const fs::path wrong = case_.folder / "expected" / ("peft_" + version);
      if (answer.at("outcome") != "differs" || !fs::exists(wrong / kWeights)) continue;
      bool same = false;
      try {
        same = verify(adapter_.string(), wrong.string(), verify_options).same;
      } catch (const Error&) {
        continue;  // config and tensors do not fit: no function at all
      }
      require(!same, fmt::format("verify: expected PEFT {}'s wrong answer to differ, got the same function", version));
    }
  }

  // Another program's files, and from there to peft-fused: the bytes of the direct way.
  void check_program(Layout layout) {
    const TemporaryFolder there;
    const auto exactness = check_program_tour(input_, options_, layout, want_.factors, there.path().string());
    if (!exactness || !gives_bytes_back(layout, *exactness)) return;
    const fs::path fused = folder_ / (std::string(info(layout).name) + "-to-fused");
    convert(load_as(there.path().string(), options_.input, layout), options_, Layout::peft_fused, fused.string());
    compare_bytes(*weights_in(fused_), *weights_in(fused));
  }

  void check_tour(Layout layout) {
    const std::string name(info(layout).name);
    const fs::path there = folder_ / name;
    convert(input_, options_, layout, there.string());
    check_fused(there, name);
    check_way_back(there, layout);
    // ... and from there to peft-fused: the bytes of the direct way.
    const Input again = load_as(there.string(), options_.input, layout);
    const fs::path fused = folder_ / (name + "-to-fused");
    convert(again, options_, Layout::peft_fused, fused.string());
    compare_bytes(*weights_in(fused_), *weights_in(fused));
  }

  // Per-expert again, with the tensors of the original; and for a v5 original, its own layout again.
  void check_way_back(const fs::path& there, Layout layout) {
    const Input again = load_as(there.string(), options_.input, layout);
    const fs::path back = there.string() + "-back";
    convert(again, options_, Layout::peft_per_expert, back.string());
    const OracleAdapter got = read_oracle(back, v4_);
    require(got.problems.empty(), got.problems.empty() ? "" : got.problems.front());
    compare_deltas(want_.factors, got.factors, tolerance());
    const AdapterConfig config = AdapterConfig::read(back.string());
    const Resolved resolved = resolve(config, input_.model, Generation::v4);
    compare_targets(resolved, got, read_json(back / kConfig));
    if (is_fused_) {
      const Input per_expert = load(back.string(), options_.input);
      const fs::path fused = there.string() + "-again";
      convert(per_expert, options_, Layout::peft_fused, fused.string());
      compare_bytes(*weights_in(adapter_), *weights_in(fused));
    } else {
      check_original_restored(back, resolved);
    }
  }

  void check_original_restored(const fs::path& back, const Resolved& resolved) const {
    const Resolved original = resolve(AdapterConfig::read(adapter_.string()), input_.model, Generation::v4);
    for (const auto& [name, target] : resolved) {
      const auto found = original.find(name);
      require(found != original.end(), name + ": on the way back, a target that the original does not have");
      if (may_fold()) continue;
      require(target.first == found->second.first &&
                  std::abs(target.second - found->second.second) <= 1e-12 * std::abs(target.second),
              fmt::format("{}: on the way back, expected rank {} scaling {:.9g}, got rank {} scaling {:.9g}", name,
                          found->second.first, found->second.second, target.first, target.second));
    }
    if (may_fold() || options_.input.read.ignore_unused) return;
    compare_bytes(*weights_in(adapter_), *weights_in(back));
  }

  const Case& case_;
  const ModelFacts v4_;
  const fs::path adapter_;
  ConvertOptions options_;
  const Input input_;
  OracleAdapter want_;
  TemporaryFolder folder_;
  fs::path fused_;
  bool is_fused_ = false, folded_ = false;
};

}  // namespace

void check_convert(const Case& c, const fs::path& root) {
  InputOptions options;
  options.base = (root / "models" / c.json.at("model").get<std::string>()).string();
  if (check_refusals(c, options)) ConvertCase(c, root, options).run();
}

}  // namespace peft::testing
