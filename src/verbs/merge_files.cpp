#include "verbs/merge_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>

#include "base/text.h"
#include "peft/error.h"
#include "safetensors/reading/input_file.h"
#include "verbs/merge_adapters.h"
#include "verbs/merge_config.h"

namespace peft::merging {
namespace {

namespace fs = std::filesystem;

std::uint64_t bytes_of(const PlannedTensor& tensor) {
  const auto elements = static_cast<std::uint64_t>(tensor.rows) * static_cast<std::uint64_t>(tensor.cols);
  return elements * static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8;
}

struct Shard {
  std::string name;
  std::uint32_t like = 0;  // the base's file whose metadata it takes
  std::vector<std::size_t> tensors;
};

// The base's own files, each with what came from it.
std::vector<Shard> own_shards(const Base& base, const std::vector<OutTensor>& tensors) {
  std::vector<Shard> shards;
  const auto& files = base.checkpoint.files();
  for (std::uint32_t i = 0; i < files.size(); ++i) {
    shards.push_back({fs::path(files[i]->path()).filename().string(), i, {}});
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) shards[tensors[i].file].tensors.push_back(i);
  std::erase_if(shards, [](const Shard& shard) { return shard.tensors.empty(); });
  return shards;
}

// As huggingface_hub splits: in order, a new shard when the next tensor does not fit, large ones on their own.
std::vector<Shard> new_shards(const std::vector<OutTensor>& tensors, std::uint64_t limit) {
  std::vector<std::size_t> order(tensors.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (tensors[a].file != tensors[b].file) return tensors[a].file < tensors[b].file;
    return natural_less(tensors[a].planned.name, tensors[b].planned.name);
  });
  std::vector<Shard> shards;
  Shard current;
  std::uint64_t filled = 0;
  for (const std::size_t i : order) {
    const std::uint64_t bytes = bytes_of(tensors[i].planned);
    if (bytes > limit) {
      shards.push_back({"", 0, {i}});
      continue;
    }
    if (filled + bytes > limit) {
      shards.push_back(std::move(current));
      current = {};
      filled = 0;
    }
    current.tensors.push_back(i);
    filled += bytes;
  }
  if (!current.tensors.empty()) shards.push_back(std::move(current));
  std::erase_if(shards, [](const Shard& shard) { return shard.tensors.empty(); });
  for (std::size_t i = 0; i < shards.size(); ++i) {
    shards[i].name = shards.size() == 1 ? "model.safetensors"
                                        : fmt::format("model-{:05d}-of-{:05d}.safetensors", i + 1, shards.size());
  }
  return shards;
}

bool is_weights(const fs::path& path) {
  static constexpr std::array<std::string_view, 12> kEndings = {".safetensors", ".bin",       ".pt",  ".pth",
                                                                ".ckpt",        ".gguf",      ".h5",  ".msgpack",
                                                                ".onnx",        ".onnx_data", ".npz", ".index.json"};
  const std::string name = path.filename().string();
  return std::any_of(kEndings.begin(), kEndings.end(), [&](std::string_view ending) { return name.ends_with(ending); });
}

// All files beside the weights: tokenizer, generation config, chat templates, code. A folder that holds weights is
// another form of the model ("original", "onnx") and stays behind.
class Copies {
 public:
  explicit Copies(const MergeOptions& options) : root_(options.base), follow_(options.input.open.follow_symlinks) {}

  void add(const std::string& prefix, int depth, std::vector<std::pair<std::string, std::string>>& copies) const {
    constexpr int kDepth = 4;
    std::error_code error;
    std::vector<fs::directory_entry> entries(fs::directory_iterator(fs::path(root_) / prefix, error),
                                             fs::directory_iterator{});
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.path() < b.path(); });
    const auto is_weight_file = [](const fs::directory_entry& entry) { return is_weights(entry.path()); };
    if (!prefix.empty() && std::any_of(entries.begin(), entries.end(), is_weight_file)) return;
    for (const fs::directory_entry& entry : entries) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(".") || name == "__pycache__") continue;
      if (entry.is_directory(error)) {
        if (depth < kDepth) add(prefix + name + "/", depth + 1, copies);
      } else if (!is_weights(entry.path()) && !(prefix.empty() && name == "config.json")) {
        copies.emplace_back(prefix + name, path_of(prefix + name));
      }
    }
  }
  std::string path_of(const std::string& name) const { return safetensors::path_inside(root_, name, follow_); }

 private:
  const std::string& root_;
  bool follow_;
};

void add_texts(const Base& base, const FileFacts& facts, const std::vector<Shard>& shards, MergePlan& result) {
  Plan& plan = result.plan;
  const fs::path folder = base.options.base;
  const ConfigChange change{facts.untied,
                            facts.own_output,
                            facts.dequantized,
                            facts.kept_quantized,
                            !facts.dequantized.empty(),
                            base.options.out_dtype ? base.options.out_dtype : base.options.base_dtype};
  const auto config = changed_config((folder / "config.json").string(), change, plan.warnings);
  if (config)
    plan.texts.emplace_back("config.json", *config);
  else
    plan.copies.emplace_back("config.json", Copies(base.options).path_of("config.json"));
  const fs::path index = folder / "model.safetensors.index.json";
  std::error_code error;
  const bool had_index = fs::exists(index, error);
  if (shards.size() == 1 && (!had_index || base.options.max_shard_size)) return;
  plan.texts.emplace_back("model.safetensors.index.json", index_text(had_index ? index.string() : "", plan.files));
}

}  // namespace

void write_files(const Base& base, std::vector<OutTensor>& tensors, const FileFacts& facts, MergePlan& result) {
  Plan& plan = result.plan;
  const auto shards =
      base.options.max_shard_size ? new_shards(tensors, *base.options.max_shard_size) : own_shards(base, tensors);
  for (const Shard& shard : shards) {
    PlannedFile file;
    file.name = shard.name;
    file.metadata = base.checkpoint.files()[shard.like]->metadata();
    file.metadata.try_emplace("format", "pt");
    if (!facts.record.empty()) file.metadata[kMergedKey] = facts.record;
    for (const std::size_t i : shard.tensors) {
      for (MergedPart& part : tensors[i].parts) {
        part.file = plan.files.size();
        part.tensor = file.tensors.size();
        result.parts.push_back(std::move(part));
      }
      file.tensors.push_back(std::move(tensors[i].planned));
    }
    plan.files.push_back(std::move(file));
  }
  add_texts(base, facts, shards, result);
  Copies(base.options).add("", 0, plan.copies);
}

}  // namespace peft::merging
