// Tensors of the base that an adapter replaces: modules_to_save, biases, saved embeddings, rows of trainable tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nn/modules.h"

namespace peft::nn {

// One tensor of the base. While an adapter that has a version of its own is active, the module holds that version.
struct Overlay {
  enum class Kind : std::uint8_t {
    saved_module,  // a copy beside the original: counted twice, as PEFT does
    base_value,    // the base's own tensor, in another version: biases, saved embeddings
  };
  Kind kind = Kind::saved_module;
  std::string module, parameter;    // "lm_head", "weight"
  std::vector<at::Tensor*> places;  // where the base holds it: more than one where embeddings are tied
  at::Tensor original;
  std::map<int, at::Tensor> adapters;
  std::map<int, std::string> suffix;  // of its key on disk, where that is not the parameter's name

  // Puts the version of the first of `active` that has one into the model, or the original.
  void select(const std::vector<int>& active) const {
    const at::Tensor* chosen = &original;
    for (const int adapter : active) {
      const auto at = adapters.find(adapter);
      if (at == adapters.end()) continue;
      chosen = &at->second;
      break;
    }
    for (at::Tensor* place : places) *place = *chosen;
  }
};

// Rows of an embedding that are replaced and trained: trainable_token_indices.
struct TokenRows {
  struct Rows {
    at::Tensor ids;                    // [n] int64
    std::vector<std::int64_t> tokens;  // the same, to look at
    at::Tensor delta;        // [n, dim]: the new rows themselves, whatever PEFT calls them; fp32, or the base's fp64
    bool follows = false;    // a tied output embedding: the tensors are those of the input embedding
    bool given = false;      // by the adapter's file
    at::Tensor before = {};  // the base's rows, while these are merged
  };
  std::string module;
  at::Tensor* weight = nullptr;  // the base's tensor
  std::map<int, Rows> adapters;
  std::vector<int> merged;  // in order

  const Rows* find(int adapter) const {
    const auto at = adapters.find(adapter);
    return at == adapters.end() ? nullptr : &at->second;
  }
};

}  // namespace peft::nn
