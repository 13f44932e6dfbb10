// Corners of the real PEFT: what must be refused, and what of the others can be asked without a model that runs. Their
// logits are compared in tests/nn.
#include <algorithm>
#include <vector>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "peft/weights.h"
#include "support/golden_checks.h"
#include "support/judge.h"

namespace peft::testing {
namespace fs = std::filesystem;
namespace {

std::string base_of(const Case& c, const fs::path& root) {
  const fs::path own = c.folder / "base";
  return (fs::exists(own) ? own : root / "models" / c.json.at("model").get<std::string>()).string();
}

MergeOptions merge_options(const Case& c, const fs::path& root) {
  MergeOptions options;
  options.base = base_of(c, root);
  options.adapters = {{(c.folder / "adapter").string(), 1}};
  return options;
}

// What a verb would write.
Plan plan_of(const std::string& verb, const Case& c, const fs::path& root) {
  const MergeOptions merge = merge_options(c, root);
  if (verb == "merge") return plan_merge(merge).plan;
  InputOptions input;
  input.base = merge.base;
  if (verb == "combine") {
    const std::vector<WeightedAdapter> twice = {{merge.adapters[0].path, 0.5}, {merge.adapters[0].path, 0.25}};
    CombineOptions options;
    options.input = input;
    return plan_combine(twice, options).plan;
  }
  if (verb == "resize") {
    ResizeOptions options;
    options.input = input, options.rank = 1;
    return plan_resize(merge.adapters[0].path, options).plan;
  }
  throw Failure("this test does not know the verb " + verb);
}

void check_refused(const Case& c, const fs::path& root) {
  const Json& verbs = c.json.at("expect").at("verbs");
  require(!verbs.empty(), "no verbs");
  for (const Json& verb : verbs) {
    const TemporaryFolder folder;
    const Error error = expect_error(verb.get<std::string>(), [&] {
      execute(plan_of(verb.get<std::string>(), c, root), folder / "out", {.threads = 1, .sync = false});
    });
    require(error.code() == ErrorCode::CF_UNSUP, verb.get<std::string>() + ": the reason is another: " + error.what());
    require(fs::is_empty(folder.path()), verb.get<std::string>() + " has written something");
  }
}

// The base merged with the adapter holds the adapter.
void check_merged(const Case& c, const fs::path& root) {
  const MergeOptions options = merge_options(c, root);
  const TemporaryFolder folder;
  const std::string out = folder / "merged";
  execute(plan_merge(options).plan, out, {.threads = 2, .sync = false});
  const VerifyMergedReport report = verify_merged({.merged = out, .merge = options});
  require(report.same && report.changed > 0, report.differences.empty()
                                                 ? "nothing was merged"
                                                 : report.differences[0].tensor + ": " + report.differences[0].what);
}

// Every tensor of the base's file is one of the model's, with the values of the file.
void check_base(const Case& c, const fs::path& root) {
  const std::string base = base_of(c, root);
  const Checkpoint checkpoint = Checkpoint::open(base);
  const Model model = describe({.base = base});
  std::vector<WantedParameter> wanted;
  for (const auto& entry : checkpoint.tensors()) {
    const TensorInfo& tensor = *entry.tensor;
    wanted.push_back({std::string(tensor.name), {tensor.shape.begin(), tensor.shape.end()}, tensor.dtype});
  }
  const Loading loading = Weights(model, checkpoint).load(wanted);
  require(loading.missing.empty() && loading.unexpected.empty(), "the model has other tensors than the file");
  Plan plan;
  plan.sources = checkpoint.files();
  plan.files.push_back({"model.safetensors", loading.tensors});
  const auto image = execute_in_memory(plan).front();
  const auto loaded = TensorFile::parse(image, "loaded");
  for (const auto& entry : checkpoint.tensors()) {
    const TensorInfo* tensor = loaded->find(entry.tensor->name);
    require(tensor != nullptr &&
                std::ranges::equal(loaded->bytes(*tensor), checkpoint.files()[entry.file]->bytes(*entry.tensor)),
            std::string(entry.tensor->name) + " has other values in the model");
  }
}

}  // namespace

void check_parity(const Case& c, const fs::path& root) {
  const auto result = c.json.at("expect").at("result").get<std::string>();
  if (result == "refused") return check_refused(c, root);
  require(result == "logits", "an unknown result: " + result);
  if (fs::exists(c.folder / "adapter"))
    check_merged(c, root);
  else
    check_base(c, root);
}

}  // namespace peft::testing
