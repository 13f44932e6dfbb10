// What a PeftModel holds. Its parts work on this: creating, loading, saving, merging, combining.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "nn/lora/sites/site.h"
#include "nn/model/modules.h"
#include "peft/model.h"
#include "peft/nn/peft_model.h"

namespace peft::nn {

struct AdapterEntry {
  int id = 0;
  std::string name;
  AdapterConfig config;                // what save_pretrained writes
  Layout layout = Layout::peft_fused;  // the form that can hold it
};

struct PeftModel::Impl {
  std::shared_ptr<CausalLM> base;
  Model model;  // the family's facts
  ModuleTree tree;
  std::vector<AdapterEntry> entries;
  int next_id = 0;
  std::shared_ptr<Switch> control = std::make_shared<Switch>();
  // In the order of the model's modules; pointers into them stay.
  std::vector<std::unique_ptr<Site>> sites;
  std::unordered_map<std::string, Site*> site_by_name;  // "model.layers.0.mlp.gate.weight"
  std::deque<Overlay> overlays;
  std::deque<TokenRows> token_rows;
  Tensor tied_head;  // lm_head's weight, while a merge needs the two embeddings apart; undefined: as in the base
  std::vector<std::string> warnings;

  AdapterEntry& entry(const std::string& name);  // LO_TARGET: no such adapter
  AdapterEntry* find_entry(const std::string& name);
  const AdapterEntry& entry_of(int id) const;
  AdapterEntry& add_entry(const std::string& name, const AdapterConfig& config);  // USAGE when the name is taken

  Site* find_site(const std::string& module, const std::string& parameter) const;
  // Makes the site and puts its hook into the module, unless it is there. CF_TARGET for what LoRA cannot sit on.
  Site& site(const std::string& module, const std::string& parameter, bool by_parameter);
  // The overlay of one tensor of the base. `tied`: wherever the base uses it, not in this module alone.
  Overlay& overlay(const std::string& module, const std::string& parameter, Overlay::Kind kind);
  TokenRows& rows_of(const std::string& module);

  // Where the factors of a site lie on disk: below one ".base_layer" for each later parameter of the same module.
  std::string key_of(const Site& site, int adapter) const;

  // Who acts from now on, and alone has gradients, if `train`.
  void activate(std::vector<int> ids, bool train);
  void select_overlays(const std::vector<int>& ids) const;
  void set_gradients(int id, bool on);  // of all that this adapter trains
  void forget(int id);                  // everything of one adapter
  void remove_hooks();
  bool any_merged() const;
  bool is_merged(int id) const;
};

}  // namespace peft::nn
