#include "torch_cli/train/token_cache.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <xxhash.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "nn/lora/files/file_tensors.h"
#include "peft/error.h"

namespace peft::torch_cli {
namespace {

namespace fs = std::filesystem;

// Everything that ids follow from. A file that is not there counts as empty.
std::string hash_of(const std::string& data, const std::string& base, const TextRows::Options& options) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  const auto add = [&](const std::string& text) {
    const std::uint64_t size = text.size();
    XXH3_128bits_update(state, &size, sizeof size);
    XXH3_128bits_update(state, text.data(), text.size());
  };
  for (const std::string& file : {data, base + "/tokenizer.json", base + "/tokenizer_config.json",
                                  base + "/chat_template.jinja", base + "/special_tokens_map.json"}) {
    std::ifstream in(file, std::ios::binary);
    add({std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()});
  }
  add(fmt::format("1 {} {}", options.completion_only_loss, options.assistant_only_loss));  // 1: of this form of file
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

template <typename T>
at::Tensor tensor_of(const std::vector<T>& values, at::ScalarType type) {
  return at::from_blob(const_cast<T*>(values.data()), {static_cast<std::int64_t>(values.size())}, type).clone();
}

template <typename T>
std::vector<T> values_of(const TensorFile& file, const char* name) {
  for (std::uint32_t i = 0; i < file.tensors().size(); ++i) {
    if (file.tensors()[i].name != name) continue;
    const at::Tensor tensor = nn::read_tensor(file, i).to(c10::CppTypeToScalarType<T>::value).contiguous();
    return {tensor.const_data_ptr<T>(), tensor.const_data_ptr<T>() + tensor.numel()};
  }
  return {};
}

}  // namespace

TokenCache::TokenCache(const std::string& out, const std::string& data, const std::string& base,
                       const TextRows::Options& options)
    : path_((fs::path(out) / ("tokens-" + hash_of(data, base, options) + ".safetensors")).string()) {
  if (out.empty() || !fs::exists(path_)) return;
  try {
    read();
  } catch (const Error&) {
    is_there_ = false, guessed_ = 0;
  }
  if (!is_there_) ids_.clear(), labels_.clear(), ends_.clear();
}

void TokenCache::read() {
  const auto file = TensorFile::open(path_);
  ids_ = values_of<std::int32_t>(*file, "ids"), labels_ = values_of<std::int32_t>(*file, "labels");
  ends_ = values_of<std::int64_t>(*file, "ends");
  const std::vector<std::int64_t> guessed = values_of<std::int64_t>(*file, "guessed");
  std::int64_t last = 0;
  is_there_ = ids_.size() == labels_.size() && guessed.size() == 1 && !ends_.empty();
  for (const std::int64_t end : ends_) is_there_ = is_there_ && end > last, last = end;
  is_there_ = is_there_ && last == static_cast<std::int64_t>(ids_.size());
  if (is_there_) guessed_ = guessed.front();
}

train::Row TokenCache::row(std::string_view json_line, TextRows& text) {
  train::Row row;
  if (is_there_ && next_ < ends_.size()) {
    const std::int64_t begin = next_ == 0 ? 0 : ends_[next_ - 1], end = ends_[next_];
    ++next_;
    row.ids.assign(ids_.begin() + begin, ids_.begin() + end);
    row.labels.assign(labels_.begin() + begin, labels_.begin() + end);
    return row;
  }
  const std::int64_t guessed = text.guessed();
  row = text.row(json_line);
  guessed_ += text.guessed() - guessed;
  ids_.insert(ids_.end(), row.ids.begin(), row.ids.end());
  labels_.insert(labels_.end(), row.labels.begin(), row.labels.end());
  ends_.push_back(static_cast<std::int64_t>(ids_.size()));
  return row;
}

void TokenCache::save() const {
  if (is_there_ || ends_.empty()) return;
  const auto file = nn::memory_file({{"ids", tensor_of(ids_, at::kInt)},
                                     {"labels", tensor_of(labels_, at::kInt)},
                                     {"ends", tensor_of(ends_, at::kLong)},
                                     {"guessed", at::full({1}, guessed_, at::kLong)}});
  const std::string partial = path_ + ".partial";
  std::ofstream out(partial, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(file->image.data()), static_cast<std::streamsize>(file->image.size()));
  out.close();
  std::error_code failed;
  if (out) fs::rename(partial, path_, failed);
  if (!out || failed) at(path_).fail(ErrorCode::IO_WRITE, {.problem = "the tokenised data cannot be written"});
}

}  // namespace peft::torch_cli
