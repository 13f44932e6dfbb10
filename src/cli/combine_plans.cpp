#include "cli/combine_plans.h"

#include <algorithm>
#include <iterator>

namespace peft::cli {
namespace {

template <class T>
void append(std::vector<T>& to, std::vector<T> from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

Plan combine_plans(std::vector<std::pair<std::string, Plan>> parts) {
  Plan whole;
  for (auto& [folder, part] : parts) {
    const std::string prefix = folder.empty() ? "" : folder + "/";
    const auto first_source = static_cast<std::uint32_t>(whole.sources.size());
    for (auto& file : part.files) {
      file.name = prefix + file.name;
      for (auto& tensor : file.tensors) {
        for (auto& block : tensor.blocks) block.source.source += first_source;
      }
    }
    for (auto& [name, content] : part.texts) name = prefix + name;
    for (auto& [name, path] : part.copies) name = prefix + name;
    if (!folder.empty()) {
      for (auto& step : part.steps) step = folder + ": " + step;
      for (auto& warning : part.warnings) warning = folder + ": " + warning;
    }
    append(whole.sources, std::move(part.sources));
    append(whole.files, std::move(part.files));
    append(whole.texts, std::move(part.texts));
    append(whole.copies, std::move(part.copies));
    append(whole.steps, std::move(part.steps));
    append(whole.warnings, std::move(part.warnings));
    whole.exactness = std::max(whole.exactness, part.exactness);
    whole.bytes_in += part.bytes_in;
    whole.bytes_out += part.bytes_out;
    whole.peak_memory = std::max(whole.peak_memory, part.peak_memory);
  }
  return whole;
}

}  // namespace peft::cli
