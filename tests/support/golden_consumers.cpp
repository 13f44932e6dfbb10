#include <regex>

#include "support/golden_checks.h"
#include "support/golden_truth.h"
#include "support/judge.h"

namespace peft::testing {
namespace fs = std::filesystem;
namespace {

std::shared_ptr<const TensorFile> open_weights(const fs::path& folder) {
  return TensorFile::open((folder / "adapter_model.safetensors").string());
}

bool is_unsloth(const Case& c) { return c.id.starts_with("consumers/unsloth/"); }
bool is_unmarked(const Case& c) { return c.id.ends_with("-unmarked"); }

// A site without its numbers: "model.layers.N.mlp.experts.N.gate".
std::string role_of(const std::string& site) {
  static const std::regex number(R"(\d+)");
  return std::regex_replace(site, number, "N");
}

}  // namespace

std::string family_of(const Case& c) { return c.folder.parent_path().filename().string(); }

OracleFactors read_truth(const Case& c, const fs::path& root, const std::string& layers_prefix) {
  static const std::regex name(R"(layers\.(\d+)\.(experts\.(\d+)\.(gate|up|down)|([a-z_]+))\.A)");
  const fs::path path =
      root / "consumers" / family_of(c) / ("truth-" + c.json.at("truth").get<std::string>() + ".safetensors");
  const auto file = TensorFile::open(path.string());
  OracleFactors truth;
  for (const TensorInfo& tensor : file->tensors()) {
    std::string key(tensor.name);
    std::smatch match;
    if (!std::regex_match(key, match, name)) continue;
    const bool is_expert = match[4].matched, is_router = match[5] == "router";
    const std::string role = is_expert ? match[4].str() : is_router ? "router" : "attn";
    const std::string layer = layers_prefix + match[1].str();
    const std::string router = family_of(c) == "gpt_oss" ? ".mlp.router" : ".mlp.gate";
    const std::string site = is_expert   ? fmt::format("{}.mlp.experts.{}.{}", layer, match[3].str(), role)
                             : is_router ? layer + router
                                         : layer + ".self_attn." + match[5].str();
    OracleFactor factor{matrix_of(*file, tensor), {}, 1};
    key.back() = 'B';
    factor.b = matrix_of(*file, *file->find(key));
    if (c.json.contains("scale")) {
      const auto rank = c.json.at("ranks").at(role).get<std::int64_t>();
      factor.a = rows_of(factor.a, 0, rank);
      factor.b = cols_of(factor.b, 0, rank);
      factor.scale = c.json.at("scale").at(role).get<double>();
    } else {
      factor.scale = c.json.at("dims").at("alpha").get<double>() / c.json.at("dims").at("r").get<double>();
    }
    truth[site] = std::move(factor);
  }
  return truth;
}

OracleFactors restricted(const OracleFactors& truth, const OracleFactors& got) {
  std::set<std::string> roles;
  for (const auto& [site, factor] : got) roles.insert(role_of(site));
  OracleFactors kept;
  for (const auto& [site, factor] : truth)
    if (roles.contains(role_of(site))) kept[site] = factor;
  return kept;
}

std::string layers_prefix_of(const OracleFactors& factors) {
  require(!factors.empty(), "expected LoRA factors, got none");
  const std::string& site = factors.begin()->first;
  return site.substr(0, site.find("layers.") + 7);
}

InputOptions options_for(const Case& c, const fs::path& root) {
  InputOptions options;
  options.base = (root / "models" / c.json.at("model").get<std::string>()).string();
  if (is_unmarked(c)) options.read.b_packing = BPacking::grouped_by_expert;
  return options;
}

namespace {

// A marked grouped file is known by its marker; an unmarked one cannot be told from rank-major, and is read so
// (as every PEFT does) or refused, until --b-packing decides.
void check_packing(const Case& c, const Input& input, const InputOptions& options, const OracleFactors& truth) {
  const bool grouped = c.id.find("grouped-by-expert") != std::string::npos;
  require((input.reading.layout == Layout::unsloth_grouped) == grouped, "the packing of lora_B was not recognised");
  if (!is_unmarked(c)) return;
  InputOptions bare = options;
  bare.read.b_packing.reset();
  try {
    const OracleFactors read = factors_of(load((c.folder / "adapter").string(), bare));
    bool same = true;
    for (const auto& [site, factor] : read) same = same && same_bits(factor.b, truth.at(site).b);
    require(!same, "an unmarked file was read as grouped: nothing in it says so");
  } catch (const Error& error) {
    require(error.code() == ErrorCode::LO_LAYOUT, fmt::format("expected LO_LAYOUT, got {}", error.what()));
  }
}

// Where the same truth was also saved by a real program in another form, converting must give that program's file.
void check_siblings(const Case& c, const fs::path& root, const Input& input, const ConvertOptions& options) {
  struct Sibling {
    const char *from, *to;
    Layout layout;
  };
  static const Sibling siblings[] = {
      {"fused", "fused-0.18.1", Layout::peft_fused_0_18},
      {"fused", "fused-0.19.0", Layout::peft_fused_0_19_0},
      {"fused-0.18.1", "fused", Layout::peft_fused},
      {"fused-0.19.0", "fused", Layout::peft_fused},
      {"perexpert", "fused-2r", Layout::peft_fused},
      {"perexpert-tied", "fused", Layout::peft_fused},
      {"perexpert-tied", "fused-0.18.1", Layout::peft_fused_0_18},
      {"fused", "perexpert-tied", Layout::peft_per_expert},
      {"fused-2r", "perexpert", Layout::peft_per_expert},
      {"rank-major", "grouped-by-expert", Layout::unsloth_grouped},
      {"grouped-by-expert", "rank-major", Layout::peft_fused},
      {"grouped-by-expert-unmarked", "rank-major", Layout::peft_fused},
  };
  const std::string own = c.folder.filename().string();
  for (const Sibling& sibling : siblings) {
    const fs::path other = c.folder.parent_path() / sibling.to;
    if (own != sibling.from || !fs::exists(other / "adapter")) continue;
    TemporaryFolder folder;
    convert(input, options, sibling.layout, folder.path().string());
    try {
      compare_bytes(*open_weights(other / "adapter"), *open_weights(folder.path()));
    } catch (const Failure& failure) {
      throw Failure(fmt::format("as {}: {}", sibling.to, failure.what()));
    }
  }
  if (own == "fused" && fs::exists(root / "consumers" / "unsloth" / family_of(c))) {
    TemporaryFolder folder;
    convert(input, options, Layout::unsloth_grouped, folder.path().string());
    const fs::path grouped = root / "consumers" / "unsloth" / family_of(c) / "grouped-by-expert" / "adapter";
    compare_bytes(*open_weights(grouped), *open_weights(folder.path()));
  }
}

// ---- LoRA files for llama.cpp: right.gguf was made from the truth and runs right; converter.gguf is what llama.cpp's
// own converter makes of the PEFT adapter.

// The case of the PEFT adapter that the files were made of.
Case peft_case(const Case& c, const fs::path& root) {
  const fs::path folder = root / "consumers" / c.json.at("peft_adapter").get<std::string>();
  return {"consumers/" + c.json.at("peft_adapter").get<std::string>(), folder, read_json(folder / "case.json")};
}

// Files with one alpha for all have the truth's own bytes; the others have some scales folded into B.
bool is_folded(const Case& c) { return c.id.ends_with("-rslora") || c.id.ends_with("-alphapat"); }

void check_right(const Case& c, const OracleFactors& truth, const OracleFactors& got) {
  for (const auto& [site, factor] : truth) require(got.contains(site), site + ": expected a factor, got none");
  if (is_folded(c))
    compare_deltas(truth, got, rounding(Dtype::f32));
  else
    compare_factors(truth, got);
}

void check_gguf(const Case& c, const fs::path& root) {
  const Case peft = peft_case(c, root);
  ConvertOptions options;
  options.input = options_for(peft, root);
  const std::string right = (c.folder / "right.gguf").string(), converted = (c.folder / "converter.gguf").string();
  const Input input = load(right, options.input);
  require(input.reading.layout == Layout::gguf, "right.gguf was not recognised");
  const OracleFactors read = factors_of(input);
  const OracleFactors truth = restricted(read_truth(peft, root, layers_prefix_of(read)), read);
  check_right(c, truth, read);
  // The converter takes one alpha for all: files whose scales differ are wrong, and not ours to be right about.
  if (fs::exists(converted) && !is_folded(c)) check_right(c, truth, factors_of(load(converted, options.input)));

  const Input ours = load((peft.folder / "adapter").string(), options.input);
  for (const std::string& base : {std::string(), (c.folder.parent_path() / "base.gguf").string()}) {
    if (!base.empty() && !fs::exists(base)) continue;  // the committed selection has some of them
    TemporaryFolder folder;
    options.gguf_base = base;
    convert(ours, options, Layout::gguf, folder.path().string());
    check_right(c, truth, factors_of(load(folder / "adapter.gguf", options.input)));
    if (!is_folded(c))
      require(read_file(folder / "adapter.gguf") == read_file(right), "PEFT to gguf: other bytes than right.gguf");
  }
  options.gguf_base.clear();
  for (const LayoutInfo& target : layouts()) {
    TemporaryFolder there, back;
    const bool has_form =
        target.layout != Layout::peft_per_expert || family_of(c) == "mixtral" || family_of(c) == "qwen3_moe";
    if (target.layout == Layout::gguf || !has_form) continue;
    const Plan plan = convert(input, options, target.layout, there.path().string());
    const Input again = load_as(there.path().string(), options.input, target.layout);
    if (plan.exactness == Exactness::rounded) {  // one scale a file: the others are folded into B
      compare_deltas(truth, factors_of(again), rounding(Dtype::f32));
      continue;
    }
    check_right(c, truth, factors_of(again));
    convert(again, options, Layout::gguf, back.path().string());
    if (is_trainer_layout(target.layout) && plan.exactness == Exactness::value_exact) {
      compare_deltas(truth, factors_of(load(back / "adapter.gguf", options.input)),
                     is_folded(c) ? rounding(Dtype::f32) : kExact);
      continue;
    }
    require(read_file(back / "adapter.gguf") == read_file(right),
            fmt::format("gguf to {} and back: other bytes", target.name));
  }
}

}  // namespace

void check_consumer(const Case& c, const fs::path& root) {
  if (c.id.starts_with("consumers/llama_cpp/")) return check_gguf(c, root);
  if (c.id.starts_with("consumers/mlx_lm/")) return check_mlx(c, root);
  if (c.id.starts_with("consumers/tinker/")) return check_tinker(c, root);
  ConvertOptions options;
  options.input = options_for(c, root);
  const Input input = load((c.folder / "adapter").string(), options.input);
  const OracleFactors factors = factors_of(input);
  const OracleFactors truth = restricted(read_truth(c, root, layers_prefix_of(factors)), factors);
  compare_factors(truth, factors);
  for (const auto& [site, factor] : truth) require(factors.contains(site), site + ": expected a factor, got none");
  if (is_unsloth(c)) check_packing(c, input, options.input, truth);
  check_siblings(c, root, input, options);
}

}  // namespace peft::testing
