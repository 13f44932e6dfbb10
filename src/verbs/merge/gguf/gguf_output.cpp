#include "verbs/merge/gguf/gguf_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>

#include "base/float_formats.h"
#include "gguf/types/block_formats.h"
#include "peft/error.h"
#include "verbs/merge/adapters.h"

namespace peft::merging {
namespace {

using gguf::GgmlType;
using gguf::GgufFile;

constexpr std::string_view kQuantizationVersion = "general.quantization_version";
constexpr std::uint32_t kQuantization = 2;  // what ggml calls its present blocks

bool is_quantised(GgmlType type) { return gguf::info(type).block > 1; }

// The converter keeps vectors and routers in F32, whatever the file's type is.
bool keeps_own_type(const TensorInfo& tensor) {
  return tensor.shape.size() < 2 || tensor.name.find(".ffn_gate_inp") != std::string_view::npos;
}

void set_value(gguf::KeyValues& values, std::string_view key, gguf::Value value) {
  const auto found = std::ranges::find(values, key, [](const auto& pair) { return std::string_view(pair.first); });
  if (found == values.end())
    values.emplace_back(key, std::move(value));
  else
    found->second = std::move(value);
}

// Counts the tensors that change from one type to another.
class Changes {
 public:
  void add(GgmlType from, GgmlType to, std::uint64_t before, std::uint64_t after) {
    ++counts_[{gguf::info(from).name, gguf::info(to).name}];
    if (!is_quantised(from) || is_quantised(to)) return;
    ++unpacked_;
    before_ += before, after_ += after;
  }
  void say(const MergeOptions& options, Plan& plan) const {
    for (const auto& [types, count] : counts_) {
      if (types.first == types.second && !options.keep_quantized) continue;
      plan.steps.push_back(types.first == types.second
                               ? fmt::format("{} tensors change and stay {}", count, types.first)
                               : fmt::format("{} tensors change from {} to {}", count, types.first, types.second));
    }
    if (unpacked_ == 0) return;
    plan.warnings.push_back(
        fmt::format("the base is quantised: {} tensors change, and are written in {:.1f} times their bytes{}",
                    unpacked_, static_cast<double>(after_) / static_cast<double>(std::max<std::uint64_t>(before_, 1)),
                    options.keep_quantized ? ", as no such type can be written"
                                           : " (--keep-quantized writes Q8_0, Q4_0 and MXFP4 as they were)"));
  }

 private:
  std::map<std::pair<std::string_view, std::string_view>, std::size_t> counts_;
  std::uint64_t unpacked_ = 0, before_ = 0, after_ = 0;
};

// A tensor that changes is computed, so that its blocks are read as values and not moved.
void set_type(const GgufModel& base, OutTensor& tensor, GgmlType type) {
  PlannedTensor& planned = tensor.planned;
  planned.packing.reset();
  planned.dtype = gguf::info(type).dtype;
  if (is_quantised(type)) planned.packing = type, planned.dtype = Dtype::f32;
  bool decodes = false;
  for (Block& block : planned.blocks) {
    const View& view = block.source;
    if (view.source >= base.files().size()) continue;  // an adapter's
    if (is_float(base.files()[view.source]->tensors()[view.tensor].dtype)) continue;
    block.scales = Scales{.kind = Scales::Kind::ggml, .grid = {}};
    decodes = true;
  }
  planned.must_be_finite = decodes || planned.packing.has_value();
  tensor.dequantized = decodes && !planned.packing;
}

// The keys of an output file: those of the base's own one, and what was merged.
gguf::KeyValues values_of(const GgufFile& file, const PlannedFile& planned, bool joined, std::size_t tensors) {
  gguf::KeyValues values = file.values();
  if (joined) std::erase_if(values, [](const auto& pair) { return pair.first.starts_with("split."); });
  if (gguf::find_value(values, "split.tensors.count") != nullptr) {
    std::string count(sizeof(std::int32_t), '\0');
    const auto number = static_cast<std::int32_t>(tensors);
    std::copy_n(reinterpret_cast<const char*>(&number), sizeof number, count.begin());
    set_value(values, "split.tensors.count", {.type = gguf::ValueType::i32, .bytes = count});
  }
  const bool packs = std::ranges::any_of(planned.tensors, [](const PlannedTensor& t) { return t.packing.has_value(); });
  if (packs && gguf::find_value(values, kQuantizationVersion) == nullptr)
    set_value(values, kQuantizationVersion, gguf::u32_value(kQuantization));
  return values;
}

}  // namespace

GgmlType written_type(const GgufFile& file, const TensorInfo& tensor, const MergeOptions& options) {
  const GgmlType own = file.type_of(tensor);
  if (keeps_own_type(tensor)) return is_quantised(own) ? GgmlType::f32 : own;
  if (options.keep_quantized && gguf::can_pack(own)) return own;
  GgmlType wanted = is_quantised(own) ? GgmlType::f16 : own;
  if (options.out_dtype) wanted = gguf::ggml_type_of(*options.out_dtype).value_or(wanted);
  if (options.out_q8_0) wanted = GgmlType::q8_0;
  return gguf::fills_blocks(wanted, tensor.shape) ? wanted : GgmlType::f16;  // as llama.cpp's converter does
}

OutTensors tensors_of(const GgufModel& base, const MergeOptions& options) {
  std::vector<OutTensor> result;
  for (std::uint32_t file = 0; file < base.files().size(); ++file) {
    const auto tensors = base.files()[file]->tensors();
    for (std::uint32_t i = 0; i < tensors.size(); ++i) {
      const GgmlType own = base.files()[file]->type_of(tensors[i]);
      OutTensor& out = result.emplace_back();
      out.file = file, out.index = i;
      out.planned = copy_of(tensors[i], i, std::string(tensors[i].name), tensors[i].dtype);
      for (Block& block : out.planned.blocks) block.source.source = file;
      if (tensors[i].bytes() == 0) out.planned.blocks.clear();
      if (is_quantised(own)) out.planned.packing = own;
      const bool computed_in_f32 =
          is_quantised(own) || is_quantised(written_type(*base.files()[file], tensors[i], options));
      out.computed = options.base_dtype.value_or(computed_in_f32 ? Dtype::f32 : tensors[i].dtype);
    }
  }
  return {std::move(result), options};
}

Metadata merged_before(const GgufFile& file) {
  const gguf::Value* value = gguf::find_value(file.values(), kMergedKey);
  if (value == nullptr || !gguf::as_text(*value)) return {};
  return {{kMergedKey, std::string(*gguf::as_text(*value))}};
}

void set_types(const GgufModel& base, const MergeOptions& options, std::vector<OutTensor>& tensors, Plan& plan) {
  Changes changes;
  for (OutTensor& tensor : tensors) {
    if (tensor.is_copy) continue;
    const GgufModel::Number number{tensor.file, tensor.index};
    const GgufFile& file = *base.files()[number.first];
    const TensorInfo& own = base.info(number);
    const GgmlType type = written_type(file, own, options);
    set_type(base, tensor, type);
    if (tensor.planned.packing) plan.exactness = Exactness::lossy;
    changes.add(file.type_of(own), type, own.bytes(), tensor.planned.bytes());
  }
  changes.say(options, plan);
}

void write_gguf_files(const GgufModel& base, const MergeOptions& options, std::vector<OutTensor>& tensors,
                      const std::string& record, MergePlan& result) {
  Plan& plan = result.plan;
  const bool joined = options.one_file && base.files().size() > 1;
  const std::size_t files = joined ? 1 : base.files().size();
  plan.files.resize(files);
  for (OutTensor& tensor : tensors) {
    const std::size_t at = joined ? 0 : tensor.file;
    for (MergedPart& part : tensor.parts) {
      part.file = at, part.tensor = plan.files[at].tensors.size();
      result.parts.push_back(std::move(part));
    }
    plan.files[at].tensors.push_back(std::move(tensor.planned));
  }
  for (std::size_t i = 0; i < files; ++i) {
    PlannedFile& file = plan.files[i];
    file.name = std::filesystem::path(base.files()[i]->path()).filename().string();
    auto values = std::make_shared<gguf::TypedMetadata>();
    values->values = values_of(*base.files()[i], file, joined, tensors.size());
    if (i == 0) set_value(values->values, kMergedKey, gguf::text_value(record));
    file.gguf = std::move(values);
  }
  plan.single_file = files == 1;
}

}  // namespace peft::merging
