#include "synthetic.h"

#include <fmt/format.h>

#include <fstream>
#include <stdexcept>
#include <vector>

#include "plan/members.h"

namespace peft::bench {
namespace {

struct Module {
  std::string name;  // below the layer
  std::int64_t out, in;
};

std::vector<Module> dense_modules(const Shape& s) {
  return {{"self_attn.q_proj", 2 * s.hidden, s.hidden},
          {"self_attn.k_proj", s.hidden / 4, s.hidden},
          {"self_attn.v_proj", s.hidden / 4, s.hidden},
          {"self_attn.o_proj", s.hidden, 2 * s.hidden}};
}

constexpr const char* kProjections[] = {"gate_proj", "up_proj", "down_proj"};

std::string layer_name(std::int64_t layer) { return fmt::format("base_model.model.model.layers.{}.", layer); }

std::string expert_name(std::int64_t layer, std::int64_t expert, int projection) {
  return fmt::format("{}mlp.experts.{}.{}", layer_name(layer), expert, kProjections[projection]);
}

Module expert_module(const Shape& s, std::int64_t layer, std::int64_t expert, int projection) {
  const bool down = projection == 2;
  return {expert_name(layer, expert, projection), down ? s.hidden : s.inter, down ? s.inter : s.hidden};
}

PlannedTensor tensor(const std::string& name, std::int64_t rows, std::int64_t cols) {
  return {name, Dtype::bf16, {rows, cols}, rows, cols, {}};
}

View view_of(const TensorFile& file, const std::string& name) {
  const TensorInfo* found = file.find(name);
  if (found == nullptr) throw std::runtime_error("no tensor " + name);
  return {0,
          static_cast<std::uint32_t>(found - file.tensors().data()),
          0,
          found->shape[0],
          found->shape[1],
          found->shape[1],
          1};
}

void add_copy(PlannedFile& out, const TensorFile& file, const std::string& name) {
  const View view = view_of(file, name);
  out.tensors.push_back(tensor(name, view.rows, view.cols));
  out.tensors.back().blocks.push_back({0, 0, 1, view, 1});
}

void add_dense(PlannedFile& out, const TensorFile& file, const Shape& s, std::int64_t layer) {
  for (const Module& module : dense_modules(s)) {
    add_copy(out, file, layer_name(layer) + module.name + ".lora_A.weight");
    add_copy(out, file, layer_name(layer) + module.name + ".lora_B.weight");
  }
}

Plan start(const std::string& path) {
  Plan plan;
  plan.sources.push_back(TensorFile::open(path));
  plan.files.emplace_back().name = "adapter_model.safetensors";
  return plan;
}

// Gate and up (`halves` 2) or down (1) of a layer's experts, fused: A stacked, B with column k * E + e.
void add_fused(PlannedFile& out, const TensorFile& file, const Shape& s, std::int64_t layer, int halves) {
  const std::string name = layer_name(layer) + (halves == 2 ? "mlp.experts.base_layer" : "mlp.experts");
  const Module module = expert_module(s, layer, 0, halves == 2 ? 0 : 2);
  const std::int64_t rank = halves * s.rank;
  PlannedTensor a = tensor(name + ".lora_A.weight", rank * s.experts, module.in);
  PlannedTensor b = tensor(name + ".lora_B.weight", halves * module.out, rank * s.experts);
  std::vector<plan::MemberView> rows;
  for (std::int64_t e = 0; e < s.experts; ++e) {
    for (int half = 0; half < halves; ++half)
      rows.push_back({view_of(file, expert_name(layer, e, halves == 2 ? half : 2) + ".lora_A.weight"), 1, Dtype::bf16});
  }
  plan::append_members(a.blocks, {.row_shift = s.rank}, rows);
  for (int half = 0; half < halves; ++half) {
    std::vector<plan::MemberView> columns;
    for (std::int64_t e = 0; e < s.experts; ++e)
      columns.push_back(
          {view_of(file, expert_name(layer, e, halves == 2 ? half : 2) + ".lora_B.weight"), 1, Dtype::bf16});
    plan::append_members(b.blocks, {half * module.out, half * s.rank * s.experts, s.experts, 0, 1}, columns);
  }
  out.tensors.push_back(std::move(a));
  out.tensors.push_back(std::move(b));
}

void add_unfused(PlannedFile& out, const TensorFile& file, const Shape& s, std::int64_t layer, int halves) {
  const std::string name = layer_name(layer) + (halves == 2 ? "mlp.experts.base_layer" : "mlp.experts");
  const View a = view_of(file, name + ".lora_A.weight"), b = view_of(file, name + ".lora_B.weight");
  const auto group = static_cast<std::int32_t>(2 * layer + halves - 1);
  for (std::int64_t e = 0; e < s.experts; ++e) {
    for (int half = 0; half < halves; ++half) {
      const Module module = expert_module(s, layer, e, halves == 2 ? half : 2);
      out.tensors.push_back(tensor(module.name + ".lora_A.weight", s.rank, module.in));
      out.tensors.back().blocks.push_back({0, 0, 1, a.row_range(e * halves * s.rank + half * s.rank, s.rank), 1});
      const View columns = b.col_range(half * s.rank * s.experts + e, s.rank, s.experts);
      out.tensors.push_back(tensor(module.name + ".lora_B.weight", module.out, s.rank));
      out.tensors.back().blocks.push_back({0, 0, 1, columns.row_range(half * module.out, module.out), 1});
      out.tensors.back().column_group = group;
    }
  }
}

}  // namespace

void write_per_expert(const std::string& path, const Shape& s) {
  std::vector<NewTensor> tensors;
  const auto add = [&](const Module& module) {
    tensors.push_back({module.name + ".lora_A.weight", Dtype::bf16, {s.rank, module.in}});
    tensors.push_back({module.name + ".lora_B.weight", Dtype::bf16, {module.out, s.rank}});
  };
  for (std::int64_t layer = 0; layer < s.layers; ++layer) {
    for (Module& module : dense_modules(s)) add({layer_name(layer) + module.name, module.out, module.in});
    for (std::int64_t e = 0; e < s.experts; ++e) {
      for (int projection = 0; projection < 3; ++projection) add(expert_module(s, layer, e, projection));
    }
  }
  const FileLayout layout = layout_file(tensors);
  std::ofstream file(path, std::ios::binary);
  file.write(layout.head.data(), static_cast<std::streamsize>(layout.head.size()));
  std::vector<std::uint64_t> words(1 << 17);
  std::uint64_t state = 1;
  for (std::uint64_t done = 0; done < layout.data_bytes;) {
    for (std::uint64_t& word : words) {  // splitmix64
      std::uint64_t z = state += 0x9E3779B97F4A7C15u;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
      word = z ^ (z >> 31);
    }
    const std::uint64_t bytes = std::min<std::uint64_t>(words.size() * 8, layout.data_bytes - done);
    file.write(reinterpret_cast<const char*>(words.data()), static_cast<std::streamsize>(bytes));
    done += bytes;
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

Plan plan_fuse(const std::string& path, const Shape& s) {
  Plan plan = start(path);
  for (std::int64_t layer = 0; layer < s.layers; ++layer) {
    add_dense(plan.files[0], *plan.sources[0], s, layer);
    add_fused(plan.files[0], *plan.sources[0], s, layer, 2);
    add_fused(plan.files[0], *plan.sources[0], s, layer, 1);
  }
  set_cost(plan);
  return plan;
}

Plan plan_unfuse(const std::string& path, const Shape& s) {
  Plan plan = start(path);
  for (std::int64_t layer = 0; layer < s.layers; ++layer) {
    add_dense(plan.files[0], *plan.sources[0], s, layer);
    add_unfused(plan.files[0], *plan.sources[0], s, layer, 2);
    add_unfused(plan.files[0], *plan.sources[0], s, layer, 1);
  }
  set_cost(plan);
  return plan;
}

}  // namespace peft::bench
