// A model as llama.cpp has it: one GGUF file, or the parts that its gguf-split makes of one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf/gguf_file.h"
#include "layout/gguf/names.h"
#include "peft/model.h"

namespace peft::merging {

// Headers only.
class GgufModel {
 public:
  // Throws GG_VALUE for what is no model, IX_FORM and IX_DUP for parts that do not belong together, MD_FAMILY for an
  // architecture that data/gguf_names.json lacks.
  static GgufModel open(const std::string& path, const OpenOptions& options);

  using Number = std::pair<std::uint32_t, std::uint32_t>;  // file, and tensor of the file
  const std::vector<std::shared_ptr<const gguf::GgufFile>>& files() const { return files_; }
  std::optional<Number> find(std::string_view tensor) const;
  const TensorInfo& info(const Number& number) const { return files_[number.first]->tensors()[number.second]; }
  const gguf::KeyValues& values() const { return files_.front()->values(); }
  const std::string& architecture() const { return architecture_; }

  // Heads of a layer whose rows the converter reorders: "attn_q" or "attn_k". 0: the file does not say.
  std::int64_t heads(std::int64_t layer, bool keys) const;
  // Whether input and output embedding are one tensor.
  bool is_tied() const { return !find("output.weight").has_value(); }

  // The rows of names that may be those of this file, the likeliest first: one architecture serves several model types.
  std::vector<std::pair<const layout::GgufNames*, std::string>> types() const;
  // What the file shows of a model of that type.
  Model describe_as(const layout::GgufNames& names, const std::string& type, const std::string& families_file) const;

 private:
  std::int64_t number(const std::string& key) const;

  std::vector<std::shared_ptr<const gguf::GgufFile>> files_;
  std::map<std::string, Number, std::less<>> by_name_;
  std::string architecture_;
};

}  // namespace peft::merging
