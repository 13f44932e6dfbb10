#include "peft/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <ostream>

#include "gguf/file_layout.h"
#include "gguf/types/ggml_type.h"
#include "peft/error.h"
#include "safetensors/writing/file_layout.h"

namespace peft {
namespace {

template <class T>
void append_list(std::vector<T>& to, std::vector<T> from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

// ---- what --dry-run prints: one screen, whatever the size of the plan

constexpr std::size_t kLines = 12;  // of each list; the rest is counted

// 805306368 -> "805,306,368"
std::string grouped(std::uint64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text.push_back(',');
    text.push_back(digits[i]);
  }
  return text;
}

std::string human(std::uint64_t bytes) {
  constexpr std::array<std::string_view, 5> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.{}f} {}", value, value < 100 ? 1 : 0, kUnits[unit]);
}

std::string size_text(std::uint64_t bytes) {
  return bytes < 1024 ? fmt::format("{} bytes", bytes) : fmt::format("{} bytes ({})", grouped(bytes), human(bytes));
}

std::string_view meaning(Exactness exactness) {
  switch (exactness) {
    case Exactness::bit_exact:
      return "every value keeps its bytes";
    case Exactness::value_exact:
      return "no value changes: zeros are added or a scale moves by a power of two";
    case Exactness::rounded:
      return "some values are rounded once";
    case Exactness::lossy:
      return "some values are approximated, as asked for";
  }
  return "";
}

// At most kLines of a list, indented, then how many are left out.
template <class List, class Line>
void print_list(std::ostream& out, const List& list, const Line& line) {
  std::size_t shown = 0;
  for (const auto& item : list) {
    if (shown++ == kLines) break;
    out << "  " << line(item) << '\n';
  }
  if (list.size() > kLines) out << "  ... and " << list.size() - kLines << " more\n";
}

std::string file_line(const PlannedFile& file) {
  const std::size_t tensors = file.tensors.size();
  return fmt::format("{}: {} tensor{}, {}", printable(file.name), grouped(tensors), tensors == 1 ? "" : "s",
                     size_text(layout_file(file).file_bytes()));
}

FileLayout layout_gguf_file(const PlannedFile& file) {
  std::vector<gguf::NewGgufTensor> tensors;
  tensors.reserve(file.tensors.size());
  for (const PlannedTensor& tensor : file.tensors) {
    const auto plain = gguf::ggml_type_of(tensor.dtype).value_or(gguf::GgmlType::f32);
    tensors.push_back({tensor.name, tensor.packing.value_or(plain), tensor.shape});
  }
  return gguf::layout_gguf(tensors, file.gguf->values);
}

}  // namespace

std::uint64_t PlannedTensor::bytes() const {
  const auto elements = static_cast<std::uint64_t>(rows * cols);
  if (packing)
    return elements / static_cast<std::uint64_t>(gguf::info(*packing).block) * gguf::info(*packing).block_bytes;
  return elements * static_cast<std::uint64_t>(info(dtype).bits) / 8;
}

std::string_view type_name(const PlannedTensor& tensor) {
  return tensor.packing ? gguf::info(*tensor.packing).name : info(tensor.dtype).name;
}

PlannedTensor copy_of(const TensorInfo& tensor, std::uint32_t index, std::string name, Dtype dtype) {
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
  const std::int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  return {std::move(name),
          dtype,
          {tensor.shape.begin(), tensor.shape.end()},
          rows,
          cols,
          {{0, 0, 1, View{0, index, 0, rows, cols, cols, 1}, 1.0}}};
}

FileLayout layout_file(const PlannedFile& file) {
  if (file.gguf) return layout_gguf_file(file);
  std::vector<TensorInfo> tensors;
  tensors.reserve(file.tensors.size());
  for (const PlannedTensor& tensor : file.tensors) tensors.push_back({tensor.name, tensor.dtype, {}, tensor.shape});
  return file_layout_for(tensors, file.metadata);
}

std::uint64_t bytes_read(const Plan& plan) {
  std::vector<std::vector<bool>> is_read;
  for (const auto& source : plan.sources) is_read.emplace_back(source->tensors().size());
  std::uint64_t bytes = 0;
  for (const PlannedFile& file : plan.files) {
    for (const PlannedTensor& tensor : file.tensors) {
      for_each_source(tensor, [&](const View& view) {
        if (is_read[view.source][view.tensor]) return;
        is_read[view.source][view.tensor] = true;
        bytes += plan.sources[view.source]->tensors()[view.tensor].bytes();
      });
    }
  }
  return bytes;
}

std::vector<FileLayout> set_cost(Plan& plan) {
  std::vector<FileLayout> layouts;
  plan.bytes_in = bytes_read(plan);
  plan.bytes_out = 0;
  plan.peak_memory = kMaxStagingBytes;
  for (const PlannedFile& file : plan.files) {
    layouts.push_back(layout_file(file));
    plan.bytes_out += layouts.back().file_bytes();
    plan.peak_memory += layouts.back().head.size();
  }
  for (const auto& [name, text] : plan.texts) plan.bytes_out += text.size();
  for (const auto& source : plan.sources) plan.peak_memory += source->data_offset();
  return layouts;
}

void append(Plan& plan, Plan part, const std::string& folder) {
  const std::string prefix = folder.empty() ? "" : folder + "/", named = folder.empty() ? "" : folder + ": ";
  const auto first_source = static_cast<std::uint32_t>(plan.sources.size());
  for (PlannedFile& file : part.files) {
    file.name = prefix + file.name;
    for (PlannedTensor& tensor : file.tensors)
      for_each_source(tensor, [&](View& view) { view.source += first_source; });
  }
  for (auto& [name, content] : part.texts) name = prefix + name;
  for (auto& [name, path] : part.copies) name = prefix + name;
  for (std::string& step : part.steps) step = named + step;
  for (std::string& warning : part.warnings) warning = named + warning;
  append_list(plan.sources, std::move(part.sources));
  append_list(plan.files, std::move(part.files));
  append_list(plan.texts, std::move(part.texts));
  append_list(plan.copies, std::move(part.copies));
  append_list(plan.steps, std::move(part.steps));
  append_list(plan.warnings, std::move(part.warnings));
  plan.exactness = std::max(plan.exactness, part.exactness);
  plan.bytes_in += part.bytes_in;
  plan.bytes_out += part.bytes_out;
  plan.peak_memory = std::max(plan.peak_memory, part.peak_memory);
  plan.single_file = plan.single_file || part.single_file;
}

std::string_view name(Exactness exactness) {
  switch (exactness) {
    case Exactness::bit_exact:
      return "bit-exact";
    case Exactness::value_exact:
      return "value-exact";
    case Exactness::rounded:
      return "rounded";
    case Exactness::lossy:
      return "lossy";
  }
  return "";
}

std::ostream& operator<<(std::ostream& out, const Plan& plan) {
  out << "writes\n";
  print_list(out, plan.files, file_line);
  print_list(out, plan.texts, [](const auto& text) {
    return fmt::format("{}: {}", printable(text.first), size_text(text.second.size()));
  });
  print_list(out, plan.copies, [](const auto& copy) {
    return fmt::format("{}: copy of {}", printable(copy.first), printable(copy.second, 4096));
  });
  if (!plan.steps.empty()) {
    out << "steps\n";
    print_list(out, plan.steps, [](const std::string& step) { return printable(step, 1000); });
  }
  out << "exactness: " << name(plan.exactness) << " (" << meaning(plan.exactness) << ")\n";
  out << "in: " << size_text(plan.bytes_in) << ", out: " << size_text(plan.bytes_out)
      << ", peak memory: " << size_text(plan.peak_memory) << '\n';
  if (!plan.warnings.empty()) {
    out << "warnings\n";
    print_list(out, plan.warnings, [](const std::string& warning) { return printable(warning, 1000); });
  }
  return out;
}

}  // namespace peft
