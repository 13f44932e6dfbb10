#include "layout/gguf/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "base/text.h"
#include "gguf/file_layout.h"
#include "layout/encode/stack.h"
#include "layout/encode/write_config.h"
#include "layout/gguf/names.h"
#include "peft/error.h"

namespace peft::layout {
namespace {

constexpr std::int64_t kAfterLayers = std::numeric_limits<std::int64_t>::max();

// A pair of tensors that will be written.
struct NewPair {
  std::int64_t layer = kAfterLayers;
  std::size_t order = 0;  // within the layer
  std::string name{};     // of the weight
  std::int64_t experts = 0, rank = 0, in = 0, out = 0;
  std::int64_t heads = 0;  // the rows of B alternate between the halves of each head
  bool embedding = false;  // lora_a is transposed
  struct Part {
    const Factor* factor = nullptr;
    std::int64_t expert = 0, rank_at = 0, out_at = 0;
    bool with_a = true;  // false: another part has written the same A
  };
  std::vector<Part> parts{};
};

// The matrix of every expert as a row of one matrix, where they lie at equal distances and without gaps of their own:
// one block serves all of them.
std::optional<View> as_rows(const std::vector<View>& views) {
  const View& first = views.front();
  const bool flat = first.rows == 1 || first.row_stride == first.cols * first.col_stride;
  const std::int64_t step = views.size() > 1 ? views[1].offset - first.offset : 0;
  if (!flat || views.size() < 2 || step < 0) return std::nullopt;
  View expected = first;
  for (const View& view : views) {
    if (view != expected) return std::nullopt;
    expected.offset += step;
  }
  const std::int64_t col_stride = first.cols == 1 ? first.row_stride : first.col_stride;
  return View{
      first.source, first.tensor, first.offset, static_cast<std::int64_t>(views.size()), first.rows * first.cols,
      step,         col_stride};
}

class GgufEncoder {
 public:
  GgufEncoder(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options)
      : factors_(factors), model_(model), file_(file), options_(options), base_(options.gguf_base.get()) {
    for (const Experts& experts : model.experts) experts_.emplace(experts_module(experts), &experts);
    for (const ExpertCount& count : factors.expert_counts) counts_[count.module] = count.count;
  }

  Encoded run();

 private:
  using Group = std::span<const Factor>;

  void choose_names();
  void dense(const Factor& factor);
  void experts(Group group);
  void stack(NewPair pair, Group group, std::span<const Projection> projections, std::int64_t count);
  std::int64_t layer_of(const std::string& module, std::string& below) const;
  std::int64_t heads_of(const GgufNames::Tensor& tensor, const Factor& factor) const;
  std::int64_t base_number(std::string_view key) const;
  void require_in_base(const NewPair& pair) const;
  double choose_alpha() const;
  double alpha_of(double scale, std::int64_t rank) const;
  void write(const NewPair& pair);
  void put_a(PlannedTensor& a, const NewPair& pair) const;
  void put_b(PlannedTensor& b, const NewPair& pair);
  static void put_heads(PlannedTensor& b, const NewPair& pair, double gain);
  double gain_of(const NewPair& pair, const Factor& factor) const;
  PlannedTensor new_tensor(std::string name, std::vector<std::int64_t> shape, Dtype dtype);
  Dtype dtype_of(const View& view) const { return file_ == nullptr ? Dtype::f32 : file_->tensors()[view.tensor].dtype; }
  Dtype dtype_for(const NewPair& pair);
  void note(Exactness exactness) { result_.exactness = std::max(result_.exactness, exactness); }
  [[noreturn]] void no_form(const std::string& what, std::string problem, std::string hint) const;

  const Factors& factors_;
  const Model& model_;
  const TensorFile* file_;
  const EncodeOptions& options_;
  const gguf::GgufFile* base_;
  const GgufNames* names_ = nullptr;
  std::string prefix_;  // of layers
  std::map<std::string, const Experts*, std::less<>> experts_;
  std::map<std::string, std::int64_t, std::less<>> counts_;
  std::vector<NewPair> pairs_;
  double alpha_ = 1;
  mutable std::map<std::pair<double, std::int64_t>, double> alphas_;
  std::vector<std::string> unpacked_;  // tensors whose rows do not fill blocks of Q8_0
  std::map<std::string, int> steps_;
  Encoded result_;
};

void GgufEncoder::no_form(const std::string& what, std::string problem, std::string hint) const {
  peft::at(file_ == nullptr ? std::string() : file_->path(), what)
      .fail(ErrorCode::LO_NO_FORM, {.problem = std::move(problem),
                                    .expected = "something that llama.cpp takes from a LoRA file",
                                    .hint = std::move(hint)});
}

void GgufEncoder::choose_names() {
  std::string known;
  if (base_ != nullptr) {
    const auto* value = gguf::find_value(base_->values(), "general.architecture");
    known = std::string(value == nullptr ? std::string_view() : gguf::as_text(*value).value_or(""));
  }
  if (model_.model_type.empty()) {
    peft::at(file_ == nullptr ? std::string() : file_->path())
        .fail(ErrorCode::MD_NEEDED, {.problem = "the names of a GGUF file depend on the model's type",
                                     .expected = "--base with the model, or --family with its type",
                                     .got = known.empty() ? "neither"
                                                          : "a GGUF base of architecture " + known + ", which serves " +
                                                                list_text(gguf_model_types(known))});
  }
  names_ = find_gguf_names(model_.model_type);
  if (names_ == nullptr) {
    no_form(model_.model_type, "llama.cpp has no model of this type, as far as this version knows",
            "merge the adapter into the base model if a newer llama.cpp converts that");
  }
  if (!known.empty() && known != names_->architecture) {
    peft::at(base_->path())
        .fail(ErrorCode::MD_FAMILY, {.problem = "the GGUF base is a model of another architecture",
                                     .expected = names_->architecture + ", for " + model_.model_type,
                                     .got = known});
  }
  prefix_ = layers_prefix(model_, *names_);
}

std::int64_t GgufEncoder::layer_of(const std::string& module, std::string& below) const {
  const GgufPlace place = gguf_place(prefix_, module);
  below = place.below;
  return place.layer < 0 ? kAfterLayers : place.layer;
}

std::int64_t GgufEncoder::base_number(std::string_view key) const {
  if (base_ == nullptr) return 0;
  const auto* value = gguf::find_value(base_->values(), names_->architecture + "." + std::string(key));
  return value == nullptr ? 0 : static_cast<std::int64_t>(gguf::as_unsigned(*value).value_or(0));
}

std::int64_t GgufEncoder::heads_of(const GgufNames::Tensor& tensor, const Factor& factor) const {
  if (!tensor.permuted) return 0;
  const bool keys = tensor.name == "attn_k";
  std::int64_t heads = keys ? model_.num_kv_heads : model_.num_heads;
  if (heads == 0) heads = base_number(keys ? "attention.head_count_kv" : "attention.head_count");
  if (heads == 0) {
    peft::at(file_ == nullptr ? std::string() : file_->path(), factor.site.module)
        .fail(
            ErrorCode::MD_NEEDED,
            {.problem = "llama.cpp reorders the rows of this module by attention heads, and their number is not known",
             .expected = "--base with the model (its config.json is enough), or --gguf-base"});
  }
  if (factor.out % (2 * heads) != 0) {
    peft::at(file_ == nullptr ? std::string() : file_->path(), factor.site.module)
        .fail(ErrorCode::LO_SHAPE, {.problem = "the rows of lora_B are no whole heads",
                                    .expected = fmt::format("a multiple of {}", 2 * heads),
                                    .got = std::to_string(factor.out)});
  }
  return heads;
}

void GgufEncoder::dense(const Factor& factor) {
  std::string below;
  NewPair pair{.layer = layer_of(factor.site.module, below)};
  if (std::ranges::find(names_->changed, below) != names_->changed.end()) {
    no_form(factor.site.module,
            "llama.cpp holds this weight in another form (split, reordered or scaled), which no LoRA file fits",
            "train without it, or merge the adapter into the base model and convert that");
  }
  const GgufNames::Tensor* tensor = names_->find_module(below);
  if (tensor == nullptr || !factor.site.parameter.empty()) {
    no_form(describe(factor.site), fmt::format("llama.cpp's {} has no weight for this module", names_->architecture),
            "merge the adapter into the base model, or train without this module");
  }
  const bool of_tokens = tensor->name == "token_embd" || tensor->name == "output";
  if (of_tokens && model_.tie_word_embeddings) {
    no_form(factor.site.module, "input and output embedding are one tensor in llama.cpp where the model ties them",
            "merge the adapter into the base model");
  }
  pair.order = gguf_experts().size() + static_cast<std::size_t>(tensor - names_->tensors.data());
  pair.name = gguf_tensor_name(pair.layer == kAfterLayers ? -1 : pair.layer, tensor->name);
  pair.rank = factor.rank, pair.in = factor.in, pair.out = factor.out;
  pair.heads = heads_of(*tensor, factor);
  pair.embedding = factor.kind == FactorKind::embedding;
  pair.parts.push_back({.factor = &factor});
  pairs_.push_back(std::move(pair));
}

void GgufEncoder::experts(Group group) {
  const std::string& module = group.front().site.module;
  const auto found = experts_.find(module);
  if (found == experts_.end()) {
    peft::at({}, module)
        .fail(ErrorCode::MD_NEEDED, {.problem = "nothing is known about these experts",
                                     .hint = "give the model with --base, or its type with --family"});
  }
  for (const Factor& factor : group) {
    if (factor.site.expert >= 0 && factor.site.projection != Projection::none) continue;
    no_form(describe(factor.site), "a parameter that is not gate, up or down has no form in a LoRA file of llama.cpp",
            "merge the adapter into the base model");
  }
  std::string below;
  const std::int64_t layer = layer_of(module, below);
  if (layer == kAfterLayers) no_form(module, "these experts are in no layer of the text model", "merge the adapter");
  const auto counted = counts_.find(module);
  std::int64_t count = expert_count(found->second->num_experts, model_.num_experts_assumed,
                                    counted == counts_.end() ? 0 : counted->second, group);
  bool fused = names_->fused_gate_up;
  if (base_ != nullptr) {
    const TensorInfo* joined = base_->find(gguf_tensor_name(layer, "ffn_gate_up_exps"));
    const TensorInfo* down = base_->find(gguf_tensor_name(layer, "ffn_down_exps"));
    fused = joined != nullptr;
    if (down != nullptr && down->shape.size() == 3 && model_.num_experts_assumed)
      count = std::max(count, down->shape[0]);
  }
  for (std::size_t i = 0; i < gguf_experts().size(); ++i) {
    const GgufExperts& row = gguf_experts()[i];
    const bool joins = row.projections.size() == 2, is_half = row.projections.front() != Projection::down && !joins;
    if (fused ? is_half : joins) continue;
    stack({.layer = layer, .order = i, .name = gguf_tensor_name(layer, row.name)}, group, row.projections, count);
  }
}

// One or two projections of all experts. Where gate and up become one tensor they share A or get a half of the rank.
void GgufEncoder::stack(NewPair pair, Group group, std::span<const Projection> projections, std::int64_t count) {
  ExpertsForm::Fused wanted;
  wanted.projections.assign(projections.begin(), projections.end());
  const Stack stack = collect(group, wanted, count);
  const auto all = all_of(stack);
  if (all.empty()) return;
  const bool shared = !options_.block_diagonal && shares_a(file_, stack);
  const Factor& first = *all.front();
  pair.experts = count, pair.in = first.in;
  pair.out = first.out * static_cast<std::int64_t>(projections.size());
  std::int64_t rank_at = 0;
  for (std::size_t p = 0; p < stack.parts.size(); ++p) {
    std::int64_t rank = 0;
    for (std::int64_t e = 0; e < count; ++e) {
      const Factor* factor = stack.parts[p][static_cast<std::size_t>(e)];
      if (factor == nullptr) continue;
      if (factor->in != first.in || factor->out != first.out)
        no_form(describe(factor->site), "experts of one layer have different shapes", "is this one adapter?");
      rank = std::max(rank, factor->rank);
      pair.parts.push_back({.factor = factor,
                            .expert = e,
                            .rank_at = rank_at,
                            .out_at = static_cast<std::int64_t>(p) * first.out,
                            .with_a = !shared || p == 0});
    }
    if (!shared) rank_at += rank;
    pair.rank = shared ? std::max(pair.rank, rank) : rank_at;
  }
  const bool padded = std::ranges::any_of(all, [&](const Factor* factor) { return factor->rank != pair.rank; });
  if (padded || all.size() != projections.size() * static_cast<std::size_t>(count)) note(Exactness::value_exact);
  pairs_.push_back(std::move(pair));
}

void GgufEncoder::require_in_base(const NewPair& pair) const {
  if (base_ == nullptr) return;
  const TensorInfo* weight = base_->find(pair.name);
  if (weight == nullptr) {
    peft::at(base_->path(), pair.name)
        .fail(ErrorCode::LO_TARGET,
              {.problem = "the GGUF base has no such tensor", .hint = "is this the right base model?"});
  }
  std::vector<std::int64_t> shape = {pair.out, pair.in};
  if (pair.embedding) std::swap(shape[0], shape[1]);
  if (pair.experts > 0) shape.insert(shape.begin(), pair.experts);
  if (std::ranges::equal(shape, weight->shape)) return;
  peft::at(base_->path(), pair.name)
      .fail(ErrorCode::LO_SHAPE, {.problem = "the adapter does not fit the GGUF base",
                                  .expected = shape_text(weight->shape),
                                  .got = shape_text(shape),
                                  .hint = "is this the right base model?"});
}

// The alpha that gives the scale at this rank. Most factors have one scale, and finding the number takes a while.
double GgufEncoder::alpha_of(double scale, std::int64_t rank) const {
  const auto [at, is_new] = alphas_.try_emplace({scale, rank}, 0);
  if (is_new) at->second = alpha_for_scale(scale, rank, false).value;
  return at->second;
}

// The alpha that most factors have. Another one would mean that more of them are rounded.
double GgufEncoder::choose_alpha() const {
  std::map<std::pair<double, std::int64_t>, std::int64_t> kinds;  // scale, rank of the tensor
  for (const NewPair& pair : pairs_)
    for (const auto& part : pair.parts) ++kinds[{part.factor->scale, pair.rank}];
  std::map<double, std::int64_t> counts;
  for (const auto& [kind, count] : kinds) counts[alpha_of(kind.first, kind.second)] += count;
  std::pair<std::int64_t, double> most{0, 0};
  for (const auto& [alpha, count] : counts)
    if (alpha != 0) most = std::max(most, {count, alpha});
  return most.first == 0 ? 1 : most.second;  // llama.cpp takes an alpha of 0 for none: the scale would be 1
}

double GgufEncoder::gain_of(const NewPair& pair, const Factor& factor) const {
  if (alpha_of(factor.scale, pair.rank) == alpha_) return 1;
  return factor.scale * static_cast<double>(pair.rank) / alpha_;
}

Dtype GgufEncoder::dtype_for(const NewPair& pair) {
  std::vector<Dtype> dtypes;
  for (const auto& part : pair.parts)
    for (const View* view : {&part.factor->a, &part.factor->b})
      if (const Dtype d = dtype_of(*view); std::ranges::find(dtypes, d) == dtypes.end()) dtypes.push_back(d);
  Dtype dtype = dtypes.front();
  for (const Dtype d : dtypes) dtype = wider(dtype, d);
  if (dtype == Dtype::f64) dtype = Dtype::f32;    // llama.cpp computes in F32
  if (info(dtype).bits == 8) dtype = Dtype::f16;  // holds all values of 8 bits
  dtype = options_.q8_0 ? Dtype::f32 : options_.dtype.value_or(dtype);
  for (const Dtype d : dtypes) note(exactness_of_cast(d, dtype));
  return dtype;
}

PlannedTensor GgufEncoder::new_tensor(std::string name, std::vector<std::int64_t> shape, Dtype dtype) {
  PlannedTensor tensor{.name = std::move(name), .dtype = dtype, .shape = std::move(shape), .must_be_finite = true};
  tensor.cols = tensor.shape.back();
  tensor.rows = 1;
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) tensor.rows *= tensor.shape[i];
  if (!options_.q8_0) return tensor;
  note(Exactness::rounded);
  if (gguf::fills_blocks(gguf::GgmlType::q8_0, tensor.shape)) {
    tensor.packing = gguf::GgmlType::q8_0;
  } else {
    tensor.dtype = Dtype::f16;  // as llama.cpp's converter does
    unpacked_.push_back(tensor.name);
  }
  return tensor;
}

// All experts by one block, where that is possible: a tensor of [E, rows, cols] as a matrix of E rows.
bool put_together(PlannedTensor& tensor, const std::vector<View>& views, double gain) {
  const auto rows = as_rows(views);
  if (!rows || rows->rows * rows->cols != tensor.rows * tensor.cols) return false;
  tensor.rows = rows->rows, tensor.cols = rows->cols;
  tensor.blocks.push_back({0, 0, 1, *rows, gain});
  return true;
}

// Whether the parts are one for each expert, in their order, and nothing stands beside them in their tensor.
bool one_each(const std::vector<const NewPair::Part*>& parts) {
  for (std::size_t e = 0; e < parts.size(); ++e) {
    const NewPair::Part& part = *parts[e];
    if (part.expert != static_cast<std::int64_t>(e) || part.rank_at != 0 || part.out_at != 0) return false;
  }
  return true;
}

void GgufEncoder::put_a(PlannedTensor& a, const NewPair& pair) const {
  std::vector<const NewPair::Part*> parts;
  std::vector<View> views;
  for (const auto& part : pair.parts) {
    if (!part.with_a) continue;
    parts.push_back(&part);
    views.push_back(pair.embedding ? part.factor->a.transposed() : part.factor->a);
  }
  if (one_each(parts) && put_together(a, views, 1)) return;
  for (std::size_t i = 0; i < parts.size(); ++i)
    a.blocks.push_back({parts[i]->expert * pair.rank + parts[i]->rank_at, 0, 1, views[i], 1.0});
}

void GgufEncoder::put_b(PlannedTensor& b, const NewPair& pair) {
  std::vector<double> gains;
  std::vector<View> views;
  std::vector<const NewPair::Part*> parts;
  for (const auto& part : pair.parts) {
    parts.push_back(&part);
    gains.push_back(gain_of(pair, *part.factor));
    views.push_back(part.factor->b);
    note(exactness_of_gain(gains.back()));
  }
  if (pair.heads != 0) return put_heads(b, pair, gains.front());
  const bool one_gain = std::ranges::adjacent_find(gains, std::not_equal_to<>()) == gains.end();
  if (one_gain && one_each(parts) && put_together(b, views, gains.front())) return;
  for (std::size_t i = 0; i < views.size(); ++i) {
    const auto& part = pair.parts[i];
    b.blocks.push_back({part.expert * pair.out + part.out_at, part.rank_at, 1, views[i], gains[i]});
  }
}

// Row h * d + 2 j + p of the file is our row h * d + p * d / 2 + j. Two rows of the file are a row of this matrix.
void GgufEncoder::put_heads(PlannedTensor& b, const NewPair& pair, double gain) {
  b.rows = pair.out / 2, b.cols = 2 * pair.rank;
  const std::int64_t half = pair.out / pair.heads / 2;
  for (std::int64_t head = 0; head < pair.heads; ++head) {
    for (std::int64_t p = 0; p < 2; ++p) {
      const View rows = pair.parts.front().factor->b.row_range((2 * head + p) * half, half);
      b.blocks.push_back({head * half, p * pair.rank, 1, rows, gain});
    }
  }
}

void GgufEncoder::write(const NewPair& pair) {
  require_in_base(pair);
  const Dtype dtype = dtype_for(pair);
  std::vector<std::int64_t> a_shape = {pair.rank, pair.in}, b_shape = {pair.out, pair.rank};
  if (pair.embedding) std::swap(a_shape[0], a_shape[1]);
  for (auto* shape : {&a_shape, &b_shape})
    if (pair.experts > 0) shape->insert(shape->begin(), pair.experts);
  PlannedTensor a = new_tensor(pair.name + ".lora_a", std::move(a_shape), dtype);
  PlannedTensor b = new_tensor(pair.name + ".lora_b", std::move(b_shape), dtype);
  put_a(a, pair);
  put_b(b, pair);
  if (file_ == nullptr) return;
  result_.tensors.push_back(std::move(a));
  result_.tensors.push_back(std::move(b));
  const std::size_t last = pair.name.rfind('.'), begin = pair.name.rfind('.', last - 1) + 1;
  const std::string kind = begin == 0 ? pair.name.substr(0, last) : pair.name.substr(begin, last - begin);
  ++steps_[pair.experts == 0 ? fmt::format("{}, rank {}", kind, pair.rank)
                             : fmt::format("{} of {} experts, rank {}", kind, pair.experts, pair.rank)];
}

Encoded GgufEncoder::run() {
  choose_names();
  if (!factors_.extras.empty()) {
    const Extra& extra = factors_.extras.front();
    no_form(describe(extra.site),
            extra.kind == ExtraKind::magnitude ? "a LoRA file of llama.cpp holds no DoRA magnitudes"
                                               : "a LoRA file of llama.cpp holds no " + extra.suffix + " of a module",
            "merge the adapter into the base model and convert that");
  }
  const auto& all = factors_.factors;
  for (std::size_t i = 0, j = 0; i < all.size(); i = j) {
    while (j < all.size() && all[j].site.module == all[i].site.module) ++j;
    if (all[i].site.expert >= 0 || experts_.contains(all[i].site.module))
      experts({all.data() + i, j - i});
    else
      for (std::size_t k = i; k < j; ++k) dense(all[k]);
  }
  std::ranges::stable_sort(pairs_, {}, [](const NewPair& pair) { return std::pair(pair.layer, pair.order); });
  const double alpha = choose_alpha();
  alpha_ = alpha;
  if (static_cast<double>(static_cast<float>(alpha)) != alpha) note(Exactness::rounded);
  for (const NewPair& pair : pairs_) write(pair);
  result_.gguf = std::make_shared<const gguf::TypedMetadata>(
      gguf::TypedMetadata{{{"general.architecture", gguf::text_value(names_->architecture)},
                           {"general.type", gguf::text_value("adapter")},
                           {"adapter.type", gguf::text_value("lora")},
                           {"adapter.lora.alpha", gguf::f32_value(static_cast<float>(alpha))}}});
  for (const auto& [text, count] : steps_)
    result_.steps.push_back(count == 1 ? text : fmt::format("{} x {}", count, text));
  if (!unpacked_.empty()) {
    result_.warnings.push_back(fmt::format("rows of {} tensor{} are no multiple of 32: written as F16, not Q8_0: {}",
                                           unpacked_.size(), unpacked_.size() == 1 ? "" : "s",
                                           list_text(unpacked_, 3)));
  }
  return std::move(result_);
}

}  // namespace

Encoded encode_gguf(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options) {
  return GgufEncoder(factors, model, file, options).run();
}

}  // namespace peft::layout
