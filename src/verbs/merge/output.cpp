#include "verbs/merge/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>

#include "base/float_formats.h"
#include "base/text.h"
#include "peft/error.h"
#include "peft/weights.h"
#include "pythonic/python_json.h"
#include "safetensors/reading/input_file.h"
#include "verbs/merge/adapters.h"

namespace peft::merging {
namespace {

namespace fs = std::filesystem;

std::int64_t product(std::span<const std::int64_t> shape) {
  std::int64_t result = 1;
  for (const std::int64_t size : shape) result *= size;
  return result;
}

// Plans the tensor as a matrix of the target's shape. The kernel of a convolution is [out, in, height, width], and its
// delta is [out, the rest].
void flatten_like(const View& target, PlannedTensor& planned) {
  const bool whole = target.offset == 0 && target.col_stride == 1 && target.row_stride == target.cols &&
                     target.rows * target.cols == planned.rows * planned.cols;
  if (!whole || planned.shape.size() < 3 || target.rows != planned.shape.front()) return;
  for (const Block& block : planned.blocks) {
    const View& view = block.source;
    if (view.rows != planned.rows || view.cols != planned.cols || view.row_stride != view.cols || view.col_stride != 1)
      return;
  }
  planned.rows = target.rows, planned.cols = target.cols;
  for (Block& block : planned.blocks)
    block.source.rows = target.rows, block.source.cols = block.source.row_stride = target.cols;
}

// Strides and offsets of stored matrices [rows, cols] where each of them lies transposed.
std::int64_t transposed_offset(std::int64_t offset, std::int64_t rows, std::int64_t cols) {
  const std::int64_t matrix = offset / (rows * cols), row = offset / cols % rows, col = offset % cols;
  return (matrix * cols + col) * rows + row;
}
std::int64_t transposed_stride(std::int64_t stride, std::int64_t rows, std::int64_t cols) {
  return stride % cols == 0 ? stride / cols : stride * rows;
}

std::uint64_t elements(const PlannedTensor& tensor) {
  return static_cast<std::uint64_t>(tensor.rows) * static_cast<std::uint64_t>(tensor.cols);
}

std::uint64_t bytes_of(const PlannedTensor& tensor) {
  return elements(tensor) * static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8;
}

using pythonic::Json;

constexpr std::array<std::pair<Dtype, const char*>, 4> kTorchNames = {
    {{Dtype::bf16, "bfloat16"}, {Dtype::f16, "float16"}, {Dtype::f32, "float32"}, {Dtype::f64, "float64"}}};

std::string torch_name(Dtype dtype) {
  for (const auto& [known, name] : kTorchNames) {
    if (known == dtype) return name;
  }
  return std::string(info(dtype).name);
}

// Sets a key in the config and in every sub-config that has it.
bool set_where_present(Json& config, const std::string& key, const Json& value, bool at_top) {
  bool changed = false;
  if (at_top || config.contains(key)) {
    changed = !config.contains(key) || config.at(key) != value;
    config[key] = value;
  }
  for (auto& [name, section] : config.items()) {
    if (section.is_object() && name != "quantization_config")
      changed = set_where_present(section, key, value, false) || changed;
  }
  return changed;
}

bool set_dtype(Json& config, Dtype dtype) {
  const Json value = torch_name(dtype);
  const bool any = config.contains("dtype") || config.contains("torch_dtype");
  bool changed = false;
  for (const char* key : {"dtype", "torch_dtype"})
    changed = set_where_present(config, key, value, !any && std::string(key) == "dtype") || changed;
  return changed;
}

// Methods whose config can name modules that are not quantised, and the key it does so by.
constexpr std::array<std::pair<const char*, const char*>, 2> kExceptions = {
    {{"fp8", "modules_to_not_convert"}, {"mxfp4", "modules_to_not_convert"}}};

void name_exceptions(Json& quantization, const FileFacts& facts, const std::string& path) {
  const std::string method = quantization.value("quant_method", std::string());
  for (const auto& [known, key] : kExceptions) {
    if (method != known) continue;
    Json list = quantization.contains(key) && quantization.at(key).is_array() ? quantization.at(key) : Json::array();
    for (const std::string& module : facts.dequantized) {
      if (std::find(list.begin(), list.end(), Json(module)) == list.end()) list.push_back(module);
    }
    quantization[key] = std::move(list);
    return;
  }
  at(path, "quantization_config")
      .fail(ErrorCode::LO_QUANT,
            {.problem = "no config of this method can say that some modules are quantised and others not",
             .expected = "quant_method fp8 or mxfp4",
             .got = method.empty() ? "none" : method,
             .hint = "leave --keep-quantized out"});
}

bool set_quantization(Json& config, const FileFacts& facts, const std::string& path) {
  if (facts.dequantized.empty()) return false;
  bool changed = false;
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (!config.contains(key)) continue;
    if (facts.kept_quantized.empty())
      config.erase(key);
    else
      name_exceptions(config.at(key), facts, path);
    changed = true;
  }
  return changed;
}

// The base's config.json with what is no longer true changed. nullopt: all of it is still true, so the file is copied.
// `dtype`: of all weights, where they were cast. Throws LO_QUANT where no config can say what is still quantised.
std::optional<std::string> changed_config(const std::string& path, const FileFacts& facts, std::optional<Dtype> dtype,
                                          std::vector<std::string>& warnings) {
  const std::string text = safetensors::read_text_file(path, ErrorCode::MD_FORM);
  Json json = pythonic::parse_json(text, path, ErrorCode::MD_FORM);
  bool changed = false;
  if (facts.untied || facts.own_output) changed = set_where_present(json, "tie_word_embeddings", false, true);
  if (facts.own_output) {
    warnings.push_back(own_output_text(path) +
                       "; the merged config.json says tie_word_embeddings = false, so that every reader does");
  } else if (facts.untied) {
    warnings.push_back(
        "input and output embedding were one tensor and only one of them changes: the output embedding is "
        "written out, and config.json says tie_word_embeddings = false");
  }
  if (dtype) changed = set_dtype(json, *dtype) || changed;
  changed = set_quantization(json, facts, path) || changed;
  if (!changed) return std::nullopt;
  return pythonic::dump_python(json, 2, false) + "\n";
}

// weight_map and totals are made anew; other metadata of the base's index (a path, or "") stays.
std::string index_text(const std::string& base_index, const std::vector<PlannedFile>& files) {
  Json index = base_index.empty() ? Json::object()
                                  : pythonic::parse_json(safetensors::read_text_file(base_index, ErrorCode::IX_FORM),
                                                         base_index, ErrorCode::IX_FORM);
  std::map<std::string, std::string> places;
  std::uint64_t bytes = 0, parameters = 0;
  for (const PlannedFile& file : files) {
    for (const PlannedTensor& tensor : file.tensors) {
      places[tensor.name] = file.name;
      bytes += bytes_of(tensor);
      parameters += elements(tensor);
    }
  }
  Json metadata =
      index.contains("metadata") && index.at("metadata").is_object() ? index.at("metadata") : Json::object();
  if (metadata.contains("total_parameters")) metadata["total_parameters"] = parameters;
  metadata["total_size"] = bytes;
  Json map = Json::object();
  for (const auto& [tensor, file] : places) map[tensor] = file;
  index["metadata"] = std::move(metadata);
  index["weight_map"] = std::move(map);
  return pythonic::dump_python(index, 2, true) + "\n";
}

struct Shard {
  std::string name;
  std::uint32_t like = 0;  // the base's file whose metadata it takes
  std::vector<std::size_t> tensors;
};

// The base's own files, each with what came from it.
std::vector<Shard> own_shards(const Checkpoint& base, const std::vector<OutTensor>& tensors) {
  std::vector<Shard> shards;
  const auto& files = base.files();
  for (std::uint32_t i = 0; i < files.size(); ++i) {
    shards.push_back({fs::path(files[i]->path()).filename().string(), i, {}});
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) shards[tensors[i].file].tensors.push_back(i);
  std::erase_if(shards, [](const Shard& shard) { return shard.tensors.empty(); });
  return shards;
}

// Splits as huggingface_hub does: in order, a new shard where the next tensor does not fit, large tensors on their own.
std::vector<Shard> new_shards(const std::vector<OutTensor>& tensors, std::uint64_t limit) {
  std::vector<std::size_t> order(tensors.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (tensors[a].file != tensors[b].file) return tensors[a].file < tensors[b].file;
    return natural_less(tensors[a].planned.name, tensors[b].planned.name);
  });
  std::vector<Shard> shards;
  Shard current;
  std::uint64_t filled = 0;
  for (const std::size_t i : order) {
    const std::uint64_t bytes = bytes_of(tensors[i].planned);
    if (bytes > limit) {
      shards.push_back({"", 0, {i}});
      continue;
    }
    if (filled + bytes > limit) {
      shards.push_back(std::move(current));
      current = {};
      filled = 0;
    }
    current.tensors.push_back(i);
    filled += bytes;
  }
  if (!current.tensors.empty()) shards.push_back(std::move(current));
  std::erase_if(shards, [](const Shard& shard) { return shard.tensors.empty(); });
  for (std::size_t i = 0; i < shards.size(); ++i) {
    shards[i].name = shards.size() == 1 ? "model.safetensors"
                                        : fmt::format("model-{:05d}-of-{:05d}.safetensors", i + 1, shards.size());
  }
  return shards;
}

bool is_weights(const fs::path& path) {
  static constexpr std::array<std::string_view, 12> kEndings = {".safetensors", ".bin",       ".pt",  ".pth",
                                                                ".ckpt",        ".gguf",      ".h5",  ".msgpack",
                                                                ".onnx",        ".onnx_data", ".npz", ".index.json"};
  const std::string name = path.filename().string();
  return std::any_of(kEndings.begin(), kEndings.end(), [&](std::string_view ending) { return name.ends_with(ending); });
}

// All files beside the weights: tokenizer, generation config, chat templates, code. A folder that holds weights is
// another form of the model ("original", "onnx") and is not copied.
class Copies {
 public:
  explicit Copies(const MergeOptions& options) : root_(options.base), follow_(options.input.open.follow_symlinks) {}

  void add(const std::string& prefix, int depth, std::vector<std::pair<std::string, std::string>>& copies) const {
    constexpr int kDepth = 4;
    std::error_code error;
    std::vector<fs::directory_entry> entries(fs::directory_iterator(fs::path(root_) / prefix, error),
                                             fs::directory_iterator{});
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.path() < b.path(); });
    const auto is_weight_file = [](const fs::directory_entry& entry) { return is_weights(entry.path()); };
    if (!prefix.empty() && std::any_of(entries.begin(), entries.end(), is_weight_file)) return;
    for (const fs::directory_entry& entry : entries) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(".") || name == "__pycache__") continue;
      if (entry.is_directory(error)) {
        if (depth < kDepth) add(prefix + name + "/", depth + 1, copies);
      } else if (!is_weights(entry.path()) && !(prefix.empty() && name == "config.json")) {
        copies.emplace_back(prefix + name, path_of(prefix + name));
      }
    }
  }
  std::string path_of(const std::string& name) const { return safetensors::path_inside(root_, name, follow_); }

 private:
  const std::string& root_;
  bool follow_;
};

void add_texts(const MergeOptions& options, const FileFacts& facts, const std::vector<Shard>& shards,
               MergePlan& result) {
  Plan& plan = result.plan;
  const fs::path folder = options.base;
  const auto dtype = options.out_dtype ? options.out_dtype : options.base_dtype;
  const auto config = changed_config((folder / "config.json").string(), facts, dtype, plan.warnings);
  if (config)
    plan.texts.emplace_back("config.json", *config);
  else
    plan.copies.emplace_back("config.json", Copies(options).path_of("config.json"));
  const fs::path index = folder / "model.safetensors.index.json";
  std::error_code error;
  const bool had_index = fs::exists(index, error);
  if (shards.size() == 1 && (!had_index || options.max_shard_size)) return;
  plan.texts.emplace_back("model.safetensors.index.json", index_text(had_index ? index.string() : "", plan.files));
}

}  // namespace

OutTensors::OutTensors(const Checkpoint& checkpoint, const std::vector<QuantizedTensor>& quantized,
                       const std::set<Number>& keep, const MergeOptions& options)
    : options_(options) {
  std::map<Number, const QuantizedTensor*> codes;
  std::set<Number> scales, kept_scales;
  for (const QuantizedTensor& tensor : quantized) {
    const Number number{tensor.codes.view.source, tensor.codes.view.tensor};
    const bool stays = keep.contains(number);
    if (!stays) codes[number] = &tensor;
    (stays ? kept_scales : scales).insert({tensor.codes.scales->grid.source, tensor.codes.scales->grid.tensor});
  }
  for (std::uint32_t file = 0; file < checkpoint.files().size(); ++file) {
    const auto tensors = checkpoint.files()[file]->tensors();
    for (std::uint32_t i = 0; i < tensors.size(); ++i) {
      if (scales.contains({file, i})) continue;
      OutTensor out;
      out.file = file, out.index = i;
      if (const auto found = codes.find({file, i}); found != codes.end()) {
        const QuantizedTensor& tensor = *found->second;
        out.planned = {tensor.name, Dtype::bf16, tensor.shape, 0, tensor.shape.back(), tensor.blocks};
        out.planned.rows = product(tensor.shape) / std::max<std::int64_t>(tensor.shape.back(), 1);
        out.dequantized = out.planned.must_be_finite = true;  // no one looked at the products before
        if (tensor.turned) out.matrix_rows = tensor.shape[2], out.matrix_cols = tensor.shape[1];
      } else {
        out.planned = copy_of(tensors[i], i, std::string(tensors[i].name), tensors[i].dtype);
        for (Block& block : out.planned.blocks) block.source.source = file;
      }
      if (tensors[i].bytes() == 0) out.planned.blocks.clear();
      out.computed = tensors[i].dtype;
      if (!kept_scales.contains({file, i})) cast(out, tensors[i].dtype);
      out.is_copy = !out.dequantized && out.planned.dtype == tensors[i].dtype;
      by_number_[{file, i}] = tensors_.size();
      tensors_.push_back(std::move(out));
    }
  }
}

OutTensors::OutTensors(std::vector<OutTensor> tensors, const MergeOptions& options)
    : options_(options), tensors_(std::move(tensors)) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) by_number_[{tensors_[i].file, tensors_[i].index}] = i;
}

// Sets the dtype that a tensor is written in. Where the values are cast twice, an empty merge records the first cast.
void OutTensors::cast(OutTensor& tensor, Dtype stored) const {
  if (!tensor.dequantized && !is_plain_float(stored)) return;
  tensor.computed = options_.base_dtype.value_or(tensor.dequantized ? Dtype::bf16 : stored);
  PlannedTensor& planned = tensor.planned;
  planned.dtype = options_.out_dtype.value_or(tensor.computed);
  const bool twice = planned.dtype != tensor.computed && (tensor.dequantized || tensor.computed != stored);
  if (twice && !planned.blocks.empty()) planned.merge = Merge{options_.mode, tensor.computed, {}};
}

OutTensors::Target OutTensors::target_of(const WeightPart& part) const {
  const std::size_t number = by_number_.at({part.view.source, part.view.tensor});
  const OutTensor& tensor = tensors_[number];
  View view = part.view;
  view.source = view.tensor = 0;
  if (tensor.matrix_rows > 0) {
    const std::int64_t rows = tensor.matrix_rows, cols = tensor.matrix_cols;
    view.offset = transposed_offset(view.offset, rows, cols);
    view.row_stride = transposed_stride(view.row_stride, rows, cols);
    view.col_stride = transposed_stride(view.col_stride, rows, cols);
  }
  return {number, view};
}

std::size_t OutTensors::add_copy(std::size_t of, std::string name) {
  OutTensor copy = tensors_[of];
  copy.planned.name = std::move(name);
  copy.parts.clear();
  tensors_.push_back(std::move(copy));
  return tensors_.size() - 1;
}

std::size_t OutTensors::add_new(const TensorInfo& tensor, std::uint32_t source, std::uint32_t number,
                                std::string name) {
  OutTensor out;
  out.file = tensors_.empty() ? 0 : tensors_.back().file;
  out.planned = copy_of(tensor, number, std::move(name), tensor.dtype);
  for (Block& block : out.planned.blocks) block.source.source = source;
  out.computed = tensor.dtype;
  cast(out, tensor.dtype);
  tensors_.push_back(std::move(out));
  return tensors_.size() - 1;
}

void OutTensors::note(std::size_t tensor, MergedPart part) {
  part.tensor = tensor;
  tensors_[tensor].is_copy = false;
  tensors_[tensor].parts.push_back(std::move(part));
}

void OutTensors::add(std::size_t tensor, Update update, MergedPart part) {
  PlannedTensor& planned = tensors_[tensor].planned;
  flatten_like(update.target, planned);
  if (!planned.merge) planned.merge = Merge{options_.mode, tensors_[tensor].computed, {}};
  part.update = static_cast<std::int64_t>(planned.merge->updates.size());
  planned.merge->updates.push_back(std::move(update));
  note(tensor, std::move(part));
}

void OutTensors::replace(std::size_t tensor, const View& source, bool keep, MergedPart part) {
  PlannedTensor& planned = tensors_[tensor].planned;
  planned.blocks = {{0, 0, 1, source, 1}};
  if (!keep) planned.merge.reset();
  note(tensor, std::move(part));
}

// The block that holds the row is cut in two around it.
void OutTensors::replace_row(std::size_t tensor, std::int64_t row, const View& source) {
  std::vector<Block>& blocks = tensors_[tensor].planned.blocks;
  const auto holds = [row](const Block& block) { return block.row <= row && row < block.row + block.source.rows; };
  const auto found = std::find_if(blocks.begin(), blocks.end(), holds);
  if (found == blocks.end()) return;
  const Block whole = *found;
  const std::int64_t before = row - whole.row, after = whole.source.rows - before - 1;
  blocks.erase(found);
  const auto cut = [&](std::int64_t first, std::int64_t count) {
    if (count == 0) return;
    Block piece = whole;
    piece.row = whole.row + first;
    piece.source = whole.source.row_range(first, count);
    blocks.push_back(piece);
  };
  cut(0, before);
  cut(before + 1, after);
  blocks.push_back({row, 0, 1, source, 1});
}

void write_files(const Checkpoint& base, const MergeOptions& options, std::vector<OutTensor>& tensors,
                 const FileFacts& facts, MergePlan& result) {
  Plan& plan = result.plan;
  const auto shards = options.max_shard_size ? new_shards(tensors, *options.max_shard_size) : own_shards(base, tensors);
  for (const Shard& shard : shards) {
    PlannedFile file;
    file.name = shard.name;
    file.metadata = base.files()[shard.like]->metadata();
    file.metadata.try_emplace("format", "pt");
    if (!facts.record.empty()) file.metadata[kMergedKey] = facts.record;
    for (const std::size_t i : shard.tensors) {
      for (MergedPart& part : tensors[i].parts) {
        part.file = plan.files.size();
        part.tensor = file.tensors.size();
        result.parts.push_back(std::move(part));
      }
      file.tensors.push_back(std::move(tensors[i].planned));
    }
    plan.files.push_back(std::move(file));
  }
  add_texts(options, facts, shards, result);
  Copies(options).add("", 0, plan.copies);
}

}  // namespace peft::merging
