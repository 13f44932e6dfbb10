#include <algorithm>
#include <cmath>

#include "peft/model.h"
#include "support/golden_checks.h"
#include "support/judge.h"

namespace peft::testing {
namespace fs = std::filesystem;

fs::path tree_file_of(const fs::path& root, const std::string& model, const std::string& transformers) {
  for (const auto& entry : fs::directory_iterator(root / "config" / "models")) {
    if (!entry.path().filename().string().starts_with(model + ".v")) continue;
    const Json versions = read_json(entry.path()).at("transformers");
    if (std::find(versions.begin(), versions.end(), transformers) != versions.end()) return entry.path();
  }
  throw Failure(fmt::format("no tree of {} for transformers {}", model, transformers));
}

namespace {

fs::path v4_tree_file(const fs::path& root, const std::string& model) {
  try {
    return tree_file_of(root, model, "4.57.6");
  } catch (const Failure&) {  // a family that only transformers 5 has
    return tree_file_of(root, model, "5.24.0");
  }
}

// What one part of right.json asks of the fused parameter: rank of gate, up or down, for which scaling.
struct WantedParameter {
  std::int64_t rank = 0;         // sum over the parts, each as wide as its widest expert
  std::vector<double> scalings;  // of all parts; more than one value: folded into lora_B, free in the config
};

WantedParameter wanted(const Json& parts) {
  WantedParameter result;
  std::map<std::string, std::int64_t> widest;
  for (const Json& part : parts) {
    std::int64_t& rank = widest[part.at("part").get<std::string>()];
    rank = std::max(rank, part.at("r").get<std::int64_t>());
    result.scalings.push_back(part.at("scaling").get<double>());
  }
  for (const auto& [name, rank] : widest) result.rank += rank;
  return result;
}

bool close(double x, double y) { return std::fabs(x - y) <= 1e-12 * std::fabs(x); }

void check_target(const std::string& name, const Resolved& resolved, std::int64_t rank,
                  const std::vector<double>& scalings) {
  const auto found = resolved.find(name);
  require(found != resolved.end(), name + ": expected a target, got none");
  require(found->second.first == rank, fmt::format("{}: expected rank {}, got {}", name, rank, found->second.first));
  const bool is_one = std::ranges::all_of(scalings, [&](double s) { return close(s, scalings.front()); });
  require(!is_one || close(scalings.front(), found->second.second),
          fmt::format("{}: expected scaling {:.17g}, got {:.17g}", name, scalings.front(), found->second.second));
}

// right.json, for a config written for v4.
void check_right(const Json& right, const Resolved& resolved) {
  for (const auto& [name, module] : right.at("modules").items()) {
    check_target(name, resolved, module.at("r").get<std::int64_t>(), {module.at("scaling").get<double>()});
  }
  for (const auto& [name, parts] : right.at("parameters").items()) {
    const WantedParameter want = wanted(parts);
    check_target(name, resolved, want.rank, want.scalings);
  }
  for (const auto& [name, target] : resolved) {
    require(right.at("modules").contains(name) || right.at("parameters").contains(name),
            name + ": a target that was not expected");
  }
}

// targets_<version>.json, for a config that was v5 from the start.
void check_same_targets(const Json& expected, const Resolved& resolved) {
  Resolved want;
  for (const char* kind : {"modules", "parameters"})
    for (const auto& [name, target] : expected.at(kind).items())
      want[name] = {target.at("r").get<std::int64_t>(), target.at("scaling").get<double>()};
  compare_resolved(want, resolved);
}

// right.json says what has LoRA; that DoRA cannot be on a fused parameter is another matter.
bool has_dora_on_experts(const Case& c, const fs::path& right) {
  return c.json.at("config").value("use_dora", false) && fs::exists(right) &&
         !read_json(right).at("parameters").empty();
}

}  // namespace

void check_migrate(const Case& c, const fs::path& root) {
  const auto model_name = c.json.at("model").get<std::string>();
  const bool from_v4 = c.json.at("origin") == "v4";
  const fs::path v5_file = tree_file_of(root, model_name, "5.24.0");
  ConvertOptions options;
  options.to = Layout::peft_fused;
  options.input.base = (from_v4 ? v4_tree_file(root, model_name) : v5_file).string();
  const std::string config_file = (c.folder / "adapter" / "adapter_config.json").string();
  const fs::path right = c.folder / "expected" / "right.json";
  if (from_v4 && !fs::exists(right)) {  // the v4 model refuses the config: there is no function to keep
    expect_error("a config that PEFT refuses", [&] { convert_config(config_file, options); });
    return;
  }
  if (has_dora_on_experts(c, right)) {
    const Error error = expect_error("DoRA on experts", [&] { convert_config(config_file, options); });
    require(error.code() == ErrorCode::LO_NO_FORM, fmt::format("expected LO_NO_FORM, got: {}", error.what()));
    return;
  }
  const ConfigConversion conversion = convert_config(config_file, options);
  const AdapterConfig after = AdapterConfig::parse(conversion.after, "after");
  DescribeOptions describe_options;
  describe_options.base = v5_file.string();
  const Model model = describe(describe_options);
  require(model.v5.has_value(), "no v5 tree");
  const ResolvedTargets targets = resolve_targets(after, *model.v5, model, Generation::v5);
  Resolved resolved;
  for (const Target& target : targets.targets) resolved[target.name] = {target.rank, target.scaling};
  if (!fs::exists(right)) {
    check_same_targets(read_json(c.folder / "expected" / "targets_0.21.2.json"), resolved);
    return;
  }
  const Json want = read_json(right);
  check_right(want, resolved);
  auto saved = targets.modules_to_save;
  std::ranges::sort(saved);
  const auto want_saved = want.value("modules_to_save", std::vector<std::string>());
  require(saved == want_saved,
          fmt::format("expected modules_to_save [{}], got [{}]", fmt::join(want_saved, ", "), fmt::join(saved, ", ")));
}

void check_written(const Case& c, const fs::path&) {
  const std::string file = (c.folder / (c.id.substr(c.id.rfind('/') + 1))).string();
  if (c.id.ends_with("0.3.0/default.json")) {  // lora_alpha null: this version had no default
    const Error error = expect_error("no alpha", [&] { AdapterConfig::read(file); });
    require(error.code() == ErrorCode::CF_ALPHA, error.what());
    return;
  }
  const AdapterConfig config = AdapterConfig::read(file);
  require(config.unknown.empty(), fmt::format("unknown keys: {}", fmt::join(config.unknown, ", ")));
  require(config.dump() == read_file(file), "it is not written back as it was");
}

// From a config.json alone: every key of the language model, and the shape of every expert tensor. The vision tower and
// the widths of attention are in no family table (a checkpoint's headers have them); a shape that is given must be
// right.
void check_shapes(const Case& c, const fs::path&) {
  DescribeOptions options;
  options.base = (c.folder / "base").string();
  const Model model = describe(options);
  const fs::path file = c.folder / "expected" / "config_after.json";
  Json fields = read_json(file);  // the fields of interest; without peft_type it is no adapter's config
  fields["peft_type"] = "LORA";
  const auto config = AdapterConfig::parse(fields.dump(), file.string());
  require(model.v5.has_value(), "no v5 tree");
  std::map<std::string, std::vector<std::int64_t>> got;
  for (const Target& target : resolve_targets(config, *model.v5, model, Generation::v5).targets) {
    got["base_model.model." + target.key + ".lora_A.weight"] = target.a;
    got["base_model.model." + target.key + ".lora_B.weight"] = target.b;
  }
  const Json want = read_json(c.folder / "expected" / "shapes.json");
  std::size_t known = 0;
  for (const auto& [key, shape] : want.items()) {
    if (!got.contains(key) && key.find(".visual.") != std::string::npos) continue;
    ++known;
    const auto expected = shape.get<std::vector<std::int64_t>>();
    require(got.contains(key), key + ": expected a tensor, got none");
    const bool may_be_unknown = key.find(".experts.") == std::string::npos;
    require(got[key] == expected || (may_be_unknown && got[key].empty()),
            fmt::format("{}: expected [{}], got [{}]", key, fmt::join(expected, ", "), fmt::join(got[key], ", ")));
  }
  require(got.size() == known, fmt::format("expected {} tensors, got {}", known, got.size()));
}

}  // namespace peft::testing
