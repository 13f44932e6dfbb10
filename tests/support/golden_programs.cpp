#include <fmt/ranges.h>

#include <algorithm>
#include <regex>

#include "support/golden_checks.h"
#include "support/golden_truth.h"

namespace peft::testing {
namespace fs = std::filesystem;
namespace {

std::shared_ptr<const TensorFile> weights_of(const fs::path& folder, Layout layout) {
  return TensorFile::open((folder / info(layout).weights_file).string());
}

// Whether the experts of the family have modules of their own in some transformers version.
bool has_form(const Input& input, Layout layout) {
  return layout != Layout::peft_per_expert || !input.model.experts.front().form->per_expert.empty();
}

// Through every layout and back: the truth there, the same bytes here. `original`: the folder whose bytes they are.
void check_tours(const Input& input, const ConvertOptions& options, Layout own, const OracleFactors& want,
                 const fs::path& original) {
  for (const LayoutInfo& target : layouts()) {
    if (!has_form(input, target.layout)) continue;
    try {
      TemporaryFolder there, back;
      const Exactness forth = convert(input, options, target.layout, there.path().string()).exactness;
      const Input again = load_as(there.path().string(), options.input, target.layout);
      compare_factors(want, factors_of(again));
      const Plan plan = convert(again, options, own, back.path().string());
      if (is_trainer_layout(target.layout) && forth == Exactness::value_exact) {
        compare_deltas(want, factors_of(load_as(back.path().string(), options.input, own)), kExact);
        continue;
      }
      require(plan.exactness == Exactness::bit_exact, "the way back is not bit-exact");
      compare_bytes(*weights_of(original, own), *weights_of(back.path(), own));
      Json config = read_json(original / "adapter_config.json");
      // A GGUF file does not name the base model.
      if (target.layout == Layout::gguf && config.contains("base_model_name_or_path"))
        config["base_model_name_or_path"] = nullptr;
      require(config == read_json(back / "adapter_config.json"),
              "another config: " + read_json(back / "adapter_config.json").dump());
    } catch (const std::exception& failure) {
      throw Failure(fmt::format("through {}: {}", target.name, failure.what()));
    }
  }
}

// Only the layers that the case names; the truth has them all.
OracleFactors of_layers(const OracleFactors& truth, const Json& layers) {
  static const std::regex number(R"(layers\.(\d+)\.)");
  const auto numbers = layers.get<std::vector<int>>();
  OracleFactors kept;
  for (const auto& [site, factor] : truth) {
    std::smatch match;
    std::regex_search(site, match, number);
    if (std::ranges::find(numbers, std::stoi(match[1])) != numbers.end()) kept[site] = factor;
  }
  return kept;
}

// The PEFT case that a file of MLX-LM was made of: "case fused-router of mixtral".
fs::path peft_sibling(const Case& c, const fs::path& root) {
  static const std::regex text(R"(case (\S+) of (\w+),)");
  const std::string what = c.json.at("what").get<std::string>();
  std::smatch match;
  require(std::regex_search(what, match, text), "the case does not say of what it was made");
  return root / "consumers" / match[2].str() / match[1].str() / "adapter";
}

void check_sibling(const Case& c, const fs::path& root, const ConvertOptions& options) {
  const fs::path peft = peft_sibling(c, root);
  if (!fs::exists(peft)) return;
  TemporaryFolder folder;
  convert(load(peft.string(), options.input), options, Layout::mlx, folder.path().string());
  compare_bytes(*weights_of(c.folder / "adapter", Layout::mlx), *weights_of(folder.path(), Layout::mlx));
  require(read_json(c.folder / "adapter" / "adapter_config.json").at("lora_parameters") ==
              read_json(folder / "adapter_config.json").at("lora_parameters"),
          "PEFT to mlx: other parameters");
}

void require_all(const OracleFactors& want, const OracleFactors& got) {
  compare_factors(want, got);
  for (const auto& [site, factor] : want) require(got.contains(site), site + ": expected a factor, got none");
}

// tinker-cookbook's own PEFT folder in the oracle's terms.
OracleFactors read_cookbook(const fs::path& folder) {
  static const std::regex name(
      R"(base_model\.model\.(.*layers\.\d+\.)(mlp\.experts\.\d+\.(gate|up|down)_proj|.*)\.lora_A\.weight)");
  const auto file = weights_of(folder, Layout::peft_per_expert);
  const Json config = read_json(folder / "adapter_config.json");
  OracleFactors factors;
  for (const TensorInfo& tensor : file->tensors()) {
    std::string key(tensor.name);
    std::smatch match;
    if (!std::regex_match(key, match, name)) continue;
    std::string site = match[1].str() + match[2].str();
    if (match[3].matched) site.resize(site.size() - std::string("_proj").size());
    OracleFactor factor{
        matrix_of(*file, tensor), {}, config.at("lora_alpha").get<double>() / config.at("r").get<double>()};
    key[key.rfind("lora_A") + 5] = 'B';
    factor.b = matrix_of(*file, *file->find(key));
    factors[site] = std::move(factor);
  }
  return factors;
}

}  // namespace

void check_mlx(const Case& c, const fs::path& root) {
  ConvertOptions options;
  options.input = options_for(c, root);
  const fs::path adapter = c.folder / "adapter";
  const Input input = load(adapter.string(), options.input);
  require(input.reading.layout == Layout::mlx, "not recognised");
  const OracleFactors factors = factors_of(input);
  const OracleFactors truth =
      of_layers(restricted(read_truth(c, root, layers_prefix_of(factors)), factors), c.json.at("layers"));
  require_all(truth, factors);
  const bool old = c.folder.filename() == "old-2d";  // the same values in the older shape
  check_tours(input, options, Layout::mlx, truth,
              old ? c.folder.parent_path() / "experts-attn-tied" / "adapter" : adapter);
  if (!old && c.folder.filename() != "last-layer") check_sibling(c, root, options);
}

void check_tinker(const Case& c, const fs::path& root) {
  ConvertOptions options;
  options.input = options_for(c, root);
  const fs::path adapter = c.folder / "adapter";
  const Input input = load(adapter.string(), options.input);
  require(input.reading.layout == Layout::tinker, "not recognised");
  const OracleFactors want = read_cookbook(c.folder / "expected" / "peft");
  require_all(want, factors_of(input));
  check_tours(input, options, Layout::tinker, want, adapter);
}

}  // namespace peft::testing
