#include "model/same_prefixes.h"

#include "model/index.h"

namespace peft::model {

std::vector<std::string> other_names(const Model& model, std::string_view module) {
  std::vector<std::string> names;
  if (!model.index || !model.index->table || model.index->family) return names;
  const auto add = [&](const std::string& from, const std::string& to) {
    if (module.starts_with(from)) names.push_back(to + std::string(module.substr(from.size())));
  };
  for (const auto& [one, other] : model.index->table->same_prefixes) {
    add(one, other);
    add(other, one);
  }
  return names;
}

}  // namespace peft::model
