// A base in GGUF: which of its tensors a factor updates, and which of its rows.
#pragma once

#include <optional>
#include <string>

#include "verbs/merge/base.h"
#include "verbs/merge/gguf/gguf_model.h"

namespace peft::merging {

class GgufBase final : public Base {
 public:
  GgufBase(const MergeOptions& options, const Model& model, const GgufModel& file, const layout::GgufNames& names)
      : Base(options, model), file_(file), names_(names), prefix_(layout::layers_prefix(model, names)) {}

  bool says_tied() const override { return file_.is_tied(); }
  bool is_tied() const override { return file_.is_tied(); }
  std::string output_module() const override { return "lm_head"; }
  std::string input_module() const override;
  std::string output_tensor() const override { return "output.weight"; }
  // Where the file has the rows of a head in another order, the weight has a part for each half of a head. What merging
  // does not read, and what the converter changes otherwise, is LO_QUANT and LO_NO_FORM.
  Weight weight_of(const MergeAdapter& adapter, const Factor& factor) const override;
  Weight weight_of(const MergeAdapter& adapter, const Extra& extra) const override;
  std::optional<Weight> find(const std::string& module) const override;
  bool lacks_head(const MergeAdapter&, const Extra&) const override { return false; }

 private:
  struct Place {  // of a dense module
    std::int64_t layer = -1;
    const layout::GgufNames::Tensor* tensor = nullptr;
  };
  Place place_of(const std::string& module) const;
  std::optional<Weight> expert(const Site& site) const;
  std::optional<Weight> matrix(const std::string& tensor) const;
  std::optional<Weight> stored(const Site& site) const;
  Weight in_order(Weight weight, const Place& place) const;
  void require_form(const MergeAdapter& adapter, const Site& site) const;
  void require_readable(const MergeAdapter& adapter, const Site& site, const Weight& weight) const;
  [[noreturn]] void missing(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site) const;
  std::string shape_of(const Weight& weight) const;

  const GgufModel& file_;
  const layout::GgufNames& names_;
  std::string prefix_;  // of layers
};

}  // namespace peft::merging
