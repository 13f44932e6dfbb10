#include "layout/encode/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <span>
#include <tuple>
#include <unordered_map>

#include "layout/encode/placer.h"
#include "layout/encode/stack.h"
#include "layout/encode/write_config.h"
#include "layout/forms.h"
#include "layout/gguf/encode.h"
#include "layout/keys.h"
#include "layout/mlx/write.h"
#include "layout/stacked.h"
#include "model/families/index.h"
#include "peft/error.h"
#include "peft/layout.h"

namespace peft::layout {
namespace {

// Whether the view is a tensor as it lies in the file.
bool is_in_order(const View& view) { return view.col_stride == 1 && view.row_stride == view.cols && view.offset == 0; }

Exactness exactness_of(const Stack& stack) {
  Exactness worst = Exactness::bit_exact;
  std::size_t count = 0;
  for (const Factor* factor : all_of(stack)) {
    ++count;
    const double gain = folded_gain(*factor, stack.scale);
    worst = std::max(worst, exactness_of_gain(gain));
    if (factor->rank != stack.rank) worst = std::max(worst, Exactness::value_exact);
  }
  if (count != stack.parts.size() * static_cast<std::size_t>(stack.experts))
    worst = std::max(worst, Exactness::value_exact);
  return worst;
}

// Whether gate and up alternate in the target, and do not lie so in the file: then each is placed on its own.
bool rows_alternate(const Stack& stack, const ExpertsForm::Fused& parameter) {
  return parameter.interleaved && stack.parts.size() == 2 && !(stack.shared_a && all_join(stack, true));
}

std::string describe_step(const ExpertsForm::Fused& parameter, const Stack& stack, Exactness exactness) {
  std::string ranks = std::to_string(stack.rank);
  if (stack.parts.size() == 2 && !stack.shared_a) {
    ranks = fmt::format("{} + {} -> {}, block-diagonal", stack.ranks[0], stack.ranks[1], stack.rank);
  } else if (stack.parts.size() == 2) {
    ranks += ", gate and up share A";
  }
  return fmt::format("{} of {} experts, rank {} ({})", parameter.name, stack.experts, ranks, name(exactness));
}

// What all pairs of a file get; absent: each keeps its own.
struct Evenness {
  std::optional<std::int64_t> rank;
  std::optional<double> scale;
};

// Names, dtypes, and the record of what was done.
class Encoder {
 public:
  Encoder(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options,
          const Evenness& even = {})
      : factors_(factors),
        model_(model),
        file_(file),
        options_(options),
        even_(even),
        generation_(generation_of(options.to, model)) {
    for (const Experts& experts : model.experts) {
      experts_.emplace(experts_module(experts), &experts);
    }
    for (const ExpertCount& count : factors.expert_counts) counts_[count.module] = count.count;
  }

  Encoded run();

 private:
  using Group = std::span<const Factor>;  // all factors of one module

  void dense(const Factor& factor);
  void extra(const Extra& extra);
  void experts(Group group);
  const Experts& experts_of(const Factor& factor) const;
  void per_expert(const Experts& experts, Group group);
  void fused(const Experts& experts, Group group);
  std::size_t fused_parameter(const std::string& module, const std::string& key, const ExpertsForm::Fused& parameter,
                              std::int64_t experts, Group group);
  std::int64_t count_experts(const Experts& experts, Group group) const;
  void measure(Stack& stack) const;
  void add_missing(const Experts& experts, Group group);
  void add_zeros(const std::string& key, std::int64_t components, Dims natural, Orientation orientation, Dtype dtype);
  void zero_parameter(const Experts& experts, const std::string& key, const std::string& name,
                      const ExpertsForm::Fused& parameter, std::int64_t count, Group group);
  void add_stack(const std::string& key, const ExpertsForm::Fused& parameter, Stack& stack);

  std::string dense_name(const std::string& v5_module) const {
    return generation_ == Generation::v4 ? model_.rename(v5_module, Generation::v5, Generation::v4) : v5_module;
  }
  Dtype dtype_of(const View& view) const;
  void add_matrix(std::string name, const View& view);  // a view as a tensor of its own
  std::int32_t column_group_of(const View& view);
  void add_whole(std::string name, const View& view);  // the tensor the view is of, in its own shape
  // The pair of a module, and of one expert's projection.
  void add_dense_pair(const Factor& factor, const std::string& key);
  void add_expert_pair(const Factor& factor, const std::string& key);
  // The pair with the rank and the scale of all. False: it has them already.
  bool add_evened_pair(const Factor& factor, const std::string& a, const std::string& b);
  std::int64_t rank_of(const Factor& factor) const { return even_.rank.value_or(factor.rank); }
  double scale_of(const Factor& factor) const { return even_.scale.value_or(factor.scale); }
  void add_tensor(PlannedTensor tensor, std::span<const Dtype> source_dtypes);
  void add_target(std::string name, bool parameter, std::int64_t rank, double scale) {
    result_.targets.push_back({std::move(name), parameter, rank, scale});
  }
  void note(Exactness exactness) { result_.exactness = std::max(result_.exactness, exactness); }
  void step(const std::string& text) { ++steps_[text]; }
  [[noreturn]] void no_form(const std::string& what, std::string problem, std::string hint) const;

  const Factors& factors_;
  const Model& model_;
  const TensorFile* file_;
  const EncodeOptions& options_;
  const Evenness even_;
  Generation generation_;
  std::unordered_map<std::string, const Experts*> experts_;
  std::unordered_map<std::string, std::int64_t> counts_;
  std::map<std::string, int> steps_;  // what was done, how often
  // Number of each column group. Its views have the same source tensor, shape and strides.
  std::map<std::tuple<std::uint32_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>, std::int32_t> groups_;
  Encoded result_;
};

Encoded Encoder::run() {
  const auto& all = factors_.factors;
  if (options_.to == Layout::peft_per_expert) {
    result_.tensors.reserve(2 * all.size() + factors_.extras.size());
    result_.targets.reserve(all.size());
  }
  for (std::size_t i = 0; i < all.size();) {
    std::size_t j = i;
    while (j < all.size() && all[j].site.module == all[i].site.module) ++j;
    const Group group(all.data() + i, j - i);
    const bool on_experts = std::any_of(
        group.begin(), group.end(), [](const Factor& f) { return f.site.expert >= 0 || !f.site.parameter.empty(); });
    if (on_experts)
      experts(group);
    else
      for (const Factor& factor : group) dense(factor);
    i = j;
  }
  for (const Extra& e : factors_.extras) extra(e);
  for (const auto& [text, count] : steps_)
    result_.steps.push_back(count == 1 ? text : fmt::format("{} x {}", count, text));
  return std::move(result_);
}

void Encoder::no_form(const std::string& what, std::string problem, std::string hint) const {
  peft::at(file_ == nullptr ? std::string() : file_->path(), what)
      .fail(ErrorCode::LO_NO_FORM, {.problem = std::move(problem),
                                    .expected = "something that " + std::string(info(options_.to).name) + " can hold",
                                    .hint = std::move(hint)});
}

const Experts& Encoder::experts_of(const Factor& factor) const {
  const auto at = experts_.find(factor.site.module);
  if (at != experts_.end()) return *at->second;
  peft::at({}, factor.site.module)
      .fail(ErrorCode::MD_NEEDED, {.problem = "nothing is known about these experts",
                                   .hint = "give the model with --base, or its type with --family"});
}

void Encoder::experts(Group group) {
  const Experts& experts = experts_of(group.front());
  const ExpertsForm& form = *experts.form;
  const bool has_fused = !form.v5.empty() || !form.v4.empty();
  if (options_.to == Layout::peft_per_expert) return per_expert(experts, group);
  if (!has_fused) {
    no_form(group.front().site.module,
            fmt::format("the experts of {} are modules of their own in every transformers version", model_.model_type),
            "keep the per-expert layout: PEFT on transformers 5 reads it");
  }
  fused(experts, group);
}

Dtype Encoder::dtype_of(const View& view) const {
  return file_ == nullptr ? Dtype::f32 : file_->tensors()[view.tensor].dtype;
}

// Experts whose elements take turns in a fused tensor form a group.
std::int32_t Encoder::column_group_of(const View& view) {
  const bool take_turns = (view.cols == 1 || view.col_stride > 1) && (view.rows == 1 || view.row_stride > 1);
  if (!take_turns || view.rows * view.cols == 1) return PlannedTensor::kNoGroup;
  const auto number = static_cast<std::int32_t>(groups_.size());
  return groups_.try_emplace({view.tensor, view.rows, view.cols, view.row_stride, view.col_stride}, number)
      .first->second;
}

void Encoder::add_matrix(std::string name, const View& view) {
  const Dtype dtype = dtype_of(view);
  PlannedTensor tensor{std::move(name), options_.dtype.value_or(dtype), {view.rows, view.cols}, view.rows,
                       view.cols,       {{0, 0, 1, view, 1.0}}};
  tensor.column_group = column_group_of(view);
  add_tensor(std::move(tensor), std::array{dtype});
}

void Encoder::add_whole(std::string name, const View& view) {
  if (file_ == nullptr) return;
  const TensorInfo& info = file_->tensors()[view.tensor];
  if (!is_in_order(view)) return add_matrix(std::move(name), view);
  add_tensor(copy_of(info, view.tensor, std::move(name), options_.dtype.value_or(info.dtype)), std::array{info.dtype});
}

void Encoder::add_dense_pair(const Factor& factor, const std::string& key) {
  const bool embedding = factor.kind == FactorKind::embedding;
  const std::string a = key + (embedding ? ".lora_embedding_A" : ".lora_A.weight"),
                    b = key + (embedding ? ".lora_embedding_B" : ".lora_B.weight");
  if (add_evened_pair(factor, a, b)) return;
  add_whole(a, factor.a);
  add_whole(b, factor.b);
}

void Encoder::add_expert_pair(const Factor& factor, const std::string& key) {
  const std::string a = key + ".lora_A.weight", b = key + ".lora_B.weight";
  if (add_evened_pair(factor, a, b)) return;
  add_matrix(a, factor.a);
  add_matrix(b, factor.b);
}

bool Encoder::add_evened_pair(const Factor& factor, const std::string& a, const std::string& b) {
  const std::int64_t rank = rank_of(factor);
  const double gain = folded_gain(factor, scale_of(factor));
  if (rank == factor.rank && gain == 1) return false;
  note(std::max(Exactness::value_exact, exactness_of_gain(gain)));
  if (file_ == nullptr) return true;
  const TensorInfo &of_a = file_->tensors()[factor.a.tensor], &of_b = file_->tensors()[factor.b.tensor];
  const auto cast = [this](const TensorInfo& source) { return options_.dtype.value_or(source.dtype); };
  const bool convolution = factor.site.expert < 0 && of_a.shape.size() > 2;
  if (convolution && rank != factor.rank) {
    no_form(describe(factor.site), "the rank of a convolution's pair cannot be padded",
            "peft resize --rank makes the ranks equal");
  }
  if (convolution) {  // keeps its shape
    add_whole(a, factor.a);
    PlannedTensor scaled = copy_of(of_b, factor.b.tensor, b, cast(of_b));
    for (Block& block : scaled.blocks) block.scale *= gain;
    add_tensor(std::move(scaled), std::array{of_b.dtype});
    return true;
  }
  add_tensor({a, cast(of_a), {rank, factor.in}, rank, factor.in, {{0, 0, 1, factor.a, 1.0}}}, std::array{of_a.dtype});
  add_tensor({b, cast(of_b), {factor.out, rank}, factor.out, rank, {{0, 0, 1, factor.b, gain}}},
             std::array{of_b.dtype});
  return true;
}

void Encoder::add_tensor(PlannedTensor tensor, std::span<const Dtype> source_dtypes) {
  for (const Dtype from : source_dtypes) note(exactness_of_cast(from, tensor.dtype));
  tensor.must_be_finite = true;
  if (file_ != nullptr) result_.tensors.push_back(std::move(tensor));
}

void Encoder::dense(const Factor& factor) {
  const std::string name = dense_name(factor.site.module);
  const std::string key = std::string(kPrefix) + name;
  add_dense_pair(factor, key);
  // Routers of transformers 5 own their weight, so LoRA is on the parameter. Some derive from nn.Linear, but fail when
  // they are wrapped as one (phimoe); the name of their class shows that they are routers. Where only a config is
  // converted, the module stays the target, as in the golden migrations.
  const auto& tree = model_.tree(generation_);
  const Module* module = tree ? tree->find(name) : nullptr;
  const bool router = file_ != nullptr && module != nullptr && module->class_name.ends_with("Router");
  const bool parameter = router || model_.kind(generation_, name) == ModuleKind::other;
  add_target(parameter ? name + ".weight" : name, parameter, rank_of(factor), scale_of(factor));
  if (name != factor.site.module)
    step("renamed " + factor.site.module.substr(factor.site.module.rfind('.') + 1) + " pair (bit-exact)");
}

void Encoder::extra(const Extra& extra) {
  std::string name;
  if (extra.site.expert >= 0) {
    const Experts& experts = *experts_.at(extra.site.module);
    if (options_.to != Layout::peft_per_expert && !(experts.form->v4.empty() && experts.form->v5.empty())) {
      no_form(describe(extra.site),
              extra.kind == ExtraKind::magnitude ? "DoRA on experts does not exist for fused experts"
                                                 : extra.suffix + " of an expert does not exist for fused experts",
              "merge the adapter into the base model, or keep the per-expert layout");
    }
    name = experts.per_expert_module(extra.site.expert, extra.site.projection);
  } else {
    name = dense_name(extra.site.module);
    const bool lora_part = extra.kind == ExtraKind::magnitude || extra.kind == ExtraKind::lora_bias;
    if (lora_part && model_.kind(generation_, name) == ModuleKind::other) {
      no_form(name, "DoRA and lora_bias do not exist on parameters, and this module is one in the target's generation",
              "merge the adapter into the base model, or keep its layout");
    }
  }
  if (extra.kind == ExtraKind::saved_module) result_.saved_modules.push_back(name);
  if (file_ == nullptr) return;
  const TensorInfo& info = file_->tensors()[extra.tensor];
  // Weights that are carried whole keep their dtype: a cast is for LoRA factors.
  result_.tensors.push_back(copy_of(info, extra.tensor, std::string(kPrefix) + name + "." + extra.suffix, info.dtype));
}

void Encoder::per_expert(const Experts& experts, Group group) {
  const auto down_of = [&](std::int64_t expert) {
    return model::expert_module(model_, experts, options_.spelling, expert, Projection::down);
  };
  if (down_of(0).empty() || down_of(0) == down_of(1)) {  // dbrx: one parameter of all experts in each version
    no_form(group.front().site.module,
            fmt::format("{} has no per-expert modules in any transformers version: its experts are one parameter",
                        model_.model_type),
            "peft-fused is the form PEFT and vLLM read");
  }
  for (const Factor& factor : group) {
    if (factor.site.expert < 0 || factor.site.projection == Projection::none) {
      no_form(describe(factor.site), "a parameter that is not gate, up or down has no per-expert form",
              "keep the fused layout");
    }
    const std::string name =
        model::expert_module(model_, experts, options_.spelling, factor.site.expert, factor.site.projection);
    add_expert_pair(factor, std::string(kPrefix) + name);
    add_target(name, false, rank_of(factor), scale_of(factor));
  }
  step(fmt::format("layer of experts as one pair per expert and projection (bit-exact)"));
  if (options_.all_projections) add_missing(experts, group);
}

// Natural widths of a projection's matrix, where another projection of the same experts is at hand.
Dims widths_of(const Factor& known, Projection wanted) {
  const bool same = (known.site.projection == Projection::down) == (wanted == Projection::down);
  return same ? Dims{known.out, known.in} : Dims{known.in, known.out};
}

void Encoder::add_zeros(const std::string& key, std::int64_t components, Dims natural, Orientation orientation,
                        Dtype dtype) {
  const bool reversed = orientation == Orientation::reversed;
  const std::int64_t in = reversed ? natural.out : natural.in, out = reversed ? natural.in : natural.out;
  add_tensor({key + ".lora_A.weight", dtype, {components, in}, components, in}, {});
  add_tensor({key + ".lora_B.weight", dtype, {out, components}, out, components}, {});
  note(Exactness::value_exact);
}

// Pairs of zeros for the projections of experts that have none.
void Encoder::add_missing(const Experts& experts, Group group) {
  std::map<std::pair<std::int64_t, Projection>, const Factor*> present;
  for (const Factor& factor : group) present[{factor.site.expert, factor.site.projection}] = &factor;
  const Factor& first = group.front();
  const std::int64_t count = count_experts(experts, group);
  std::size_t added = 0;
  for (std::int64_t e = 0; e < count; ++e) {
    for (const Projection projection : {Projection::gate, Projection::up, Projection::down}) {
      const std::string name = model::expert_module(model_, experts, options_.spelling, e, projection);
      if (name.empty() || present.contains({e, projection})) continue;
      add_zeros(std::string(kPrefix) + name, rank_of(first), widths_of(first, projection), Orientation::natural,
                options_.dtype.value_or(dtype_of(first.a)));
      add_target(name, false, rank_of(first), scale_of(first));
      ++added;
    }
  }
  if (added != 0) step(fmt::format("{} pairs of zeros for projections of experts without LoRA (value-exact)", added));
}

void Encoder::zero_parameter(const Experts& experts, const std::string& key, const std::string& name,
                             const ExpertsForm::Fused& parameter, std::int64_t count, Group group) {
  const auto known = std::ranges::find_if(group, [](const Factor& f) { return f.site.expert >= 0; });
  if (known == group.end()) return;
  Dims natural = natural_dims(experts, parameter);
  if (natural.in == 0 || natural.out == 0) {
    natural = widths_of(*known, parameter.projections.front());
    natural.out *= static_cast<std::int64_t>(parameter.projections.size());
  }
  add_zeros(key, count * known->rank, natural, orientation_of(options_.to, parameter),
            options_.dtype.value_or(dtype_of(known->a)));
  add_target(name, true, known->rank, known->scale);
  step(fmt::format("pair of zeros for {}, which has no LoRA (value-exact)", parameter.name));
}

std::int64_t Encoder::count_experts(const Experts& experts, Group group) const {
  const auto at = counts_.find(group.front().site.module);
  return expert_count(experts.num_experts, model_.num_experts_assumed, at == counts_.end() ? 0 : at->second, group);
}

// Ranks, widths and the one scale of a fused pair.
void Encoder::measure(Stack& stack) const {
  const auto factors = all_of(stack);
  stack.scale = even_.scale ? *even_.scale : common_scale(factors);
  stack.shared_a = !options_.block_diagonal && shares_a(file_, stack);
  const Factor& first = *factors.front();
  stack.dims.in = first.in;
  for (const auto& part : stack.parts) {
    std::int64_t rank = 0;
    for (const Factor* factor : part) {
      if (factor == nullptr) continue;
      rank = std::max(rank, factor->rank);
      if (factor->in != first.in || factor->out != first.out) {
        no_form(describe(factor->site), "experts of one layer have different shapes", "is this one adapter?");
      }
    }
    stack.ranks.push_back(rank);
    stack.out.push_back(first.out);
    stack.dims.out += first.out;
    stack.rank = stack.shared_a ? std::max(stack.rank, rank) : stack.rank + rank;
  }
  if (even_.rank) stack.rank = *even_.rank;
}

void Encoder::add_stack(const std::string& key, const ExpertsForm::Fused& parameter, Stack& stack) {
  Placer placer(stack, file_, orientation_of(options_.to, parameter), packing_of(options_.to),
                rows_alternate(stack, parameter));
  placer.place(parameter);
  std::vector<Dtype> dtypes;
  for (const Factor* factor : all_of(stack)) {
    for (const View* view : {&factor->a, &factor->b}) {
      if (const Dtype d = dtype_of(*view); std::find(dtypes.begin(), dtypes.end(), d) == dtypes.end())
        dtypes.push_back(d);
    }
  }
  Dtype dtype = dtypes.front();
  for (const Dtype d : dtypes) dtype = wider(dtype, d);
  dtype = options_.dtype.value_or(dtype);
  const std::int64_t components = stack.experts * stack.rank;
  const std::int64_t width = placer.stacked_width(), height = placer.columns_height();
  add_tensor({key + ".lora_A.weight", dtype, {components, width}, components, width, std::move(placer.stacked)},
             dtypes);
  const std::int64_t fold = placer.rows_at_once();
  add_tensor({key + ".lora_B.weight",
              dtype,
              {height, components},
              height / fold,
              components * fold,
              std::move(placer.columns)},
             dtypes);
  const Exactness exactness = exactness_of(stack);
  note(exactness);
  step(describe_step(parameter, stack, exactness));
}

// One parameter of the experts, if the group has factors for it; returns how many.
std::size_t Encoder::fused_parameter(const std::string& module, const std::string& key,
                                     const ExpertsForm::Fused& parameter, std::int64_t experts, Group group) {
  const std::string name = module + "." + parameter.name;
  if (parameter.dims.size() == 2) {  // one matrix, not a stack
    const auto matrix = std::find_if(group.begin(), group.end(), [&](const Factor& f) {
      return f.site.expert < 0 && f.site.parameter == parameter.name;
    });
    if (matrix == group.end()) return 0;
    add_dense_pair(*matrix, key);
    add_target(name, true, rank_of(*matrix), scale_of(*matrix));
    return 1;
  }
  Stack stack = collect(group, parameter, experts);
  const std::size_t found = all_of(stack).size();
  if (found == 0) return 0;
  measure(stack);
  add_stack(key, parameter, stack);
  add_target(name, true, stack.rank, stack.scale);
  return found;
}

void Encoder::fused(const Experts& experts, Group group) {
  const ExpertsForm& form = *experts.form;
  const Generation g = generation_ == Generation::v4 && !form.v4.empty() ? Generation::v4 : Generation::v5;
  const auto& parameters = g == Generation::v4 ? form.v4 : form.v5;
  const std::int64_t count = count_experts(experts, group);
  // Wrappers nest in order of registration, the first parameter innermost: walk from the outermost.
  std::map<std::string, int> depth;
  std::size_t used = 0;
  for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
    const std::string module = experts.fused_module(g, *parameter);
    std::string key = std::string(kPrefix) + module;
    for (int i = 0; i < depth[module]; ++i) key += ".base_layer";
    const std::size_t found = fused_parameter(module, key, *parameter, count, group);
    used += found;
    const bool of_experts = parameter->dims.size() == 3 && !parameter->projections.empty();
    const bool zeros = found == 0 && options_.all_projections && of_experts;
    if (zeros) zero_parameter(experts, key, module + "." + parameter->name, *parameter, count, group);
    if (found != 0 || zeros) ++depth[module];
  }
  if (used != group.size()) {
    no_form(group.front().site.module, "some factors have no place in the family's fused parameters",
            "keep the layout of the file");
  }
}

// Gives all pairs one rank or one scale, as asked. Which ones these are shows when every pair is encoded.
Encoded encode_evenly(const Factors& factors, const Model& model, const TensorFile* file,
                      const EncodeOptions& options) {
  Encoded encoded = Encoder(factors, model, file, options).run();
  if (encoded.targets.empty() || !(options.one_rank || options.one_scale)) return encoded;
  Evenness even;
  if (options.one_rank) even.rank = std::ranges::max(encoded.targets, {}, &TargetEntry::rank).rank;
  if (options.one_scale) even.scale = common_scale(encoded.targets);
  std::size_t padded = 0, folded = 0;
  for (const TargetEntry& target : encoded.targets) {
    padded += target.rank != even.rank.value_or(target.rank) ? 1 : 0;
    folded += target.scale != even.scale.value_or(target.scale) ? 1 : 0;
  }
  if (padded + folded == 0) return encoded;
  encoded = Encoder(factors, model, file, options, even).run();
  encoded.evened = true;
  const auto step = [&](std::size_t count, std::string what) {
    if (count != 0) encoded.steps.push_back(fmt::format("{} {}: {}", count, count == 1 ? "target" : "targets", what));
  };
  if (padded != 0) step(padded, fmt::format("padded with zeros to rank {}", *even.rank));
  if (folded != 0) step(folded, fmt::format("scale folded into lora_B, the scale of all is {}", *even.scale));
  return encoded;
}

// NeMo Automodel has one rank and one scale a file.
Encoded encode_nemo(const Factors& factors, const Model& model, const TensorFile* file, EncodeOptions options) {
  for (const Extra& extra : factors.extras) {
    if (extra.kind == ExtraKind::magnitude) continue;
    at(file == nullptr ? std::string() : file->path(), describe(extra.site))
        .fail(ErrorCode::LO_NO_FORM, {.problem = extra.suffix + " has no form in this layout",
                                      .expected = "LoRA pairs, and magnitudes of DoRA",
                                      .hint = "merge the adapter into the base model"});
  }
  options.one_rank = options.one_scale = true;
  return encode_evenly(factors, model, file, options);
}

}  // namespace

Encoded encode(const Factors& factors, const Model& model, const TensorFile* file, const EncodeOptions& options) {
  switch (options.to) {
    case Layout::gguf:
      return encode_gguf(factors, model, file, options);
    case Layout::tinker:
    case Layout::megatron_bridge:
    case Layout::sglang:
    case Layout::veomni:
    case Layout::ktransformers:
      return encode_stacked(factors, model, file, options);
    case Layout::nemo:
      return encode_nemo(factors, model, file, options);
    case Layout::mlx:
      return encode_mlx(factors, model, file, options);
    default:
      return encode_evenly(factors, model, file, options);
  }
}

}  // namespace peft::layout

namespace peft {

Plan encode(const Factors& factors, std::shared_ptr<const TensorFile> file, const Model& model, Layout to,
            const AdapterConfig& config, std::optional<Dtype> dtype) {
  Plan plan;
  layout::Encoded encoded = layout::encode(factors, model, file.get(), {.to = to, .dtype = dtype});
  plan.sources = {std::move(file)};
  layout::add_adapter_files(plan, std::move(encoded), config, model, to);
  set_cost(plan);
  return plan;
}

}  // namespace peft
