#include <algorithm>
#include <set>

#include "peft/execute.h"
#include "peft/verbs.h"
#include "peft/weights.h"
#include "support/golden_checks.h"
#include "support/judge.h"
#include "support/last_places.h"

namespace peft::testing {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kSerialRank = 192;  // up to here torch's product is one chain of fused multiply-adds

// Other forms of the same numbers: a checkpoint as on the hub, with facts that name the model it is in memory.
std::vector<fs::path> forms_of(const fs::path& root, const std::string& model) {
  std::vector<fs::path> forms = {root / "models" / model};
  for (const auto& entry : fs::directory_iterator(root / "models")) {
    const fs::path facts = entry.path() / "facts.json";
    if (fs::exists(facts) && read_json(facts).value("in_memory_form", std::string()) == model)
      forms.push_back(entry.path());
  }
  return forms;
}

class MergeCase {
 public:
  MergeCase(const Case& c, const fs::path& root)
      : case_(c), dtype_(*parse_dtype(c.json.at("base_dtype").get<std::string>())) {
    forms_ = forms_of(root, c.json.at("model").get<std::string>());
    memory_ = Checkpoint::open(forms_.front().string());
    expected_ = c.folder / "expected";
  }

  void run() {
    for (const fs::path& form : forms_) {
      for (const MergeMode mode : {MergeMode::best, MergeMode::peft, MergeMode::peft_safe}) {
        try {
          check(form, mode);
        } catch (const Failure& failure) {
          throw Failure(fmt::format("{} into {}: {}", name(mode), form.filename().string(), failure.what()));
        } catch (const Error& error) {
          throw Failure(fmt::format("{} into {}: {}", name(mode), form.filename().string(), error.what()));
        }
      }
    }
    std::string line;
    for (const auto& [what, count] : counts_) {
      if (count.different > 0)
        line += fmt::format("{}{}: {} of {}", line.empty() ? "" : ", ", what, count.different, count.elements);
    }
    if (!line.empty()) fmt::print("     {}: one last place off: {}\n", case_.id, line);
  }

 private:
  MergeOptions options_for(const fs::path& form, MergeMode mode) const {
    MergeOptions options;
    options.base = form.string();
    options.adapters.push_back({(case_.folder / "adapter").string(), 1});
    if (fs::exists(case_.folder / "adapter" / "other"))
      options.adapters.push_back({(case_.folder / "adapter" / "other").string(), 1});
    options.mode = mode;
    options.base_dtype = dtype_;
    return options;
  }

  // merged_safe.safetensors holds only what differs from merged.safetensors.
  std::vector<std::shared_ptr<const TensorFile>> answers(MergeMode mode) const {
    if (mode == MergeMode::best) return {TensorFile::open((expected_ / "best.safetensors").string())};
    std::vector<std::shared_ptr<const TensorFile>> files;
    const fs::path safe = expected_ / "merged_safe.safetensors";
    if (mode == MergeMode::peft_safe && fs::exists(safe)) files.push_back(TensorFile::open(safe.string()));
    files.push_back(TensorFile::open((expected_ / "merged.safetensors").string()));
    return files;
  }

  // How far a mode may be from the answer: nothing, or one last place where sums run in another order.
  std::int64_t allowed(const MergePlan& merge, MergeMode mode) const {
    if (mode == MergeMode::best) return dtype_ == Dtype::f32 ? 0 : 1;
    const bool other_order = std::ranges::any_of(merge.parts, [&](const MergedPart& part) {
      return part.rank > kSerialRank || (part.dora && dtype_ == Dtype::f32);
    });
    return other_order ? 1 : 0;
  }

  void check(const fs::path& form, MergeMode mode) {
    const MergePlan merge = plan_merge(options_for(form, mode));
    require(merge.zero_deltas.empty(), "a delta is zero");
    TemporaryFolder folder;
    const std::string out = folder / "merged";
    execute(merge.plan, out, {.threads = 2, .sync = false});
    check_in_memory(merge.plan, out);

    // The result as the model holds it in memory, whatever the base was spelled like.
    const Model model = describe({.base = out});
    const Checkpoint result = Checkpoint::open(out);
    std::vector<WantedParameter> wanted;
    for (const auto& entry : memory_.tensors()) {
      wanted.push_back(
          {std::string(entry.tensor->name), {entry.tensor->shape.begin(), entry.tensor->shape.end()}, dtype_});
    }
    const Loading loading = Weights(model, result).load(wanted);
    require(loading.missing.empty() && loading.unexpected.empty(), "the output has other tensors than the base");
    Plan filled;
    filled.sources = result.files();
    filled.files.push_back({"model.safetensors", loading.tensors});
    const auto image = execute_in_memory(filled).front();
    compare(*TensorFile::parse(image, "merged"), merge, mode, form == forms_.front());
  }

  void check_in_memory(const Plan& plan, const std::string& out) const {
    const auto images = execute_in_memory(plan);
    for (std::size_t i = 0; i < images.size(); ++i) {
      const std::string written = read_file(fs::path(out) / plan.files[i].name);
      const std::string_view simple(reinterpret_cast<const char*>(images[i].data()), images[i].size());
      require(written == simple, plan.files[i].name + ": execute() and execute_in_memory() differ");
    }
  }

  void compare(const TensorFile& result, const MergePlan& merge, MergeMode mode, bool counts) {
    const auto files = answers(mode);
    std::set<std::string> changed;
    for (const Json& name : case_.json.at("expect").at("changed")) changed.insert(name.get<std::string>());
    LastPlaces sum;
    for (const TensorInfo& tensor : result.tensors()) {
      const std::string name(tensor.name);
      if (!changed.erase(name)) {
        compare_unchanged(result, tensor);
        continue;
      }
      const auto file = std::ranges::find_if(files, [&](const auto& f) { return f->find(name) != nullptr; });
      require(file != files.end(), name + ": no answer");
      const TensorInfo& answer = *(*file)->find(name);
      require(answer.dtype == tensor.dtype && std::ranges::equal(answer.shape, tensor.shape),
              name + ": another dtype or shape");
      sum.add(compare_places(result.bytes(tensor), (*file)->bytes(answer), tensor.dtype));
    }
    require(changed.empty(), changed.empty() ? "" : *changed.begin() + " is not in the output");
    require(sum.largest <= allowed(merge, mode),
            fmt::format("{} of {} elements differ, by up to {} last places", sum.different, sum.elements, sum.largest));
    if (counts) counts_[std::string(peft::name(mode))] = sum;
  }

  // All other tensors are the base's, cast as loading it with that dtype does.
  void compare_unchanged(const TensorFile& result, const TensorInfo& tensor) const {
    const auto* entry = memory_.find(tensor.name);
    Plan plan;
    plan.sources = memory_.files();
    const auto number = static_cast<std::uint32_t>(entry->tensor - memory_.files()[entry->file]->tensors().data());
    plan.files.push_back({"one", {copy_of(*entry->tensor, number, std::string(tensor.name), dtype_)}});
    for (Block& block : plan.files[0].tensors[0].blocks) block.source.source = entry->file;
    const auto image = execute_in_memory(plan).front();
    const auto cast = TensorFile::parse(image, "cast");
    require(std::ranges::equal(cast->bytes(cast->tensors()[0]), result.bytes(tensor)),
            std::string(tensor.name) + " changed");
  }

  const Case& case_;
  const Dtype dtype_;
  std::vector<fs::path> forms_;
  Checkpoint memory_;
  fs::path expected_;
  std::map<std::string, LastPlaces> counts_;
};

// A merge with weights adds the weighted sum of the deltas, whatever PEFT's combined adapter does.
void check_weights(const Case& c, const fs::path& root) {
  const Json& combined = c.json.at("expect").at("combined");
  if (combined.at("type") == "svd") return;  // right_delta is cut to a rank there: peft combine's business
  MergeOptions options;
  options.base = (root / "models" / c.json.at("model").get<std::string>()).string();
  options.adapters = {{(c.folder / "adapter").string(), combined.at("weights").at(0).get<double>()},
                      {(c.folder / "adapter" / "other").string(), combined.at("weights").at(1).get<double>()}};
  const MergePlan merge = plan_merge(options);
  const auto image = execute_in_memory(merge.plan).front();
  const auto result = TensorFile::parse(image, "merged");
  const Checkpoint base = Checkpoint::open(options.base);
  const auto deltas = TensorFile::open((c.folder / "expected" / "right_delta.safetensors").string());
  for (const TensorInfo& tensor : deltas->tensors()) {
    const auto* before = base.find(tensor.name);
    require(before != nullptr && result->find(tensor.name) != nullptr,
            std::string(tensor.name) + " is not in the output");
    const auto w = elements(*base.files()[before->file], *before->tensor),
               m = elements(*result, *result->find(tensor.name)), d = elements(*deltas, tensor);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double allowed = 4e-7 * (std::abs(w[i]) + std::abs(d[i]));
      require(std::abs(m[i] - (w[i] + d[i])) <= allowed,
              fmt::format("{}: element {}: expected {}, got {}", tensor.name, i, w[i] + d[i], m[i]));
    }
  }
}

}  // namespace

void check_merge(const Case& c, const fs::path& root) {
  if (c.json.at("expect").contains("combined")) return check_weights(c, root);
  MergeCase(c, root).run();
}

void check_quant(const Case& c, const fs::path&) {
  const Model model;
  const Checkpoint checkpoint = Checkpoint::open(c.folder.string());
  const auto expected = TensorFile::open((c.folder / "expected" / "dequantized.safetensors").string());
  const Weights weights(model, checkpoint);
  Plan plan;
  plan.sources = checkpoint.files();
  plan.files.push_back({"model.safetensors", {}});
  for (const QuantizedTensor& tensor : weights.quantized()) {
    const TensorInfo* answer = expected->find(tensor.name);
    require(answer != nullptr && std::ranges::equal(answer->shape, tensor.shape),
            tensor.name + ": another name or shape");
    std::int64_t rows = 1;
    for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
    plan.files[0].tensors.push_back(
        {tensor.name, answer->dtype, tensor.shape, rows, tensor.shape.back(), tensor.blocks});
  }
  require(plan.files[0].tensors.size() == expected->tensors().size(), "not every quantised tensor was found");
  TemporaryFolder folder;
  execute(plan, folder / "out", {.threads = 2, .sync = false});
  compare_bytes(*expected, *TensorFile::open(folder / "out" + "/model.safetensors"));
  materialize(plan, folder / "simple");
  compare_bytes(*expected, *TensorFile::open(folder / "simple" + "/model.safetensors"));
}

}  // namespace peft::testing
