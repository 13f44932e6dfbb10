// org/model names as paths into the local Hugging Face cache. Never the network.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "peft/adapter.h"

namespace peft {
namespace {

namespace fs = std::filesystem;

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

}  // namespace

std::string resolve_path(const std::string& path_or_repo) {
  std::error_code ignored;
  if (fs::exists(path_or_repo, ignored) || !is_repo_name(path_or_repo)) return path_or_repo;
  const fs::path cached = snapshot(path_or_repo);
  return !cached.empty() && fs::is_directory(cached, ignored) ? cached.string() : path_or_repo;
}

}  // namespace peft
