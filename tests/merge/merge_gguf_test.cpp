// Merging into models in GGUF: where each delta lands, every type that is read and written, files in parts, and what is
// refused. Deltas are sums that fp32 holds exactly, so that there is one right answer to the last bit.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/float_formats.h"
#include "gguf/types/block_formats.h"
#include "peft/execute.h"
#include "peft/layout.h"
#include "peft/verbs.h"
#include "support/error_of.h"
#include "support/gguf_models.h"
#include "support/model_writer.h"

namespace peft::testing {
namespace {

namespace fs = std::filesystem;
using gguf::GgmlType;
using gguf::GgufFile;
using T = TinyGguf;

constexpr std::int64_t kRank = 3;
constexpr double kAlpha = 6;

// ---- an adapter, and what it adds to each tensor of the file

// One module of the adapter: its delta goes to rows of a tensor.
struct Added {
  std::string tensor;
  std::int64_t first_row = 0;  // in the tensor's matrix
  std::int64_t heads = 0;      // llama.cpp lets the rows of a head's halves take turns; 0: it does not
  Matrix delta;
};

class Lora {
 public:
  void add(const std::string& module, std::int64_t out, std::int64_t in, const std::string& tensor,
           std::int64_t first_row = 0, std::int64_t heads = 0) {
    const Matrix a = draw_.matrix(kRank, in, 0.0625, 5), b = draw_.matrix(out, kRank, 0.03125, 5);
    const std::string key = "base_model.model." + module + ".lora_";
    tensors_.push_back(stored(key + "A.weight", "F32", a));
    tensors_.push_back(stored(key + "B.weight", "F32", b));
    added.push_back({tensor, first_row, heads, scaled(kAlpha / kRank, product(b, a))});
    modules_.push_back(module);
  }
  void add_experts(std::int64_t layer, const std::vector<std::int64_t>& experts) {
    const std::string module = fmt::format("model.layers.{}.block_sparse_moe.experts.", layer),
                      tensor = fmt::format("blk.{}.ffn_", layer);
    for (const std::int64_t e : experts) {
      add(fmt::format("{}{}.w1", module, e), T::kInner, T::kHidden, tensor + "gate_exps.weight", e * T::kInner);
      add(fmt::format("{}{}.w3", module, e), T::kInner, T::kHidden, tensor + "up_exps.weight", e * T::kInner);
      add(fmt::format("{}{}.w2", module, e), T::kHidden, T::kInner, tensor + "down_exps.weight", e * T::kHidden);
    }
  }
  void add_attention(std::int64_t layer) {
    const std::string module = fmt::format("model.layers.{}.self_attn.", layer),
                      tensor = fmt::format("blk.{}.attn_", layer);
    add(module + "q_proj", T::kHeads * T::kHeadRows, T::kHidden, tensor + "q.weight", 0, T::kHeads);
    add(module + "k_proj", T::kKvHeads * T::kHeadRows, T::kHidden, tensor + "k.weight", 0, T::kKvHeads);
    add(module + "o_proj", T::kHidden, T::kHeads * T::kHeadRows, tensor + "output.weight");
  }
  void write(const fs::path& at) const {
    write_lora(at, lora_config(kRank, kAlpha, {{"target_modules", modules_}}), tensors_);
  }
  std::set<std::string> touched() const {
    std::set<std::string> names;
    for (const Added& part : added) names.insert(part.tensor);
    return names;
  }

  std::vector<Added> added;

 private:
  Draw draw_{5};
  std::vector<Stored> tensors_;
  std::vector<std::string> modules_;
};

// The row of the file that holds row `row` of transformers' weight.
std::int64_t file_row(const Added& part, std::int64_t row) {
  if (part.heads == 0) return part.first_row + row;
  const std::int64_t head_rows = part.delta.rows / part.heads, half = head_rows / 2;
  const std::int64_t head = row / head_rows, within = row % head_rows;
  return head * head_rows + within % half * 2 + within / half;
}

// A tensor of the base with all that is added, in F32.
std::vector<float> expected(const GgufFile& base, const Lora& lora, const std::string& tensor) {
  const std::vector<float> before = values_of(base, tensor);
  const std::int64_t cols = base.find(tensor)->shape.back();
  std::vector<double> sums(before.begin(), before.end());
  for (const Added& part : lora.added) {
    if (part.tensor != tensor) continue;
    for (std::int64_t i = 0; i < part.delta.rows; ++i)
      for (std::int64_t j = 0; j < cols; ++j)
        sums[static_cast<std::size_t>(file_row(part, i) * cols + j)] += part.delta.at(i, j);
  }
  std::vector<float> result(sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) result[i] = static_cast<float>(sums[i]);
  return result;
}

std::vector<std::byte> stored_as(GgmlType type, const std::vector<float>& values) {
  std::vector<std::byte> bytes;
  if (gguf::can_pack(type)) {
    bytes.resize(values.size() / static_cast<std::size_t>(gguf::info(type).block) * gguf::info(type).block_bytes);
    EXPECT_TRUE(gguf::pack_blocks(type, values, bytes.data()));
    return bytes;
  }
  const Dtype dtype = gguf::info(type).dtype;
  const auto size = static_cast<std::size_t>(info(dtype).bits) / 8;
  bytes.resize(values.size() * size);
  for (std::size_t i = 0; i < values.size(); ++i)
    EXPECT_TRUE(encode_float(dtype, static_cast<double>(values[i]), bytes.data() + i * size));
  return bytes;
}

class MergeGguf : public ::testing::Test {
 protected:
  MergeGguf() {
    model.types = {
        {"attn_q", GgmlType::q8_0},         {"attn_k", GgmlType::f16},         {"attn_v", GgmlType::q5_1},
        {"attn_output", GgmlType::bf16},    {"ffn_gate_exps", GgmlType::q4_0}, {"ffn_up_exps", GgmlType::q4_k},
        {"ffn_down_exps", GgmlType::mxfp4}, {"token_embd", GgmlType::q6_k},    {"output", GgmlType::q6_k}};
    lora.add_attention(0);
    lora.add_attention(10);
    lora.add_experts(10, {0, 3, 11});
  }
  void write() {
    write_gguf(base(), model.tensors(), model.values());
    lora.write(folder / "lora");
  }
  std::string base() const { return folder / "base.gguf"; }
  std::string out() const { return folder / "merged.gguf"; }
  MergeOptions options() const {
    MergeOptions options;
    options.base = base();
    options.adapters = {{folder / "lora", 1}};
    options.one_file = true;
    return options;
  }
  ExecuteReport run(const MergeOptions& given, int threads = 0) {
    plan = plan_merge(given);
    fs::remove_all(out());
    return execute(plan.plan, out(), {.threads = threads});
  }
  // Every tensor of the output: those that nothing touches byte for byte, the others in the type that is expected.
  template <class TypeOf>
  void check(const std::string& merged, const TypeOf& type_of) const {
    const auto before = GgufFile::open(base()), after = GgufFile::open(merged);
    const auto touched = lora.touched();
    ASSERT_EQ(after->tensors().size(), before->tensors().size());
    for (const TensorInfo& tensor : before->tensors()) {
      const std::string name(tensor.name);
      const TensorInfo* now = after->find(name);
      ASSERT_NE(now, nullptr) << name;
      EXPECT_TRUE(std::ranges::equal(now->shape, tensor.shape)) << name;
      if (!touched.contains(name)) {
        EXPECT_EQ(now->dtype_name, tensor.dtype_name) << name;
        EXPECT_TRUE(std::ranges::equal(after->bytes(*now), before->bytes(tensor))) << name;
        continue;
      }
      const GgmlType type = type_of(before->type_of(tensor), tensor);
      ASSERT_EQ(now->dtype_name, gguf::info(type).name) << name;
      const auto bytes = stored_as(type, expected(*before, lora, name));
      EXPECT_TRUE(std::ranges::equal(after->bytes(*now), bytes)) << name << " as " << gguf::info(type).name;
    }
  }

  TinyGguf model;
  Lora lora;
  TemporaryFolder folder;
  MergePlan plan;
};

GgmlType plain_or_f16(GgmlType own, const TensorInfo&) { return gguf::info(own).block > 1 ? GgmlType::f16 : own; }

TEST_F(MergeGguf, AddsEachDeltaWhereLlamaCppHasIt) {
  write();
  const ExecuteReport report = run(options());
  check(out(), plain_or_f16);
  EXPECT_TRUE(report.packed.empty());
  EXPECT_EQ(plan.changed, lora.touched().size());
  EXPECT_EQ(plan.dequantized, 5U);  // attn_q of two layers, three stacks of experts
}

TEST_F(MergeGguf, KeepsTheMetadataAndRecordsTheAdapter) {
  write();
  run(options());
  const auto before = GgufFile::open(base()), after = GgufFile::open(out());
  for (const auto& [key, value] : before->values()) {
    ASSERT_NE(gguf::find_value(after->values(), key), nullptr) << key;
    EXPECT_EQ(*gguf::find_value(after->values(), key), value) << key;
  }
  ASSERT_NE(gguf::find_value(after->values(), "peft.merged"), nullptr);
  MergeOptions again = options();
  again.base = out();
  EXPECT_EQ(error_of([&] { plan_merge(again); }).code(), ErrorCode::LO_REPEAT);
  again.allow_repeat = true;
  EXPECT_NO_THROW(plan_merge(again));
}

TEST_F(MergeGguf, WritesTheTypeThatIsAskedFor) {
  write();
  for (const Dtype dtype : {Dtype::f32, Dtype::f16}) {
    MergeOptions asked = options();
    asked.out_dtype = dtype;
    run(asked);
    const GgmlType type = *gguf::ggml_type_of(dtype);
    // A plain tensor is rounded to its own type first, as in any merge.
    const auto before = GgufFile::open(base()), after = GgufFile::open(out());
    for (const std::string& name : lora.touched()) {
      EXPECT_EQ(after->find(name)->dtype_name, gguf::info(type).name) << name;
      if (before->find(name)->dtype != Dtype::unknown) continue;
      EXPECT_TRUE(std::ranges::equal(after->bytes(*after->find(name)), stored_as(type, expected(*before, lora, name))))
          << name;
    }
  }
}

// Rows of 80 fill no blocks of 32, so attn_output becomes F16.
TEST_F(MergeGguf, WritesQ8WhereRowsFillBlocks) {
  write();
  MergeOptions asked = options();
  asked.out_q8_0 = true;
  const ExecuteReport report = run(asked);
  const auto before = GgufFile::open(base()), after = GgufFile::open(out());
  std::size_t packed = 0;
  for (const std::string& name : lora.touched()) {
    const TensorInfo& now = *after->find(name);
    if (name.ends_with("attn_output.weight")) {
      EXPECT_EQ(now.dtype_name, "F16") << name;
      continue;
    }
    ASSERT_EQ(now.dtype_name, "Q8_0") << name;
    EXPECT_TRUE(std::ranges::equal(after->bytes(now), stored_as(GgmlType::q8_0, expected(*before, lora, name))))
        << name;
    ++packed;
  }
  EXPECT_EQ(report.packed.size(), packed);
  EXPECT_EQ(plan.plan.exactness, Exactness::lossy);
}

TEST_F(MergeGguf, KeepsTypesThatCanBeWritten) {
  write();
  MergeOptions keep = options();
  keep.keep_quantized = true;
  run(keep);
  check(out(), [](GgmlType own, const TensorInfo&) { return own == GgmlType::q4_k ? GgmlType::f16 : own; });
}

// What packing lost is what a reader of both files finds, on any number of threads.
TEST_F(MergeGguf, SaysWhatPackingLost) {
  write();
  MergeOptions keep = options();
  keep.keep_quantized = true;
  const ExecuteReport report = run(keep, 1);
  const auto before = GgufFile::open(base()), after = GgufFile::open(out());
  ASSERT_EQ(report.packed.size(), 4U);  // attn_q twice, gate and down of layer 10
  for (const PackedTensor& packed : report.packed) {
    const std::string& name = plan.plan.files[packed.file].tensors[packed.tensor].name;
    const auto w = values_of(*before, name), merged = expected(*before, lora, name), stored = values_of(*after, name);
    double delta = 0, error = 0, kept = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double d = static_cast<double>(merged[i]) - static_cast<double>(w[i]);
      delta += d * d;
      error += std::pow(static_cast<double>(stored[i]) - static_cast<double>(merged[i]), 2);
      kept += d * (static_cast<double>(stored[i]) - static_cast<double>(w[i]));
    }
    EXPECT_NEAR(packed.delta_norm, std::sqrt(delta), 1e-5 * std::sqrt(delta)) << name;
    EXPECT_NEAR(packed.error_norm, std::sqrt(error), 1e-5 * std::sqrt(error)) << name;
    EXPECT_NEAR(packed.kept, kept / delta, 1e-5) << name;
  }
  const std::string bytes = read_file(out());
  const ExecuteReport other = run(keep, 3);
  EXPECT_EQ(read_file(out()), bytes);
  ASSERT_EQ(other.packed.size(), report.packed.size());
  for (std::size_t i = 0; i < other.packed.size(); ++i) {
    EXPECT_EQ(other.packed[i].tensor, report.packed[i].tensor);
    EXPECT_EQ(other.packed[i].kept, report.packed[i].kept);
    EXPECT_EQ(other.packed[i].error_norm, report.packed[i].error_norm);
  }
}

// ---- what else an adapter may hold

// DoRA's norms are those of whole rows, whatever their order in the file is.
TEST_F(MergeGguf, ScalesTheRowsOfDora) {
  model.types["attn_q"] = GgmlType::f32;
  write_gguf(base(), model.tensors(), model.values());
  Draw draw(3);
  const std::int64_t out_rows = T::kHeads * T::kHeadRows;
  const Matrix a = draw.matrix(kRank, T::kHidden, 0.0625, 5), b = draw.matrix(out_rows, kRank, 0.03125, 5);
  const Matrix magnitude = draw.matrix(1, out_rows, 0.25, 9);
  const std::string key = "base_model.model.model.layers.0.self_attn.q_proj.";
  write_lora(folder / "lora", lora_config(kRank, kAlpha, {{"target_modules", {"q_proj"}}, {"use_dora", true}}),
             {stored(key + "lora_A.weight", "F32", a), stored(key + "lora_B.weight", "F32", b),
              stored(key + "lora_magnitude_vector", "F32", {out_rows}, magnitude.values)});
  run(options());
  const auto before = GgufFile::open(base()), after = GgufFile::open(out());
  const auto w = values_of(*before, "blk.0.attn_q.weight"), merged = values_of(*after, "blk.0.attn_q.weight");
  const Added part{"", 0, T::kHeads, scaled(kAlpha / kRank, product(b, a))};
  for (std::int64_t i = 0; i < out_rows; ++i) {
    const auto first = static_cast<std::size_t>(file_row(part, i) * T::kHidden);
    double square = 0;
    for (std::int64_t j = 0; j < T::kHidden; ++j)
      square += std::pow(static_cast<double>(w[first + static_cast<std::size_t>(j)]) + part.delta.at(i, j), 2);
    for (std::int64_t j = 0; j < T::kHidden; ++j) {
      const auto at = first + static_cast<std::size_t>(j);
      const double right = magnitude.at(0, i) / std::sqrt(square) * (static_cast<double>(w[at]) + part.delta.at(i, j));
      ASSERT_NEAR(static_cast<double>(merged[at]), right, 1e-6 * std::abs(right) + 1e-12) << i << ", " << j;
    }
  }
}

// Only the output changes, so that it becomes a tensor of its own; the embedding keeps its bytes.
TEST_F(MergeGguf, GivesATiedOutputItsOwnTensor) {
  model.tied = true;
  write_gguf(base(), model.tensors(), model.values());
  Lora head;
  head.add("lm_head", T::kTokens, T::kHidden, "token_embd.weight");
  head.write(folder / "lora");
  run(options());
  EXPECT_TRUE(plan.untied);
  const auto before = GgufFile::open(base()), after = GgufFile::open(out());
  ASSERT_EQ(after->tensors().size(), before->tensors().size() + 1);
  EXPECT_TRUE(std::ranges::equal(after->bytes(*after->find("token_embd.weight")),
                                 before->bytes(*before->find("token_embd.weight"))));
  ASSERT_NE(after->find("output.weight"), nullptr);
  EXPECT_TRUE(std::ranges::equal(after->bytes(*after->find("output.weight")),
                                 stored_as(GgmlType::f16, expected(*before, head, "token_embd.weight"))));
}

TEST_F(MergeGguf, PutsRowsOfTokensInPlace) {
  write_gguf(base(), model.tensors(), model.values());
  Draw draw(4);
  const Matrix rows = draw.matrix(2, T::kHidden, 0.125, 7);
  write_lora(folder / "lora",
             lora_config(kRank, kAlpha,
                         {{"target_modules", {"q_proj"}}, {"trainable_token_indices", {{"embed_tokens", {3, 41}}}}}),
             {stored("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "F32", rows),
              stored("base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight", "F32",
                     draw.matrix(kRank, T::kHidden, 0.0625, 5)),
              stored("base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight", "F32",
                     draw.matrix(T::kKvHeads * T::kHeadRows, kRank, 0.0625, 5))});
  run(options());
  const auto before = GgufFile::open(base()), after = GgufFile::open(out());
  auto right = values_of(*before, "token_embd.weight");
  for (std::int64_t i = 0; i < 2; ++i)
    for (std::int64_t j = 0; j < T::kHidden; ++j)
      right[static_cast<std::size_t>((i == 0 ? 3 : 41) * T::kHidden + j)] = static_cast<float>(rows.at(i, j));
  EXPECT_TRUE(std::ranges::equal(after->bytes(*after->find("token_embd.weight")), stored_as(GgmlType::f16, right)));
}

// A LoRA file of llama.cpp, whose rows are in the file's order already, is the same adapter.
TEST_F(MergeGguf, TakesLoraFilesOfLlamaCpp) {
  write();
  run(options());
  const std::string right = read_file(out());
  InputOptions how;
  how.family = "mixtral", how.num_experts = T::kExperts;
  const Input input = load(folder / "lora", how);
  ConvertOptions convert;
  convert.to = Layout::gguf;
  convert.gguf_base = base();
  execute(plan_convert(input, convert), folder / "lora.gguf");
  MergeOptions other = options();
  other.adapters = {{folder / "lora.gguf", 1}};
  run(other);
  // Equal numbers: experts without a factor get a zero added, which makes +0 of -0.
  const auto of_folder = GgufFile::parse(std::as_bytes(std::span(right)), "a"), of_file = GgufFile::open(out());
  for (const std::string& name : lora.touched())
    EXPECT_EQ(values_of(*of_folder, name), values_of(*of_file, name)) << name;
}

// ---- files in parts

gguf::Value u16_value(std::uint16_t number) {
  return {.type = gguf::ValueType::u16, .bytes = std::string(reinterpret_cast<const char*>(&number), sizeof number)};
}

class MergeGgufParts : public MergeGguf {
 protected:
  static constexpr std::size_t kParts = 3;

  std::string part(const std::string& stem, std::size_t number) const {
    return folder / fmt::format("{}-{:05d}-of-{:05d}.gguf", stem, number + 1, kParts);
  }
  // The model of base() as llama.cpp's gguf-split cuts it: all keys in the first part.
  void split() {
    const auto tensors = model.tensors();
    for (std::size_t i = 0; i < kParts; ++i) {
      gguf::KeyValues values = i == 0 ? model.values() : gguf::KeyValues{};
      const auto count = static_cast<std::int32_t>(tensors.size());
      values.emplace_back("split.no", u16_value(static_cast<std::uint16_t>(i)));
      values.emplace_back("split.count", u16_value(kParts));
      values.emplace_back("split.tensors.count",
                          gguf::Value{.type = gguf::ValueType::i32,
                                      .bytes = std::string(reinterpret_cast<const char*>(&count), sizeof count)});
      const std::size_t begin = tensors.size() * i / kParts, end = tensors.size() * (i + 1) / kParts;
      write_gguf(
          part("split", i),
          {tensors.begin() + static_cast<std::ptrdiff_t>(begin), tensors.begin() + static_cast<std::ptrdiff_t>(end)},
          values);
    }
  }
  MergeOptions split_options() const {
    MergeOptions result = options();
    result.base = part("split", 0);
    return result;
  }
};

TEST_F(MergeGgufParts, BecomeOneFile) {
  write();
  split();
  run(options());
  const std::string whole = read_file(out());
  run(split_options());
  const auto right = GgufFile::parse(std::as_bytes(std::span(whole)), "whole"), joined = GgufFile::open(out());
  EXPECT_EQ(joined->values(), right->values());
  ASSERT_EQ(joined->tensors().size(), right->tensors().size());
  for (const TensorInfo& tensor : right->tensors())
    EXPECT_TRUE(std::ranges::equal(joined->bytes(*joined->find(tensor.name)), right->bytes(tensor))) << tensor.name;
}

TEST_F(MergeGgufParts, StayPartsInAFolder) {
  write();
  split();
  run(options());
  const auto right = GgufFile::open(out());
  MergeOptions parts = split_options();
  parts.one_file = false;
  plan = plan_merge(parts);
  execute(plan.plan, folder / "parts");
  std::size_t tensors = 0;
  for (std::size_t i = 0; i < kParts; ++i) {
    const auto file = GgufFile::open((fs::path(folder / "parts") / fs::path(part("split", i)).filename()).string());
    EXPECT_EQ(gguf::as_unsigned(*gguf::find_value(file->values(), "split.no")), i);
    for (const TensorInfo& tensor : file->tensors())
      EXPECT_TRUE(std::ranges::equal(file->bytes(tensor), right->bytes(*right->find(tensor.name)))) << tensor.name;
    tensors += file->tensors().size();
  }
  EXPECT_EQ(tensors, right->tensors().size());
}

// Stopped after its first file, a merge goes on with the others and ends with the same bytes.
TEST_F(MergeGgufParts, AreResumed) {
  write();
  split();
  MergeOptions parts = split_options();
  parts.one_file = false;
  parts.keep_quantized = true;
  const MergePlan merge = plan_merge(parts);
  execute(merge.plan, folder / "right");
  std::atomic<bool> cancel = false;
  const std::uint64_t first = layout_file(merge.plan.files[0]).file_bytes();
  ExecuteOptions stopping{.threads = 1, .cancel = &cancel, .unfinished = Unfinished::keep};
  stopping.progress = [&](std::uint64_t done, std::uint64_t) { cancel = cancel || done > first; };
  EXPECT_EQ(error_of([&] { execute(merge.plan, folder / "out", stopping); }).code(), ErrorCode::INTERRUPTED);
  EXPECT_FALSE(fs::exists(folder / "out"));
  const ExecuteReport report = execute(merge.plan, folder / "out", {.unfinished = Unfinished::resume});
  EXPECT_EQ(report.files_resumed, 1U);
  EXPECT_EQ(report.files_written, kParts - 1);
  for (const auto& entry : fs::directory_iterator(folder / "right"))
    EXPECT_EQ(read_file(entry.path()), read_file(fs::path(folder / "out") / entry.path().filename()));
}

TEST_F(MergeGguf, OfOneFileIsResumedToTheSameBytes) {
  write();
  const MergePlan merge = plan_merge(options());
  execute(merge.plan, folder / "right.gguf");
  std::atomic<bool> cancel = false;
  ExecuteOptions stopping{.threads = 1, .cancel = &cancel, .unfinished = Unfinished::keep};
  stopping.progress = [&](std::uint64_t done, std::uint64_t total) { cancel = cancel || done > total / 2; };
  EXPECT_EQ(error_of([&] { execute(merge.plan, out(), stopping); }).code(), ErrorCode::INTERRUPTED);
  EXPECT_FALSE(fs::exists(out()));
  execute(merge.plan, out(), {.unfinished = Unfinished::resume});
  EXPECT_EQ(read_file(out()), read_file(folder / "right.gguf"));
}

// ---- what is refused

void expect_refused(const MergeOptions& options, ErrorCode code, const std::vector<std::string>& parts) {
  const Error error = error_of([&] { plan_merge(options); });
  EXPECT_EQ(info(error.code()).name, info(code).name) << error.what();
  for (const std::string& part : parts)
    EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos)
        << "no " << part << " in " << error.what();
}

// A type that is not read is copied; an adapter that wants to change such a tensor is refused.
TEST_F(MergeGguf, TypesThatAreNotReadAreCopied) {
  model.types["attn_v"] = GgmlType::iq2_xxs;
  write();
  run(options());
  check(out(), plain_or_f16);
  lora.add("model.layers.2.self_attn.v_proj", T::kKvHeads * T::kHeadRows, T::kHidden, "blk.2.attn_v.weight");
  lora.write(folder / "lora");
  expect_refused(options(), ErrorCode::LO_QUANT, {"blk.2.attn_v.weight", "IQ2_XXS", "Q4_K"});
}

TEST_F(MergeGguf, RefusesWhatDoesNotFit) {
  write();
  Lora other;
  other.add("model.layers.0.self_attn.q_proj", T::kHeads * T::kHeadRows + 8, T::kHidden, "");
  other.write(folder / "lora");
  expect_refused(options(), ErrorCode::LO_SHAPE, {"blk.0.attn_q.weight", "[80, 256]", "[88, 256]"});
  Lora beyond;
  beyond.add("model.layers.11.self_attn.q_proj", T::kHeads * T::kHeadRows, T::kHidden, "");
  beyond.write(folder / "lora");
  expect_refused(options(), ErrorCode::LO_TARGET, {"model.layers.11.self_attn.q_proj", "attn_q"});
}

TEST_F(MergeGguf, RefusesOptionsThatMakeNoSense) {
  write();
  MergeOptions wrong = options();
  wrong.max_shard_size = 1000;
  expect_refused(wrong, ErrorCode::USAGE, {"--max-shard-size"});
  wrong = options();
  wrong.out_dtype = Dtype::f64;
  expect_refused(wrong, ErrorCode::USAGE, {"F16, BF16, F32 or Q8_0"});
  wrong = options();
  wrong.input.family = "qwen3_moe";
  expect_refused(wrong, ErrorCode::MD_FAMILY, {"qwen3_moe", "mixtral"});
}

TEST_F(MergeGguf, RefusesWhatIsNoModel) {
  write();
  auto values = model.values();
  values[1].second = gguf::text_value("adapter");
  write_gguf(base(), model.tensors(), values);
  expect_refused(options(), ErrorCode::GG_VALUE, {"general.type", "adapter"});
  values = model.values();
  values[0].second = gguf::text_value("abacus");
  write_gguf(base(), model.tensors(), values);
  expect_refused(options(), ErrorCode::MD_FAMILY, {"abacus"});
  values[0].second = gguf::text_value("qwen3moe");  // its q and k have no heads to turn; mixtral's names are not its
  write_gguf(base(), model.tensors(), values);
  expect_refused(options(), ErrorCode::LO_TARGET, {"block_sparse_moe"});
  write_gguf(base(), model.tensors(), model.values());
  fs::resize_file(base(), fs::file_size(base()) - 4096);
  expect_refused(options(), ErrorCode::GG_TRUNC, {"base.gguf"});
  fs::resize_file(base(), 100);
  expect_refused(options(), ErrorCode::GG_HEADER, {"base.gguf"});
  fs::remove(base());
  expect_refused(options(), ErrorCode::IO_OPEN, {"base.gguf"});
}

TEST_F(MergeGgufParts, ThatDoNotBelongTogetherAreRefused) {
  write();
  split();
  MergeOptions second = split_options();
  second.base = part("split", 1);
  expect_refused(second, ErrorCode::IX_FORM, {"part 2 of 3", "first part"});
  fs::copy_file(part("split", 1), part("split", 2), fs::copy_options::overwrite_existing);
  expect_refused(split_options(), ErrorCode::IX_FORM, {"part 3 of 3", "part 2 of 3"});
  fs::remove(part("split", 2));
  expect_refused(split_options(), ErrorCode::IO_OPEN, {"split-00003-of-00003.gguf"});
  split();
  fs::rename(part("split", 0), folder / "first.gguf");
  MergeOptions renamed = split_options();
  renamed.base = folder / "first.gguf";
  expect_refused(renamed, ErrorCode::IX_FORM, {"-00001-of-00003.gguf"});
}

}  // namespace
}  // namespace peft::testing
