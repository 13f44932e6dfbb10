#include "verbs/merge/gguf/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "peft/error.h"

namespace peft::merging {
namespace {

using gguf::GgufFile;

std::uint64_t unsigned_of(const GgufFile& file, std::string_view key) {
  const gguf::Value* value = gguf::find_value(file.values(), key);
  return value == nullptr ? 0 : gguf::as_unsigned(*value).value_or(0);
}

std::string text_of(const GgufFile& file, std::string_view key) {
  const gguf::Value* value = gguf::find_value(file.values(), key);
  return std::string(value == nullptr ? std::string_view() : gguf::as_text(*value).value_or(""));
}

std::string part_ending(std::uint64_t part, std::uint64_t parts) {
  return fmt::format("-{:05d}-of-{:05d}.gguf", part, parts);
}

// The other parts of a model whose first one is open. They lie beside it, under the names that gguf-split gives them.
void open_parts(std::vector<std::shared_ptr<const GgufFile>>& files, const OpenOptions& options) {
  const std::string first = files.front()->path();
  const std::uint64_t parts = unsigned_of(*files.front(), "split.count"),
                      number = unsigned_of(*files.front(), "split.no");
  if (parts <= 1) return;
  const std::string ending = part_ending(number + 1, parts);
  if (number != 0 || !first.ends_with(ending)) {
    at(first, "split.no")
        .fail(ErrorCode::IX_FORM, {.problem = "the file is one part of a model, and not named as its first part",
                                   .expected = "a name that ends with " + part_ending(1, parts),
                                   .got = fmt::format("part {} of {}", number + 1, parts),
                                   .hint = "give the first part; the others lie beside it"});
  }
  const std::string stem = first.substr(0, first.size() - ending.size());
  for (std::uint64_t i = 1; i < parts; ++i) {
    files.push_back(GgufFile::open(stem + part_ending(i + 1, parts), options));
    const GgufFile& file = *files.back();
    if (unsigned_of(file, "split.no") == i && unsigned_of(file, "split.count") == parts) continue;
    at(file.path(), "split.no")
        .fail(ErrorCode::IX_FORM, {.problem = "the part says that it is another one than its name does",
                                   .expected = fmt::format("part {} of {}", i + 1, parts),
                                   .got = fmt::format("part {} of {}", unsigned_of(file, "split.no") + 1,
                                                      unsigned_of(file, "split.count"))});
  }
}

// Whether all dense weights that the table knows of such a layer could be in the file.
bool may_be(const layout::GgufNames& names, const GgufModel& model) {
  const bool has_experts = model.find(layout::gguf_tensor_name(0, "ffn_down_exps")) ||
                           model.find(layout::gguf_tensor_name(1, "ffn_down_exps")) ||
                           model.find(layout::gguf_tensor_name(3, "ffn_down_exps"));
  return has_experts == !names.experts.empty();
}

}  // namespace

GgufModel GgufModel::open(const std::string& path, const OpenOptions& options) {
  GgufModel model;
  model.files_.push_back(GgufFile::open(path, options));
  const GgufFile& first = *model.files_.front();
  if (const std::string type = text_of(first, "general.type"); !type.empty() && type != "model") {
    at(path, "general.type")
        .fail(ErrorCode::GG_VALUE, {.problem = "the base is no model",
                                    .expected = "model",
                                    .got = printable(type),
                                    .hint = type == "adapter" ? "--adapter takes LoRA files" : ""});
  }
  open_parts(model.files_, options);
  for (std::uint32_t file = 0; file < model.files_.size(); ++file) {
    const auto tensors = model.files_[file]->tensors();
    for (std::uint32_t i = 0; i < tensors.size(); ++i) {
      if (model.by_name_.emplace(tensors[i].name, Number{file, i}).second) continue;
      at(model.files_[file]->path(), std::string(tensors[i].name))
          .fail(ErrorCode::IX_DUP, {.problem = "two parts of the model hold this tensor"});
    }
  }
  model.architecture_ = text_of(first, "general.architecture");
  if (layout::gguf_model_types(model.architecture_).empty()) {
    at(path, "general.architecture")
        .fail(ErrorCode::MD_FAMILY,
              {.problem = "this architecture of llama.cpp is not known",
               .expected = "one that data/gguf_names.json has",
               .got = model.architecture_.empty() ? "no such key" : printable(model.architecture_)});
  }
  return model;
}

std::optional<GgufModel::Number> GgufModel::find(std::string_view tensor) const {
  const auto found = by_name_.find(tensor);
  return found == by_name_.end() ? std::nullopt : std::optional(found->second);
}

std::int64_t GgufModel::number(const std::string& key) const {
  return static_cast<std::int64_t>(unsigned_of(*files_.front(), architecture_ + "." + key));
}

std::int64_t GgufModel::heads(std::int64_t layer, bool keys) const {
  const std::string key = architecture_ + (keys ? ".attention.head_count_kv" : ".attention.head_count");
  const gguf::Value* value = gguf::find_value(values(), key);
  if (value == nullptr) return keys ? heads(layer, false) : 0;
  if (value->type != gguf::ValueType::array) return static_cast<std::int64_t>(gguf::as_unsigned(*value).value_or(0));
  const auto all = gguf::elements(*value);  // one for each layer
  if (layer < 0 || static_cast<std::size_t>(layer) >= all.size()) return 0;
  return static_cast<std::int64_t>(gguf::as_unsigned(all[static_cast<std::size_t>(layer)]).value_or(0));
}

std::vector<std::pair<const layout::GgufNames*, std::string>> GgufModel::types() const {
  std::vector<std::pair<const layout::GgufNames*, std::string>> first, later;
  for (const layout::GgufNames& names : layout::all_gguf_names()) {
    if (names.architecture != architecture_) continue;
    for (const std::string& type : names.types)
      (may_be(names, *this) && names.prefix == "model" ? first : later).emplace_back(&names, type);
  }
  first.insert(first.end(), later.begin(), later.end());
  return first;
}

Model GgufModel::describe_as(const layout::GgufNames& names, const std::string& type,
                             const std::string& families_file) const {
  std::vector<std::string> modules;
  for (const auto& [name, at] : by_name_) {
    const std::string as_factor = name + ".lora_a";  // the key points into it
    const auto key = layout::parse_gguf_key(as_factor);
    if (!key) continue;
    const auto* tensor = names.find_tensor(key->tensor);
    if (tensor != nullptr) modules.push_back(layout::gguf_module_path(names.prefix, key->layer, tensor->module));
    if (key->tensor == "ffn_down_exps" && !names.experts.empty())
      modules.push_back(layout::gguf_module_path(names.prefix, key->layer, names.experts));
  }
  Model model = peft::describe({.family = type,
                                .families_file = families_file,
                                .num_experts = number("expert_count"),
                                .names = std::move(modules)});
  model.num_heads = heads(0, false), model.num_kv_heads = heads(0, true);
  model.tie_word_embeddings = is_tied();
  model.source = files_.front()->path();
  for (Experts& experts : model.experts) {
    const auto down = find(layout::gguf_tensor_name(experts.layer, "ffn_down_exps"));
    if (!down || info(*down).shape.size() != 3) continue;
    experts.num_experts = info(*down).shape[0];
    experts.hidden = info(*down).shape[1], experts.intermediate = info(*down).shape[2];
    model.num_experts_assumed = false;
  }
  return model;
}

}  // namespace peft::merging
