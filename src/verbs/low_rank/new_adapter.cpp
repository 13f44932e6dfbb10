#include "verbs/low_rank/new_adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "config/peft_rules.h"
#include "execute/values/element.h"
#include "peft/adapter.h"
#include "peft/error.h"
#include "peft/layout.h"

namespace peft::verbs {
namespace {

// The file object and the bytes that it reads have one owner.
struct Image {
  std::vector<std::byte> bytes;
  std::shared_ptr<const TensorFile> file;
};

std::vector<std::byte> round_to(const low_rank::Dense& m, Dtype dtype, low_rank::Dense& values,
                                const MatrixGroup& group) {
  const auto width = static_cast<std::size_t>(info(dtype).bits / 8);
  std::vector<std::byte> bytes(m.values.size() * width);
  std::byte* to = bytes.data();
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = 0; j < m.cols; ++j, to += width) {
      if (!execution::store_element(dtype, m.at(i, j), to)) {
        peft::at({}, group.name())
            .fail(ErrorCode::NUM_OVERFLOW, {.problem = "a value does not fit " + std::string(info(dtype).name),
                                            .got = fmt::format("{}", m.at(i, j)),
                                            .hint = "--dtype F32"});
      }
      values.at(i, j) = execution::load_element(dtype, to);
    }
  }
  return bytes;
}

class ImageBuilder {
 public:
  void add(std::string name, Dtype dtype, std::vector<std::int64_t> shape, std::vector<std::byte>* bytes) {
    tensors_.push_back({std::move(name), dtype, std::move(shape)});
    bytes_.push_back(bytes);
  }

  std::shared_ptr<const TensorFile> build() {
    const auto image = std::make_shared<Image>();
    const FileLayout layout = layout_file(tensors_);
    image->bytes.resize(layout.file_bytes());
    std::memcpy(image->bytes.data(), layout.head.data(), layout.head.size());
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      std::copy(bytes_[i]->begin(), bytes_[i]->end(),
                image->bytes.begin() + static_cast<std::ptrdiff_t>(layout.head.size() + layout.begin[i]));
      std::vector<std::byte>().swap(*bytes_[i]);  // each byte is held once
    }
    image->file = TensorFile::parse(image->bytes, "the new factors");
    const TensorFile* file = image->file.get();
    return {image, file};
  }

 private:
  std::vector<NewTensor> tensors_;
  std::vector<std::vector<std::byte>*> bytes_;
};

std::uint32_t index_of(const TensorFile& file, const std::string& name) {
  return static_cast<std::uint32_t>(file.find(name) - file.tensors().data());
}

// The factors of an entry as views of its two tensors.
void add_factors(const NewAdapter::Entry& entry, std::uint32_t a, std::uint32_t b, std::vector<Factor>& factors) {
  const MatrixGroup& group = entry.group;
  const std::int64_t rank = entry.pair.rank, in = entry.pair.in;
  for (std::size_t i = 0; i < group.sites.size(); ++i) {
    Factor factor{group.sites[i], group.kind, group.out[i], in, rank, 1.0, {}, {}};
    factor.a = {0, a, 0, rank, in, in, 1};
    factor.b = {0, b, group.first_row(i) * rank, group.out[i], rank, group.row_step() * rank, 1};
    factors.push_back(std::move(factor));
  }
}

// Why a kind of tensor cannot be combined; "" where it can.
struct Reason {
  ExtraKind kind;
  const char* why;
};
constexpr Reason kReasons[] = {
    {ExtraKind::magnitude,
     "DoRA adapters have no weighted sum: each scales the rows of W + delta to magnitudes of its own"},
    {ExtraKind::lora_bias, "lora_bias has no place beside several deltas that are scaled apart"},
    {ExtraKind::token_delta, "trained tokens replace rows of the embedding: they have no weighted sum"},
};

std::string tensor_name(const Input& input, const Extra& extra) {
  return std::string(input.adapter.weights->tensors()[extra.tensor].name);
}

[[noreturn]] void refuse(const Input& input, const Extra& extra, std::string problem) {
  at(input.adapter.weights->path(), tensor_name(input, extra))
      .fail(ErrorCode::CF_UNSUP, {.problem = std::move(problem),
                                  .expected = "plain LoRA",
                                  .hint = "merge the adapters into the base model one after the other (peft merge)"});
}

void adopt(AdapterConfig& config, const AdapterConfig& from) {
  if (const auto saved = config::saved_entries(from); !saved.empty()) {
    auto& names = config.modules_to_save ? *config.modules_to_save : config.modules_to_save.emplace();
    for (const auto& name : saved) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  if (from.bias != "none") config.bias = from.bias;
}

}  // namespace

StoredPair store(const MatrixGroup& group, const low_rank::Factors& factors, Dtype dtype) {
  StoredPair pair;
  pair.in = factors.a.rows;
  pair.rank = factors.a.cols;
  pair.values = {low_rank::Dense(factors.b.rows, pair.rank), low_rank::Dense(factors.a.rows, pair.rank)};
  low_rank::Dense a_values(pair.rank, pair.in);
  pair.a = round_to(low_rank::transposed(factors.a), dtype, a_values, group);
  pair.values.a = low_rank::transposed(a_values);
  pair.b = round_to(factors.b, dtype, pair.values.b, group);
  return pair;
}

Plan NewAdapter::plan(const AdapterConfig& config, const Model& model, Layout to) {
  ImageBuilder builder;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    Entry& entry = entries[i];
    entry.pair.values = {};
    builder.add(fmt::format("{}.a", i), dtype, {entry.pair.rank, entry.pair.in}, &entry.pair.a);
    builder.add(fmt::format("{}.b", i), dtype, {entry.group.rows(), entry.pair.rank}, &entry.pair.b);
  }
  for (std::size_t i = 0; i < carried.size(); ++i) {
    builder.add(fmt::format("{}.carried", i), carried[i].dtype, carried[i].shape, &carried[i].bytes);
  }
  const std::shared_ptr<const TensorFile> file = builder.build();
  peft::Factors factors;
  factors.expert_counts = expert_counts;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    add_factors(entries[i], index_of(*file, fmt::format("{}.a", i)), index_of(*file, fmt::format("{}.b", i)),
                factors.factors);
  }
  std::stable_sort(factors.factors.begin(), factors.factors.end(),
                   [](const Factor& x, const Factor& y) { return site_less(x.site, y.site); });
  for (std::size_t i = 0; i < carried.size(); ++i) {
    factors.extras.push_back(carried[i].extra);
    factors.extras.back().tensor = index_of(*file, fmt::format("{}.carried", i));
  }
  AdapterConfig base = config;
  base.use_rslora = false;  // every scale is 1: alpha is the rank
  Plan plan = encode(factors, file, model, to, base);
  plan.bytes_in = 0;  // the new factors lie in memory; what was read to make them is counted by the verb
  plan.peak_memory += file->file_size();
  return plan;
}

Carried carry(const TensorFile& file, const TensorInfo& tensor, const Extra& extra) {
  const auto bytes = file.bytes(tensor);
  return {extra, tensor.dtype, {tensor.shape.begin(), tensor.shape.end()}, {bytes.begin(), bytes.end()}};
}

std::vector<Carried> carry_all(const Input& input) {
  std::vector<Carried> carried;
  for (const Extra& extra : input.reading.factors.extras) {
    carried.push_back(carry(*input.adapter.weights, input.adapter.weights->tensors()[extra.tensor], extra));
  }
  return carried;
}

std::vector<Carried> carry_for_combination(std::span<const Input> inputs, AdapterConfig& config,
                                           std::vector<std::string>& notes) {
  std::vector<Carried> carried;
  std::map<std::pair<Site, std::string>, std::size_t> owner;
  config.modules_to_save.reset();
  config.bias = "none";
  for (const Input& input : inputs) {
    for (const Extra& extra : input.reading.factors.extras) {
      for (const Reason& reason : kReasons) {
        if (extra.kind == reason.kind) refuse(input, extra, reason.why);
      }
      Carried mine = carry(*input.adapter.weights, input.adapter.weights->tensors()[extra.tensor], extra);
      const auto [at, fresh] = owner.try_emplace({extra.site, extra.suffix}, carried.size());
      if (!fresh) {
        const Carried& first = carried[at->second];
        const bool same = first.dtype == mine.dtype && first.shape == mine.shape && first.bytes == mine.bytes;
        if (!same) refuse(input, extra, "two adapters carry this module whole, and not the same one");
        notes.push_back(tensor_name(input, extra) +
                        " is the same in several adapters: carried whole, without a weight");
        continue;
      }
      carried.push_back(std::move(mine));
      adopt(config, input.adapter.config);
      notes.push_back(tensor_name(input, extra) + " is carried whole, without a weight: it is from " +
                      input.adapter.folder);
    }
  }
  return carried;
}

void record(LowRankResult& result, const MatrixGroup& group, std::int64_t rank, double norm, double error) {
  if (rank == 0) {
    result.left_out.push_back(group.name());
    return;
  }
  result.sites.push_back({group.sites, group.name(), rank, norm, norm == 0 ? 0 : error / norm});
}

void summarise(LowRankResult& result) {
  for (const LowRankSite& site : result.sites) {
    if (site.relative > result.worst || result.where.empty()) {
      result.worst = site.relative;
      result.where = site.name;
    }
    result.mean += site.relative / static_cast<double>(result.sites.size());
  }
}

}  // namespace peft::verbs
