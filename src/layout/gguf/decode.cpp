#include "layout/gguf/decode.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "base/text.h"
#include "gguf/gguf_file.h"
#include "layout/decode/components.h"
#include "layout/decode/named_pair.h"
#include "peft/error.h"

namespace peft::layout {
namespace {

const gguf::GgufFile& file_of(const Adapter& adapter) { return dynamic_cast<const gguf::GgufFile&>(*adapter.weights); }

const GgufExperts* find_experts_row(std::string_view tensor) {
  const auto rows = gguf_experts();
  const auto found = std::ranges::find(rows, tensor, &GgufExperts::name);
  return found == rows.end() ? nullptr : &*found;
}

// Whether the file's tensors could be those of a model with these names.
bool may_be(const GgufNames& names, const Adapter& adapter) {
  return std::ranges::all_of(adapter.weights->tensors(), [&](const TensorInfo& tensor) {
    const auto key = parse_gguf_key(tensor.name);
    if (!key) return true;
    return find_experts_row(key->tensor) != nullptr ? !names.experts.empty()
                                                    : names.find_tensor(key->tensor) != nullptr;
  });
}

// Turns rows that alternate between the halves of each head into halves that follow each other.
std::vector<std::byte> rows_in_order(std::span<const std::byte> bytes, std::int64_t rows, std::int64_t heads) {
  std::vector<std::byte> result(bytes.size());
  const std::size_t row_bytes = bytes.size() / static_cast<std::size_t>(rows);
  const std::int64_t half = rows / heads / 2;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t block = row / half, head = block / 2, from = head * 2 * half + 2 * (row % half) + block % 2;
    std::memcpy(result.data() + static_cast<std::size_t>(row) * row_bytes,
                bytes.data() + static_cast<std::size_t>(from) * row_bytes, row_bytes);
  }
  return result;
}

class GgufDecoder {
 public:
  explicit GgufDecoder(Context& context)
      : context_(context),
        names_(gguf_names_of(context.adapter, context.model.model_type)),
        prefix_(layers_prefix(context.model, names_)),
        alpha_(alpha_of(file_of(context.adapter))) {}

  void run();

 private:
  struct Pair {
    std::int64_t layer = -1;
    std::string_view tensor;
    std::uint32_t a = kNoTensor, b = kNoTensor;
  };

  static double alpha_of(const gguf::GgufFile& file);
  std::vector<Pair> pairs();
  void leave_out(const Pair& pair, ErrorCode code, const std::string& reason);
  bool is_whole(const Pair& pair);
  void experts(const Pair& pair, const GgufExperts& row);
  bool has_blocks(const Pair& pair) const;
  void dense(const Pair& pair, const GgufNames::Tensor& tensor);
  void require_form(const Pair& pair, std::size_t dimensions) const;
  void require_halves(const Pair& pair, std::int64_t parts) const;
  // llama.cpp takes an alpha of 0, or none, for a scale of 1.
  double scale(std::int64_t rank) const { return alpha_ == 0 ? 1 : alpha_ / static_cast<double>(rank); }

  Context& context_;
  const GgufNames& names_;
  std::string prefix_;
  double alpha_;
  std::set<std::pair<std::int64_t, Projection>> found_;  // of experts, by layer
};

double GgufDecoder::alpha_of(const gguf::GgufFile& file) {
  constexpr std::string_view kKey = "adapter.lora.alpha";
  const gguf::Value* value = gguf::find_value(file.values(), kKey);
  if (value == nullptr) return 0;
  if (value->type != gguf::ValueType::f32) {
    peft::at(file.path(), std::string(kKey))
        .fail(ErrorCode::GG_VALUE, {.problem = "the key has another type than llama.cpp reads",
                                    .expected = "f32",
                                    .got = gguf::describe(*value)});
  }
  return *gguf::as_number(*value);
}

std::vector<GgufDecoder::Pair> GgufDecoder::pairs() {
  std::map<std::pair<std::int64_t, std::string_view>, Pair> found;
  const auto tensors = context_.adapter.weights->tensors();
  for (std::uint32_t i = 0; i < tensors.size(); ++i) {
    const auto key = parse_gguf_key(tensors[i].name);
    if (!key) {
      context_.unused.push_back({std::string(tensors[i].name), ErrorCode::LO_SUFFIX, "not a LoRA tensor"});
      continue;
    }
    Pair& pair = found[{key->layer, key->tensor}];
    pair.layer = key->layer, pair.tensor = key->tensor;
    (key->half == 'a' ? pair.a : pair.b) = i;
  }
  std::vector<Pair> result;
  for (const auto& [place, pair] : found) result.push_back(pair);
  return result;
}

void GgufDecoder::leave_out(const Pair& pair, ErrorCode code, const std::string& reason) {
  for (const std::uint32_t part : {pair.a, pair.b})
    if (part != kNoTensor) context_.unused.push_back({std::string(context_.tensor(part).name), code, reason});
}

bool GgufDecoder::is_whole(const Pair& pair) {
  if (pair.a != kNoTensor && pair.b != kNoTensor) return true;
  const std::string missing = gguf_tensor_name(pair.layer, pair.tensor) + (pair.a == kNoTensor ? ".lora_a" : ".lora_b");
  if (!context_.options.ignore_unused) {
    context_.at(pair.a == kNoTensor ? pair.b : pair.a)
        .fail(ErrorCode::LO_PAIR, {.problem = "this tensor stands alone",
                                   .expected = missing,
                                   .got = "no such tensor",
                                   .hint = "a damaged or partial file; --ignore-unused goes on without it"});
  }
  leave_out(pair, ErrorCode::LO_PAIR, "its partner " + missing + " is missing");
  return false;
}

void GgufDecoder::require_form(const Pair& pair, std::size_t dimensions) const {
  const TensorInfo &a = context_.tensor(pair.a), &b = context_.tensor(pair.b);
  for (const std::uint32_t part : {pair.a, pair.b}) {
    const TensorInfo& tensor = context_.tensor(part);
    if (tensor.dtype == Dtype::f32 || tensor.dtype == Dtype::f16 || tensor.dtype == Dtype::bf16 ||
        tensor.dtype == Dtype::f64)
      continue;
    context_.at(part).fail(ErrorCode::GG_TYPE, {.problem = "LoRA factors of this type cannot be read",
                                                .expected = "F32, F16, BF16 or F64",
                                                .got = std::string(tensor.dtype_name),
                                                .hint = "convert the adapter to GGUF again, with --outtype f16"});
  }
  const bool of_tokens = pair.tensor == "token_embd";  // its lora_a is transposed
  const auto rank_of = [&](const TensorInfo& tensor, bool last) {
    return last ? tensor.shape.back() : tensor.shape[tensor.shape.size() - 2];
  };
  const bool shaped = a.shape.size() == dimensions && b.shape.size() == dimensions;
  const bool fits = shaped && rank_of(a, of_tokens) == rank_of(b, true) &&
                    (dimensions == 2 || a.shape[0] == b.shape[0]) &&
                    std::ranges::none_of(a.shape, [](auto n) { return n == 0; }) &&
                    std::ranges::none_of(b.shape, [](auto n) { return n == 0; });
  if (fits) return;
  context_.at(pair.a).fail(ErrorCode::LO_SHAPE,
                           {.problem = "lora_a and lora_b do not fit each other",
                            .expected = dimensions == 3 ? "a [E, r, in], b [E, out, r]"
                                        : of_tokens     ? "a [tokens, r], b [out, r]"
                                                        : "a [r, in], b [out, r]",
                            .got = fmt::format("a {}, b {}", shape_text(a.shape), shape_text(b.shape))});
}

void GgufDecoder::require_halves(const Pair& pair, std::int64_t parts) const {
  const std::int64_t out = context_.tensor(pair.b).shape[1];
  if (out % parts == 0) return;
  context_.at(pair.b).fail(ErrorCode::LO_SHAPE, {.problem = "gate and up together have an odd number of rows",
                                                 .expected = "2 I rows",
                                                 .got = std::to_string(out)});
}

// Columns of lora_b that one half of its rows uses: where gate and up do not share lora_a, each has half of the rank.
std::pair<std::int64_t, std::int64_t> used_columns(const std::vector<bool>& used) {
  const auto first = std::ranges::find(used, true) - used.begin();
  const auto last = used.rend() - std::find(used.rbegin(), used.rend(), true);
  return first < last ? std::pair<std::int64_t, std::int64_t>{first, last}
                      : std::pair<std::int64_t, std::int64_t>{0, 0};
}

// Whether gate and up of every expert have a half of the rank each.
bool GgufDecoder::has_blocks(const Pair& pair) const {
  const TensorInfo& b = context_.tensor(pair.b);
  const std::int64_t out = b.shape[1], rank = b.shape[2], half = rank / 2;
  const std::size_t bytes = b.bytes() / static_cast<std::size_t>(b.shape[0]);
  if (rank % 2 != 0) return false;
  for (std::int64_t expert = 0; expert < b.shape[0]; ++expert) {
    const StoredMatrix matrix{
        context_.adapter.weights->bytes(b).subspan(static_cast<std::size_t>(expert) * bytes, bytes), b.dtype, out,
        rank};
    const auto gate = used_columns(nonzero_columns(matrix, 0, out / 2)),
               up = used_columns(nonzero_columns(matrix, out / 2, out));
    if (gate.second > half || (up.first < half && up.second != 0)) return false;
  }
  return true;
}

void GgufDecoder::experts(const Pair& pair, const GgufExperts& row) {
  const std::string module = gguf_module_path(prefix_, pair.layer, names_.experts);
  if (pair.layer < 0 || names_.experts.empty() || experts_at(context_.model, module) == nullptr)
    return leave_out(pair, ErrorCode::LO_TARGET, "the model has no experts " + module);
  const auto parts = static_cast<std::int64_t>(row.projections.size());
  require_form(pair, 3);
  require_halves(pair, parts);
  const TensorInfo &a = context_.tensor(pair.a), &b = context_.tensor(pair.b);
  const std::int64_t rank = a.shape[1], in = a.shape[2], out = b.shape[1], rows = out / parts;
  const std::int64_t width = parts == 2 && has_blocks(pair) ? rank / 2 : rank;
  for (std::int64_t part = 0; part < parts; ++part) {
    const Projection projection = row.projections[static_cast<std::size_t>(part)];
    if (!found_.insert({pair.layer, projection}).second) {
      context_.at(pair.a).fail(ErrorCode::LO_AMBIG,
                               {.problem = "two tensors stand for the same thing",
                                .got = fmt::format("{} of layer {}", name(projection), pair.layer)});
    }
    const std::int64_t begin = width == rank ? 0 : part * width;
    NamedPair named;
    named.module = module, named.projection = projection, named.experts = a.shape[0];
    named.a = View{0, pair.a, 0, rank, in, in, 1}.row_range(begin, width);
    named.b = View{0, pair.b, 0, out, rank, rank, 1}.row_range(part * rows, rows).col_range(begin, width);
    named.a_step = rank * in, named.b_step = out * rank;
    named.scale = scale(rank);
    add_pair(context_, named);
  }
}

void GgufDecoder::dense(const Pair& pair, const GgufNames::Tensor& tensor) {
  require_form(pair, 2);
  if (tensor.permuted && !file_of(context_.adapter).has_replacement(pair.b))
    context_.at(pair.b).fail(ErrorCode::INTERNAL, {.problem = "the rows of a GGUF file were not put in order"});
  const TensorInfo &a = context_.tensor(pair.a), &b = context_.tensor(pair.b);
  NamedPair named;
  named.module = gguf_module_path(prefix_, pair.layer, tensor.module);
  named.embedding = pair.tensor == "token_embd";
  named.a = {0, pair.a, 0, a.shape[0], a.shape[1], a.shape[1], 1};
  if (named.embedding) named.a = named.a.transposed();
  named.b = {0, pair.b, 0, b.shape[0], b.shape[1], b.shape[1], 1};
  named.scale = scale(b.shape[1]);
  add_pair(context_, named);
}

void GgufDecoder::run() {
  for (const Pair& pair : pairs()) {
    if (!is_whole(pair)) continue;
    if (const GgufExperts* row = find_experts_row(pair.tensor)) {
      experts(pair, *row);
    } else if (const auto* tensor = names_.find_tensor(pair.tensor)) {
      dense(pair, *tensor);
    } else {
      leave_out(pair, ErrorCode::LO_TARGET,
                fmt::format("no module of {} has this name in llama.cpp", context_.model.model_type));
    }
  }
  context_.reading.layout = Layout::gguf;
  context_.reading.evidence.push_back("a GGUF file of type adapter, for architecture " + names_.architecture);
  if (alpha_ == 0)
    context_.reading.anomalies.push_back("adapter.lora.alpha is 0 or missing: llama.cpp takes the scale as 1");
}

}  // namespace

const GgufNames& gguf_names_of(const Adapter& adapter, const std::string& model_type) {
  const gguf::GgufFile& file = file_of(adapter);
  const gguf::Value* value = gguf::find_value(file.values(), "general.architecture");
  const std::string architecture(value == nullptr ? std::string_view() : gguf::as_text(*value).value_or(""));
  const GgufNames *first = nullptr, *fitting = nullptr, *named = find_gguf_names(model_type);
  for (const GgufNames& names : all_gguf_names()) {
    if (names.architecture != architecture) continue;
    if (first == nullptr) first = &names;
    const bool better = fitting == nullptr || (names.prefix == "model" && fitting->prefix != "model");
    if (better && may_be(names, adapter)) fitting = &names;
  }
  if (first == nullptr) {
    peft::at(file.path(), "general.architecture")
        .fail(ErrorCode::MD_FAMILY, {.problem = "this architecture of llama.cpp is not known",
                                     .expected = "one that data/gguf_names.json has",
                                     .got = architecture.empty() ? "no such key" : printable(architecture)});
  }
  if (!model_type.empty() && (named == nullptr || named->architecture != architecture)) {
    peft::at(file.path(), "general.architecture")
        .fail(ErrorCode::MD_FAMILY, {.problem = "the file is for another architecture than the model's",
                                     .expected = named == nullptr ? "none: llama.cpp has no model of type " + model_type
                                                                  : named->architecture + ", for " + model_type,
                                     .got = printable(architecture)});
  }
  return !model_type.empty() ? *named : fitting != nullptr ? *fitting : *first;
}

std::vector<std::string> gguf_module_names(const Adapter& adapter, const GgufNames& names) {
  std::vector<std::string> modules;
  for (const TensorInfo& tensor : adapter.weights->tensors()) {
    const auto key = parse_gguf_key(tensor.name);
    if (!key || key->half != 'a') continue;
    const auto* known = names.find_tensor(key->tensor);
    if (find_experts_row(key->tensor) != nullptr && !names.experts.empty())
      modules.push_back(gguf_module_path(names.prefix, key->layer, names.experts));
    else if (known != nullptr)
      modules.push_back(gguf_module_path(names.prefix, key->layer, known->module));
  }
  std::ranges::sort(modules);
  modules.erase(std::unique(modules.begin(), modules.end()), modules.end());
  return modules;
}

std::shared_ptr<const TensorFile> with_rows_in_order(const Adapter& adapter, const Model& model) {
  if (adapter.form != AdapterForm::gguf) return adapter.weights;
  const gguf::GgufFile& file = file_of(adapter);
  const GgufNames& names = gguf_names_of(adapter, model.model_type);
  gguf::GgufFile::Replacements replacements;
  const auto tensors = file.tensors();
  for (std::uint32_t i = 0; i < tensors.size(); ++i) {
    const auto key = parse_gguf_key(tensors[i].name);
    const auto* known = key && key->half == 'b' ? names.find_tensor(key->tensor) : nullptr;
    if (known == nullptr || !known->permuted || tensors[i].shape.empty()) continue;
    const std::int64_t rows = tensors[i].shape[0],
                       heads = key->tensor == "attn_k" ? model.num_kv_heads : model.num_heads;
    if (heads == 0) {
      peft::at(file.path(), std::string(tensors[i].name))
          .fail(ErrorCode::MD_NEEDED,
                {.problem =
                     "llama.cpp reorders the rows of this tensor by attention heads, and their number is not known",
                 .expected = "--base with the model (its config.json is enough)"});
    }
    if (rows == 0 || rows % (2 * heads) != 0) {
      peft::at(file.path(), std::string(tensors[i].name))
          .fail(ErrorCode::LO_SHAPE, {.problem = "the rows are no whole heads",
                                      .expected = fmt::format("a multiple of {}", 2 * heads),
                                      .got = std::to_string(rows),
                                      .hint = "is this the right base model?"});
    }
    replacements.emplace_back(i, rows_in_order(file.bytes(tensors[i]), rows, heads));
  }
  return replacements.empty() ? adapter.weights : file.with(std::move(replacements));
}

void decode_gguf(Context& context) { GgufDecoder(context).run(); }

}  // namespace peft::layout
