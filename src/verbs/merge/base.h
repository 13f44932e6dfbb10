// The base of a merge: which of its weights a factor updates, and what does not fit or cannot be read.
#pragma once

#include <optional>
#include <string>

#include "peft/weights.h"
#include "verbs/merge/adapters.h"

namespace peft::merging {

// The name of the parameter that an extra replaces or adds to: "weight" of "base_layer.weight".
std::string own_suffix(const Extra& extra);

// A base of any form. References must outlive it.
class Base {
 public:
  Base(const MergeOptions& options, const Model& model) : options_(options), model_(model) {}
  virtual ~Base() = default;

  const MergeOptions& options() const { return options_; }
  const Model& model() const { return model_; }
  virtual bool says_tied() const = 0;  // input and output embedding are one parameter
  virtual bool is_tied() const = 0;    // the output has no tensor of its own
  virtual std::string output_module() const = 0;
  virtual std::string input_module() const = 0;
  virtual std::string output_tensor() const = 0;  // what the output's own tensor is called
  // The weight that a factor updates, as [out, in]; the parameter that an extra is about. Throw LO_TARGET, LO_QUANT,
  // LO_SHAPE, LO_VOCAB where the base has none that fits.
  virtual Weight weight_of(const MergeAdapter& adapter, const Factor& factor) const = 0;
  virtual Weight weight_of(const MergeAdapter& adapter, const Extra& extra) const = 0;
  // The weight of a module, where it is a tensor of its own.
  virtual std::optional<Weight> find(const std::string& module) const = 0;
  // Whether the extra is a head of the adapter's task that the base has no tensor for. The merged model gets it.
  virtual bool lacks_head(const MergeAdapter& adapter, const Extra& extra) const = 0;

 protected:
  // The weight that was found, turned where it lies transposed; throws where it does not fit. `stored`: how the base
  // has it, for messages.
  static Weight fitted(const MergeAdapter& adapter, const Factor& factor, const Weight& found,
                       const std::string& stored);
  [[noreturn]] static void no_target(const MergeAdapter& adapter, std::uint32_t tensor, const Site& site,
                                     const std::string& expected);

 private:
  const MergeOptions& options_;
  const Model& model_;
};

// The same weight seen as [in, out].
Weight transposed(Weight weight);

}  // namespace peft::merging
