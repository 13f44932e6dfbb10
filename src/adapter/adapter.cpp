#include "peft/adapter.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "adapter/gguf_adapter.h"
#include "adapter/mlx_config.h"
#include "base/text.h"
#include "peft/error.h"
#include "pickle/pickle_file.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"
#include "safetensors/reading/json.h"
#include "safetensors/reading/sharded_file.h"

namespace peft {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kConfigFile = "adapter_config.json";
constexpr std::string_view kExpertsFile = "fused_expert_lora.safetensors";
constexpr std::string_view kNemoFile = "automodel_peft_config.json", kNemoKey = "paramwrapper_layout";
constexpr std::string_view kWeightsFile = "adapter_model.safetensors";
constexpr std::string_view kMlxWeightsFile = "adapters.safetensors";
constexpr std::string_view kShardsFile = "adapter_model.safetensors.index.json";
constexpr std::string_view kPickleFile = "adapter_model.bin";

// Files that stand beside an adapter and mean the same in every layout. Optimizer state, training arguments and
// the like do not: they belong to the tensors as they were.
constexpr std::array<std::string_view, 16> kSideFiles = {"README.md",
                                                         "LICENSE",
                                                         "tokenizer.json",
                                                         "tokenizer_config.json",
                                                         "tokenizer.model",
                                                         "vocab.json",
                                                         "vocab.txt",
                                                         "merges.txt",
                                                         "added_tokens.json",
                                                         "spiece.model",
                                                         "special_tokens_map.json",
                                                         "chat_template.jinja",
                                                         "chat_template.json",
                                                         "generation_config.json",
                                                         "preprocessor_config.json",
                                                         "processor_config.json"};

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

std::vector<std::string> side_files(const fs::path& folder) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (auto name : kSideFiles) {  // also those that cannot be copied: the error comes when they are copied
    if (fs::exists(fs::symlink_status(folder / name, ignored))) found.emplace_back(name);
  }
  std::sort(found.begin(), found.end());
  return found;
}

// Which file of the folder has the weights: the first of those that there are; "" for none.
std::string_view weights_name(const fs::path& folder) {
  for (const std::string_view name : {kWeightsFile, kShardsFile, kMlxWeightsFile, kPickleFile}) {
    if (is_there(folder / name)) return name;
  }
  return {};
}

bool is_adapter(const fs::path& folder) { return is_file(folder / kConfigFile) && !weights_name(folder).empty(); }

fs::path adapter_folder(const std::string& root, const std::string& name) {
  if (name.empty() || name == "default") return root;
  if (name.find('/') != std::string::npos || name == "..") {
    at(root).fail(ErrorCode::USAGE, {.problem = "an adapter name is the name of a subfolder", .got = name});
  }
  fs::path folder = fs::path(root) / name;
  if (!is_adapter(folder)) {
    const std::string known = list_text(adapter_names(root));
    at(root).fail(ErrorCode::IO_OPEN, {.problem = "there is no adapter of this name",
                                       .expected = known.empty() ? "a folder with adapters" : known,
                                       .got = name});
  }
  return folder;
}

// What a folder without the weights of an adapter is. The first row whose file is in the folder tells.
struct FolderKind {
  std::string_view file;
  ErrorCode code;
  std::string_view problem, hint;
};
constexpr FolderKind kFolderKinds[] = {
    {"model.safetensors.index.json", ErrorCode::IO_KIND, "a whole model, not an adapter", "give it as --base"},
    {"model.safetensors", ErrorCode::IO_KIND, "a whole model, not an adapter", "give it as --base"},
    {kConfigFile, ErrorCode::IO_OPEN, "the folder has a config and no weights", "is the download complete?"},
};

[[noreturn]] void no_weights(const fs::path& folder) {
  std::vector<std::string> names = adapter_names(folder.string());
  std::erase(names, "default");
  const std::string inside = list_text(names);
  for (const FolderKind& kind : kFolderKinds) {
    const bool is_adapters_root = kind.file == kConfigFile && !inside.empty();
    if (!is_file(folder / kind.file) || is_adapters_root) continue;
    at((folder / kind.file).string())
        .fail(kind.code, {.problem = std::string(kind.problem),
                          .expected = std::string(kWeightsFile),
                          .hint = std::string(kind.hint)});
  }
  at(folder.string())
      .fail(ErrorCode::IO_OPEN,
            {.problem = "no adapter weights here",
             .expected = std::string(kWeightsFile),
             .got = inside.empty() ? std::string() : "adapters in subfolders: " + inside,
             .hint = inside.empty() ? "is this an adapter folder?" : "choose one with --adapter-name"});
}

std::shared_ptr<const TensorFile> open_weights(const fs::path& folder, std::string_view name,
                                               const OpenOptions& options) {
  const std::string path = (folder / name).string();
  if (name == kPickleFile) return pickle::PickleFile::open(path, options);
  if (name != kShardsFile) return TensorFile::open(path, options);
  return std::make_shared<const safetensors::ShardedFile>(Checkpoint::open(folder.string(), options, "adapter_model"),
                                                          path);
}

// KTransformers keeps the pairs of experts in a file beside the others.
std::shared_ptr<const TensorFile> with_experts(std::shared_ptr<const TensorFile> weights, const fs::path& folder,
                                               const OpenOptions& options) {
  const std::string path = (folder / kExpertsFile).string();
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return weights;
  auto experts = TensorFile::open(path, options);
  for (const TensorInfo& tensor : experts->tensors()) {
    if (weights->find(tensor.name) == nullptr) continue;
    at(path, std::string(tensor.name)).fail(ErrorCode::IX_DUP, {.problem = "the adapter has this tensor in two files"});
  }
  const std::string own = weights->path();
  return std::make_shared<const safetensors::ShardedFile>(std::vector{std::move(weights), std::move(experts)}, own);
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

// Where huggingface_hub keeps its cache: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub.
fs::path hub_cache() {
  if (auto cache = environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (auto home = environment("HF_HOME"); !home.empty()) return fs::path(home) / "hub";
  if (auto cache = environment("XDG_CACHE_HOME"); !cache.empty()) return fs::path(cache) / "huggingface" / "hub";
  return fs::path(environment("HOME")) / ".cache" / "huggingface" / "hub";
}

// "org/model", and nothing that could lead out of the cache.
bool is_repo_name(const std::string& text) {
  const auto slash = text.find('/');
  if (slash == 0 || slash == std::string::npos || slash + 1 == text.size()) return false;
  if (text.find('/', slash + 1) != std::string::npos || text.find("..") != std::string::npos) return false;
  return text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") ==
         std::string::npos;
}

// models--org--model/snapshots/<the commit that refs/main names>
fs::path snapshot(const std::string& repo) {
  std::string folder = "models--" + repo;
  folder.replace(folder.find('/'), 1, "--");
  const fs::path root = hub_cache() / folder;
  std::ifstream ref(root / "refs" / "main");
  std::string commit;
  if (!std::getline(ref, commit) || commit.empty() || commit.find('/') != std::string::npos || commit.size() > 64) {
    return {};
  }
  return root / "snapshots" / commit;
}

// What NeMo Automodel says of the pairs that hold all experts. Files from before September 2026 have no such key.
std::string wrapper_layout(const fs::path& folder) {
  const fs::path path = folder / kNemoFile;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return {};
  const std::string text = safetensors::read_text_file(path.string(), ErrorCode::CF_FORM);
  const pythonic::Json json = pythonic::parse_json(text, path.string(), ErrorCode::CF_FORM);
  const auto found = json.is_object() ? json.find(std::string(kNemoKey)) : json.end();
  if (found == json.end()) return {};
  const std::string value = found->is_string() ? found->get<std::string>() : found->dump();
  if (value == "peft-0.19.1" || value == "peft-0.18") return value;
  at(path.string(), std::string(kNemoKey))
      .fail(ErrorCode::CF_VALUE, {.problem = "not a layout of PEFT's parameter wrappers that is known",
                                  .expected = "peft-0.19.1 or peft-0.18",
                                  .got = printable(value)});
}

}  // namespace

std::vector<std::string> adapter_names(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.is_directory(error) && is_adapter(entry.path())) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  if (is_adapter(folder)) names.insert(names.begin(), "default");
  return names;
}

Adapter open(const std::string& path, const AdapterOptions& options) {
  std::string root = resolve_path(path);
  if (adapter::is_gguf(root)) return adapter::open_gguf(root, options.open);
  for (const std::string_view name : {kWeightsFile, kShardsFile, kMlxWeightsFile, kPickleFile}) {
    if (fs::path(root).filename() == name) root = fs::path(root).parent_path().string();
  }
  std::error_code error;
  if (!fs::is_directory(root, error)) {
    at(path).fail(
        fs::exists(root, error) ? ErrorCode::IO_KIND : ErrorCode::IO_OPEN,
        {.problem = fs::exists(root, error) ? "not an adapter folder" : "there is no such folder",
         .expected = "a folder with adapter_config.json and adapter_model.safetensors, or a LoRA file FILE.gguf",
         .hint = "Hugging Face names work when the model is in the local cache; nothing is downloaded"});
  }
  const fs::path folder = adapter_folder(root, options.adapter_name);
  const std::string_view weights = weights_name(folder);
  if (weights.empty()) no_weights(folder);
  Adapter adapter;
  adapter.folder = folder.string();
  adapter.root = root;
  adapter.follow_symlinks = options.open.follow_symlinks;
  adapter.name = options.adapter_name.empty() ? "default" : options.adapter_name;
  if (weights == kMlxWeightsFile)
    adapter::read_mlx_config(adapter, (folder / kConfigFile).string());
  else
    adapter.config = AdapterConfig::read((folder / kConfigFile).string());
  adapter.wrapper_layout = wrapper_layout(folder);
  adapter.weights = with_experts(open_weights(folder, weights, options.open), folder, options.open);
  safetensors::release_json_memory();
  adapter.side_files = side_files(folder);
  return adapter;
}

std::vector<std::pair<std::string, std::string>> side_file_paths(const Adapter& adapter) {
  const fs::path below = fs::path(adapter.folder).lexically_relative(adapter.root);
  std::vector<std::pair<std::string, std::string>> paths;
  for (const std::string& name : adapter.side_files) {
    const std::string in_root = below == "." ? name : (below / name).string();
    paths.emplace_back(name, safetensors::path_inside(adapter.root, in_root, adapter.follow_symlinks));
  }
  return paths;
}

std::string describe(const Site& site) {
  std::string text = site.module;
  if (!site.parameter.empty()) text += "." + site.parameter;
  if (site.expert >= 0) text += "." + std::to_string(site.expert);
  if (site.projection != Projection::none) text += "." + std::string(name(site.projection));
  return text;
}

std::string resolve_path(const std::string& path_or_repo) {
  std::error_code ignored;
  if (fs::exists(path_or_repo, ignored) || !is_repo_name(path_or_repo)) return path_or_repo;
  const fs::path cached = snapshot(path_or_repo);
  return !cached.empty() && fs::is_directory(cached, ignored) ? cached.string() : path_or_repo;
}

bool site_less(const Site& x, const Site& y) {
  if (x.module != y.module) return natural_less(x.module, y.module);
  if (x.parameter != y.parameter) return x.parameter < y.parameter;
  if (x.expert != y.expert) return x.expert < y.expert;
  return x.projection < y.projection;
}

}  // namespace peft
