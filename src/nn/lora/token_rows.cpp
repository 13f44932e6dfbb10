// trainable_token_indices: rows of embeddings that an adapter replaces; checked, made, merged and taken out.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "nn/impl.h"
#include "nn/lora/impl.h"
#include "peft/error.h"

namespace peft::nn {
namespace {

using TokenIds = std::vector<std::int64_t>;

// By module. A list is for the input embedding; names are ends of modules' names.
std::map<std::string, TokenIds> wanted_rows(const PeftModel::Impl& impl, const AdapterConfig& config) {
  std::map<std::string, TokenIds> wanted;
  for (const auto& [name, ids] : *config.trainable_token_indices) {
    bool found = name.empty();
    if (found) wanted[impl.tree.input_embedding] = ids;
    for (const auto& module : impl.base->modules().all()) {
      if (name.empty() || (module->name != name && !module->name.ends_with("." + name))) continue;
      wanted[module->name] = ids;
      found = true;
    }
    if (found) continue;
    throw Error(ErrorCode::CF_TARGET, {.tensor = "trainable_token_indices",
                                       .problem = "no module of the base has this name",
                                       .expected = "the name of an embedding",
                                       .got = name});
  }
  return wanted;
}

void check_ids(const std::string& module, const TokenIds& ids, std::int64_t vocabulary) {
  const auto refuse = [&](const char* problem, const std::string& got) {
    throw Error(ErrorCode::CF_VALUE, {.tensor = "trainable_token_indices",
                                      .problem = problem + (" of " + module),
                                      .expected = fmt::format("0 to {}", vocabulary - 1),
                                      .got = got});
  };
  if (ids.empty()) refuse("no tokens are named", "an empty list");
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= vocabulary) refuse("a token is outside of the vocabulary", std::to_string(id));
  }
}

// Where config.json ties the output embedding it has the same new rows, unless it is named with other tokens.
void follow_input(PeftModel::Impl& impl, int id) {
  const CausalLM::Impl& base = impl.base->impl();
  if (!base.config.tied) return;
  const auto input = std::find_if(impl.token_rows.begin(), impl.token_rows.end(), [&](const TokenRows& rows) {
    return rows.module == base.embed->name && rows.find(id) != nullptr;
  });
  if (input == impl.token_rows.end()) return;
  const TokenRows::Rows rows = *input->find(id);
  TokenRows& output = impl.rows_of(base.lm_head->name);
  const TokenRows::Rows* own = output.find(id);
  if (own != nullptr && own->tokens != rows.tokens) return;
  output.adapters[id] = {.ids = rows.ids, .tokens = rows.tokens, .delta = rows.delta, .follows = true};
  if (base.tied) return;
  impl.warnings.push_back(
      fmt::format("config.json says tie_word_embeddings = true, so the trainable tokens of {} "
                  "replace rows of {} too, as in PEFT, although the file has its own",
                  input->module, output.module));
}

std::string names_of(const PeftModel::Impl& impl, int one, int other) {
  return impl.entry_of(one).name + ", " + impl.entry_of(other).name;
}

[[noreturn]] void not_apart(const std::string& module, const std::string& problem) {
  throw Error(ErrorCode::CF_TARGET,
              {.tensor = module,
               .problem = problem,
               .expected = "one of the two",
               .hint = "take it out of target_modules, modules_to_save or trainable_token_indices"});
}

}  // namespace

void make_token_rows(PeftModel::Impl& impl, int id, const AdapterConfig& config) {
  if (!config.trainable_token_indices) return;
  for (const auto& [module, ids] : wanted_rows(impl, config)) {
    TokenRows& rows = impl.rows_of(module);
    const Tensor weight = rows.weight->detach();
    check_ids(module, ids, weight.size(0));
    const Tensor index = at::tensor(ids, at::kLong).to(weight.device());
    const auto type = weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;  // as factors
    rows.adapters[id] = {.ids = index, .tokens = ids, .delta = weight.index_select(0, index).to(type)};
  }
  follow_input(impl, id);
}

void require_rows_apart(const PeftModel::Impl& impl) {
  for (const TokenRows& rows : impl.token_rows) {
    const Site* site = impl.find_site(rows.module, "weight");
    for (const auto& [id, own] : rows.adapters) {
      if (site != nullptr && !site->adapters.empty()) {
        const bool dora = std::any_of(site->adapters.begin(), site->adapters.end(),
                                      [](const auto& a) { return a.second.magnitude.defined(); });
        if (!own.follows) not_apart(rows.module, "LoRA and trainable tokens on the same embedding, as PEFT refuses");
        if (dora) not_apart(rows.module, "DoRA on an output embedding that is tied to trainable tokens");
      }
      for (const Overlay& overlay : impl.overlays) {
        const bool copy = overlay.kind == Overlay::Kind::saved_module && overlay.module == rows.module;
        if (copy && overlay.adapters.contains(id)) {
          not_apart(rows.module, "modules_to_save and trainable tokens on the same embedding, as PEFT refuses");
        }
      }
    }
  }
}

void require_rows_disjoint(const PeftModel::Impl& impl, const std::vector<int>& ids) {
  for (const TokenRows& rows : impl.token_rows) {
    std::vector<int> all = rows.merged;
    for (const int id : ids) {
      if (rows.find(id) != nullptr && std::count(all.begin(), all.end(), id) == 0) all.push_back(id);
    }
    std::map<std::int64_t, int> owner;
    for (const int id : all) {
      for (const std::int64_t token : rows.find(id)->tokens) {
        const int first = owner.emplace(token, id).first->second;
        if (first == id) continue;
        throw Error(ErrorCode::USAGE, {.tensor = rows.module,
                                       .problem = "several of the adapters have a row for the same token",
                                       .expected = "each token in one of them",
                                       .got = fmt::format("token {} in {}", token, names_of(impl, first, id)),
                                       .hint = "use one of them at a time"});
      }
    }
  }
}

void merge_token_rows(PeftModel::Impl& impl, const MergeOptions& options, const std::vector<int>& ids) {
  for (TokenRows& rows : impl.token_rows) {
    for (const int id : ids) {
      const auto at = rows.adapters.find(id);
      if (at == rows.adapters.end() || std::count(rows.merged.begin(), rows.merged.end(), id) > 0) continue;
      TokenRows::Rows& own = at->second;
      const Tensor values = own.delta.to(rows.weight->scalar_type());
      if (options.safe_merge && !at::isfinite(values).all().item<bool>()) {
        throw Error(ErrorCode::NUM_NONFINITE, {.tensor = rows.module,
                                               .problem = "NaN or infinity in the rows of trainable tokens",
                                               .got = "adapter \"" + impl.entry_of(id).name + "\" seems to be broken"});
      }
      own.before = rows.weight->index_select(0, own.ids);
      rows.weight->index_copy_(0, own.ids, values);
      rows.merged.push_back(id);
    }
  }
}

// In reverse: two tied embeddings are one tensor, and the first copy holds the base's rows.
void unmerge_token_rows(PeftModel::Impl& impl) {
  for (auto rows = impl.token_rows.rbegin(); rows != impl.token_rows.rend(); ++rows) {
    for (; !rows->merged.empty(); rows->merged.pop_back()) {
      TokenRows::Rows& own = rows->adapters.at(rows->merged.back());
      rows->weight->index_copy_(0, own.ids, own.before);
      own.before.reset();
    }
  }
}

}  // namespace peft::nn
