// The state of a PeftModel, which creating, loading, saving, merging and combining work on.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "nn/lora/sites/site.h"
#include "nn/model/network.h"
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

  AdapterEntry& entry(const std::string& name);  // USAGE: there is no such adapter
  AdapterEntry* find_entry(const std::string& name);
  const AdapterEntry& entry_of(int id) const;
  AdapterEntry& add_entry(const std::string& name, const AdapterConfig& config);  // USAGE when the name is taken

  Site* find_site(const std::string& module, const std::string& parameter) const;
  // Makes the site and puts its hook into the module, unless it exists. Throws CF_TARGET where LoRA is not implemented.
  Site& site(const std::string& module, const std::string& parameter, bool by_parameter);
  // The overlay of one tensor of the base; of a base value, wherever the base uses it.
  Overlay& overlay(const std::string& module, const std::string& parameter, Overlay::Kind kind);
  TokenRows& rows_of(const std::string& module);

  // The place of a site's factors on disk: one ".base_layer" for each later target of the same module.
  std::string key_of(const Site& site, int adapter) const;

  // Makes these adapters the active ones. With `train` they get gradients; all others lose theirs.
  void activate(std::vector<int> ids, bool train);
  void select_overlays(const std::vector<int>& ids) const;
  void set_gradients(int id, bool on);  // of all that this adapter trains
  void forget(int id);                  // everything of one adapter
  void remove_hooks();
  bool any_merged() const;
  bool is_merged(int id) const;
};

}  // namespace peft::nn
