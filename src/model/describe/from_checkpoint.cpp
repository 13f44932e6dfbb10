#include "model/describe/from_checkpoint.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/text.h"
#include "model/describe/draft.h"
#include "model/describe/shown_tree.h"
#include "model/families/disk_names.h"
#include "model/path.h"
#include "model/trees/build_tree.h"
#include "peft/safetensors.h"

namespace peft::model {
namespace {

// "layers.2" before "layers.10".
struct NaturalLess {
  using is_transparent = void;
  bool operator()(std::string_view a, std::string_view b) const { return natural_less(a, b); }
};

using Tensors = std::vector<std::pair<std::string, const TensorInfo*>>;  // parameter name, tensor

const Model::Index::KnownModule* known_module(const Draft& draft, std::string_view module) {
  const auto* known = draft.index->find_known(Generation::v5, module);
  return known != nullptr ? known : draft.index->find_known(Generation::v4, module);
}

// The prefix that the names in a checkpoint of the bare model lack: "transformer." of gpt2. "" where a name begins as
// one of the family's names does.
std::string missing_prefix(const Checkpoint& checkpoint, const Draft& draft) {
  std::set<std::string, std::less<>> prefixes;
  for (const auto& [key, list] : draft.index->known_v5) {
    const std::size_t dot = key.find('.');
    if (dot != std::string::npos && key.find('#') != std::string::npos) prefixes.insert(key.substr(0, dot + 1));
  }
  const auto any_tensor = [&](const auto& holds) {
    const auto& tensors = checkpoint.tensors();
    return std::any_of(tensors.begin(), tensors.end(), [&](const auto& entry) { return holds(entry.tensor->name); });
  };
  if (any_tensor([&](std::string_view name) { return prefixes.contains(name.substr(0, name.find('.') + 1)); }))
    return {};
  for (const std::string& prefix : prefixes) {
    const auto fits = [&](std::string_view name) {
      return known_module(draft, prefix + std::string(parent(name))) != nullptr;
    };
    if (any_tensor(fits)) return prefix;
  }
  return {};
}

// The packed integers of a quantised checkpoint do not have the shape of the weight, which stays unknown.
std::vector<std::int64_t> weight_shape(const TensorInfo& tensor) {
  const bool packed = tensor.dtype == Dtype::u8 || tensor.dtype == Dtype::i8 || tensor.dtype == Dtype::i32 ||
                      tensor.dtype == Dtype::u32;
  return packed ? std::vector<std::int64_t>{} : std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.end());
}

bool is_quantised(const Tensors& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const auto& t) { return t.first == "qweight"; });
}

Module classify(const Draft& draft, const std::string& name, const Tensors& tensors) {
  Module module{name, ModuleKind::other, "", {}};
  for (const auto& [parameter, tensor] : tensors) {
    if (parameter == "weight") module.weight = weight_shape(*tensor);
  }
  if (const auto* known = known_module(draft, name)) {
    module.kind = known->kind;
    module.class_name = known->class_name;
  } else if (const auto place = find_place(draft.index->places, name)) {
    module.kind = place->place->path.has_expert() ? ModuleKind::linear : ModuleKind::other;
  } else if (is_embedding_name(name) && module.weight.size() == 2) {
    module.kind = ModuleKind::embedding;
    module.class_name = "Embedding";
  } else if ((module.weight.size() == 2 && !is_norm_name(name)) || is_quantised(tensors)) {
    module.kind = ModuleKind::linear;
    module.class_name = "Linear";
  } else if (module.weight.size() > 2) {
    module.kind = ModuleKind::conv;
  }
  return module;
}

// A tied output has no tensor of its own. Its shape is that of the embedding.
void add_tied_output(ModuleTree& tree, const Draft& draft) {
  finish_tree(tree);
  if (!tree.output_embedding.empty() || tree.input_embedding.empty()) return;
  const std::vector<std::int64_t> shape = tree.find(tree.input_embedding)->weight;
  if (const auto own = own_output(draft)) {
    if (!own->empty()) tree.modules.push_back({*own, ModuleKind::linear, "Linear", shape});
    return;
  }
  for (const auto& [key, list] : draft.index->known_v5) {
    for (const auto& known : list) {
      if (known.path.has_layer() || !is_output_name(known.path.text())) continue;
      tree.modules.push_back({known.path.text(), known.kind, known.class_name, shape});
      return;
    }
  }
}

bool is_known(const Draft& draft, std::string_view module) {
  return known_module(draft, module) != nullptr || find_place(draft.index->places, module).has_value();
}

// The name of a tensor in the tree. Checkpoints on the hub name some experts otherwise: where only the name of
// transformers 5 is one that the family has, it is that. nullopt: the tensor is a part of a parameter, without a name
// of its own.
std::optional<std::string> name_in_tree(const Draft& draft, const DiskNames& disk, const std::string& name) {
  if (is_known(draft, parent(name))) return name;
  const std::string ruled = disk.to_v5(name);
  const std::size_t mark = ruled.find('#');
  const std::string plain = ruled.substr(0, mark);
  if (ruled == name || !find_place(draft.index->places, parent(plain))) return name;
  if (mark != std::string::npos && ruled.substr(mark) != "#interleaved") return std::nullopt;
  return plain;
}

// The modules that names and shapes of the tensors show. Headers do not tell classes: the family table does, and then
// the name. Headers do not tell buffers from parameters either. Buffers stay, because a buffer is never a target.
ModuleTree tree_from_checkpoint(const Checkpoint& checkpoint, const Draft& draft) {
  const std::string prefix = missing_prefix(checkpoint, draft);
  const DiskNames disk(draft.family());
  std::map<std::string, Tensors, NaturalLess> modules;
  for (const Checkpoint::Entry& entry : checkpoint.tensors()) {
    const auto known_as = name_in_tree(draft, disk, std::string(entry.tensor->name));
    if (!known_as) continue;
    const std::string_view name = *known_as;
    const bool prefixed = !prefix.empty() && !is_output_name(parent(name));
    const std::string module = (prefixed ? prefix : std::string()) + std::string(parent(name));
    modules[module].emplace_back(leaf(name), entry.tensor);
  }
  ModuleTree tree;
  for (const auto& [name, tensors] : modules) {
    if (name.empty()) continue;
    const Module module = classify(draft, name, tensors);
    append_module(tree, module);
    if (module.kind != ModuleKind::other) continue;
    for (const auto& [parameter, tensor] : tensors) {
      if (parameter == "weight") continue;
      tree.parameters.push_back(
          {name, parameter, std::vector<std::int64_t>(tensor->shape.begin(), tensor->shape.end())});
    }
  }
  add_tied_output(tree, draft);
  return tree;
}

bool names_experts(const Checkpoint& checkpoint) {
  for (const Checkpoint::Entry& entry : checkpoint.tensors()) {
    if (entry.tensor->name.find(".experts.") != std::string_view::npos) return true;
  }
  return false;
}

bool has_output_tensor(const ModuleTree& shown, const Checkpoint& checkpoint) {
  return shown.output_embedding.empty() || checkpoint.find(shown.output_embedding + ".weight") != nullptr;
}

}  // namespace

Model model_from_checkpoint(const std::shared_ptr<const Table>& table, ConfigFacts facts,
                            const DescribeOptions& options) {
  const Checkpoint checkpoint = Checkpoint::open(options.base);
  const std::string type = facts.model_type();
  const std::string& known = options.family.empty() ? type : options.family;
  const bool plain = !is_known_type(*table, known) && !is_known_type(*table, type) && !names_experts(checkpoint);
  Draft draft = plain ? draft_without_row(table, type) : draft_for_base(table, type, options);
  if (plain)
    draft.model.notes.push_back("model type \"" + type +
                                "\" is not in the family table; its modules are taken from the tensor names");
  draft.facts = std::move(facts);
  ModuleTree shown = tree_from_checkpoint(checkpoint, draft);
  finish_tree(shown);
  draft.model.tie_word_embeddings = !has_output_tensor(shown, checkpoint);
  use_shown_tree(draft, std::move(shown), false);
  draft.model.source = "config.json and tensor headers of " + options.base;
  for (const std::string& note : checkpoint.notes()) draft.model.notes.push_back(note);
  finish(draft, options);
  return std::move(draft.model);
}

}  // namespace peft::model
