#include "nn/train/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "nn/lora/files/file_tensors.h"
#include "peft/error.h"
#include "peft/nn/trainer.h"
#include "peft/safetensors.h"
#include "safetensors/writing/staging_folder.h"

namespace peft::nn {
namespace {

namespace fs = std::filesystem;

constexpr const char* kState = "trainer_state.json";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kAdapter = "adapter_model.safetensors";
constexpr std::string_view kPrefix = "checkpoint-";

NamedTensors tensors_in(const fs::path& path) {
  const auto file = TensorFile::open(path.string());
  NamedTensors tensors;
  for (std::uint32_t i = 0; i < file->tensors().size(); ++i)
    tensors.emplace_back(file->tensors()[i].name, read_tensor(*file, i));
  return tensors;
}

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

SaveOptions one_adapter(const std::string& adapter) {
  SaveOptions options;
  options.selected_adapters = {adapter};
  return options;
}

// Where save_pretrained() puts an adapter: "default" in the folder itself, others below it.
fs::path place_of(const std::string& adapter) { return adapter == "default" ? fs::path() : fs::path(adapter); }

}  // namespace

void write_checkpoint(const PeftModel& model, const std::string& adapter, const AdamW& optimizer,
                      const train::RunState& state, const RunFacts& facts, const std::string& folder) {
  SaveOptions options = one_adapter(adapter);
  options.more_files.emplace_back(kOptimizer, std::move(memory_file(optimizer.state())->image));
  options.more_files.emplace_back(kState, bytes_of(state.to_json(facts)));
  model.save_pretrained(folder, options);
}

void read_adapter_values(PeftModel& model, const std::string& adapter, const std::string& folder) {
  // An embedding that was saved along with its LoRA is the base's own.
  NamedTensors tensors = tensors_in(fs::path(folder) / place_of(adapter) / kAdapter), own;
  const std::vector<AdapterTensor> wanted = model.adapter_tensors(adapter);
  for (auto& [name, tensor] : tensors) {
    const bool known = std::ranges::any_of(wanted, [&](const AdapterTensor& t) { return t.key == name; });
    if (known || !(name.ends_with("embed_tokens.base_layer.weight") || name.ends_with("lm_head.base_layer.weight")))
      own.emplace_back(name, tensor);
  }
  model.load_state_dict(own, adapter);
}

train::RunState read_checkpoint(PeftModel& model, const std::string& adapter, AdamW& optimizer, const RunFacts& facts,
                                const std::string& folder) {
  const fs::path root(folder);
  const train::RunState state = train::RunState::from_json((root / kState).string(), facts);
  read_adapter_values(model, adapter, folder);
  const at::NoGradGuard no_gradients;
  optimizer.load_state(tensors_in(root / kOptimizer));
  return state;
}

std::vector<std::pair<std::int64_t, std::string>> checkpoints_in(const std::string& out) {
  std::vector<std::pair<std::int64_t, std::string>> found;
  for (const std::string& name : safetensors::names_in(out).value_or(std::vector<std::string>{})) {
    if (!name.starts_with(kPrefix)) continue;
    std::int64_t step = 0;
    const char *begin = name.data() + kPrefix.size(), *end = name.data() + name.size();
    const auto [rest, error] = std::from_chars(begin, end, step);
    const fs::path folder = fs::path(out) / name;
    if (error == std::errc() && rest == end && fs::exists(folder / kState)) found.emplace_back(step, folder.string());
  }
  std::ranges::sort(found);
  return found;
}

void remove_old_checkpoints(const std::string& out, std::int64_t limit, std::int64_t kept) {
  const auto all = checkpoints_in(out);
  std::int64_t surplus = static_cast<std::int64_t>(all.size()) - limit;
  for (std::size_t i = 0; i + 1 < all.size() && surplus > 0; ++i) {
    if (all[i].first == kept) continue;
    // Its state goes first, so that a folder that is only half removed is no checkpoint.
    fs::remove(fs::path(all[i].second) / kState);
    safetensors::remove_tree(all[i].second);
    --surplus;
  }
}

std::string newest_checkpoint(const std::string& out) {
  const auto all = checkpoints_in(out);
  return all.empty() ? std::string() : all.back().second;
}

void write_trained_adapter(const PeftModel& model, const std::string& adapter, const std::string& out) {
  const fs::path root(out), fresh = root / "trained.partial";
  model.save_pretrained(fresh.string(), one_adapter(adapter));
  const fs::path from = fresh / place_of(adapter);
  for (const char* name : {"adapter_config.json", kAdapter}) fs::rename(from / name, root / name);
  if (!fs::exists(root / "README.md") && fs::exists(fresh / "README.md"))
    fs::rename(fresh / "README.md", root / "README.md");
  safetensors::sync_folder(out);
  safetensors::remove_tree(fresh.string());
}

}  // namespace peft::nn
