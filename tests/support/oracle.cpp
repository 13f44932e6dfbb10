#include "support/oracle.h"

#include <fmt/format.h>

#include <algorithm>
#include <regex>
#include <stdexcept>

namespace peft::testing {
namespace {

const std::string kPrefix = "base_model.model.";

// A fused parameter as [out, in], or its two halves.
struct Part {
  const char* name;
  std::int64_t first, count, step;  // of the output rows
};
std::vector<Part> parts_of(const ModelFacts& facts, bool gate_up) {
  const std::int64_t width = facts.intermediate;
  if (!gate_up) return {{"down", 0, facts.hidden, 1}};
  if (facts.interleaved) return {{"gate", 0, width, 2}, {"up", 1, width, 2}};
  return {{"gate", 0, width, 1}, {"up", width, width, 1}};
}

bool is_gate_up(const std::string& parameter) {
  return parameter == "gate_up_proj" || parameter == "input_linear.weight";
}
bool is_down(const std::string& parameter) { return parameter == "down_proj" || parameter == "output_linear.weight"; }

// One LoRA pair of the file.
struct Pair {
  const TensorInfo *a = nullptr, *b = nullptr;
};

class Reader {
 public:
  Reader(const TensorFile& file, const Json& config, const ModelFacts& facts, const OracleOptions& options)
      : file_(file), config_(config), facts_(facts), options_(options), rule_(config) {}

  OracleAdapter read() {
    for (const auto& [module, pair] : pairs()) {
      if (!pair.a || !pair.b) {
        problem(module, "lora_A or lora_B is alone");
      } else {
        read_pair(module, matrix_of(file_, *pair.a), matrix_of(file_, *pair.b));
      }
    }
    return std::move(result_);
  }

 private:
  std::map<std::string, Pair> pairs() {
    static const std::regex lora(R"((.*)\.lora_(embedding_)?([AB])(\.weight)?)");
    std::map<std::string, Pair> pairs;
    for (const TensorInfo& tensor : file_.tensors()) {
      std::string key(tensor.name);
      std::smatch match;
      if (!key.starts_with(kPrefix)) problem(key, "no base_model.model. prefix");
      if (!std::regex_match(key, match, lora)) {
        result_.others.insert(key);
        continue;
      }
      Pair& pair = pairs[std::string(match[1]).substr(kPrefix.size())];
      (match[3] == "A" ? pair.a : pair.b) = &tensor;
    }
    return pairs;
  }

  void read_pair(const std::string& module, const Matrix& a, const Matrix& b) {
    static const std::regex expert(R"((.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3))");
    static const std::regex fused(R"((.*\.experts)((\.base_layer)*))");
    static const std::regex parallel(R"((.*)\.(input_linear|output_linear))");
    static const std::map<std::string, std::string> projections = {
        {"gate_proj", "gate"}, {"w1", "gate"}, {"up_proj", "up"}, {"w3", "up"}, {"down_proj", "down"}, {"w2", "down"}};
    std::smatch match;
    if (std::regex_match(module, match, expert)) {
      add(fmt::format("{}.{}.{}", v5_name(facts_, match[1]), match[2].str(), projections.at(match[3])), module, a, b);
    } else if (std::regex_match(module, match, fused)) {
      const std::string base = match[1], depth = match[2];
      read_fused(base, base, parameter_at(base, static_cast<std::int64_t>(depth.size() / 11)), a, b);
    } else if (std::regex_match(module, match, parallel)) {
      read_fused(v5_name(facts_, module), match[1], std::string(match[2]) + ".weight", a, b);
    } else {
      const bool parameter = targets_parameter(module + ".weight");
      add(v5_name(facts_, module), parameter ? module + ".weight" : module, a, b);
    }
  }

  // The parameter wrapped at this depth: registration order is from the innermost, which is the deepest.
  std::string parameter_at(const std::string& module, std::int64_t depth) {
    std::vector<std::string> wrapped;
    for (const char* name : {"gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"})
      if (targets_parameter(module + "." + name)) wrapped.emplace_back(name);
    const std::int64_t index = static_cast<std::int64_t>(wrapped.size()) - 1 - depth;
    if (index >= 0) return wrapped[static_cast<std::size_t>(index)];
    problem(module, fmt::format("wrapper {} of {}", depth, wrapped.size()));
    return "";
  }

  bool targets_parameter(const std::string& name) const {
    const auto targets = config_.find("target_parameters");
    if (targets == config_.end() || !targets->is_array()) return false;
    return std::any_of(targets->begin(), targets->end(), [&](const Json& entry) {
      const auto target = entry.get<std::string>();
      return name == target || name.ends_with("." + target);
    });
  }

  void read_fused(const std::string& site, const std::string& module, const std::string& parameter, const Matrix& a,
                  const Matrix& b) {
    const std::string name = module + "." + parameter;
    if (!is_gate_up(parameter) && !is_down(parameter)) {  // a bias: an ordinary matrix [E, width]
      add(site + "." + parameter, name, a, b);
      return;
    }
    const std::int64_t experts = facts_.experts, rank = a.rows / std::max<std::int64_t>(experts, 1);
    const bool gate_up = is_gate_up(parameter);
    const std::int64_t in = gate_up ? facts_.hidden : facts_.intermediate;
    const std::int64_t out = gate_up ? 2 * facts_.intermediate : facts_.hidden;
    const bool as_is = a.cols == in && b.rows == out, turned = a.cols == out && b.rows == in;
    if (rank * experts != a.rows || b.cols != a.rows || (!as_is && !turned)) {
      problem(name, fmt::format("A [{}, {}], B [{}, {}] do not fit", a.rows, a.cols, b.rows, b.cols));
      return;
    }
    const bool natural = as_is && turned ? (options_.square == "out_in") != facts_.in_out : as_is;
    if (as_is != turned) result_.orientations.insert(natural != facts_.in_out ? "out_in" : "in_out");
    check_rank(name, rank);
    for (std::int64_t e = 0; e < experts; ++e) {
      Matrix a_e = rows_of(a, e * rank, rank);
      Matrix b_e = options_.grouped_by_expert ? cols_of(b, e * rank, rank) : cols_of(b, e, rank, experts);
      if (!natural) {  // dW = (s B A)^T = s A^T B^T
        Matrix turned_a = transposed(b_e);
        b_e = transposed(a_e);
        a_e = std::move(turned_a);
      }
      for (const Part& part : parts_of(facts_, gate_up)) {
        result_.factors[fmt::format("{}.{}.{}", site, e, part.name)] = {
            a_e, rows_of(b_e, part.first, part.count, part.step), rule_.scale(name, rank)};
      }
    }
  }

  void add(const std::string& site, const std::string& name, const Matrix& a, const Matrix& b) {
    if (a.rows != b.cols) problem(name, "A and B have different ranks");
    check_rank(name, a.rows);
    result_.factors[site] = {a, b, rule_.scale(name, a.rows)};
  }

  void check_rank(const std::string& name, std::int64_t rank) {
    result_.modules.insert(name);
    const std::int64_t stated = rule_.rank(name);
    if (stated != rank) problem(name, fmt::format("rank {} in the tensors, {} in the config", rank, stated));
  }

  void problem(const std::string& where, const std::string& what) { result_.problems.push_back(where + ": " + what); }

  const TensorFile& file_;
  const Json& config_;
  const ModelFacts& facts_;
  const OracleOptions& options_;
  ScaleRule rule_;
  OracleAdapter result_;
};

// One base parameter's delta [E, d1, d2], cut and turned. For one expert PEFT gives a matrix.
void cut_fused(const TensorFile& file, const TensorInfo& tensor, const std::string& site, bool gate_up,
               const ModelFacts& facts, std::map<std::string, Matrix>& deltas) {
  const auto values = elements(file, tensor);
  const std::size_t rank = tensor.shape.size();
  const std::int64_t d1 = tensor.shape[rank - 2], d2 = tensor.shape[rank - 1];
  for (std::int64_t e = 0; e < facts.experts; ++e) {
    const auto first = values.begin() + e * d1 * d2;
    Matrix m(d1, d2, {first, first + d1 * d2});
    if (facts.in_out) m = transposed(m);
    for (const Part& part : parts_of(facts, gate_up)) {
      deltas[fmt::format("{}.{}.{}", site, e, part.name)] = rows_of(m, part.first, part.count, part.step);
    }
  }
}

}  // namespace

OracleAdapter read_oracle(const TensorFile& file, const Json& config, const ModelFacts& facts,
                          const OracleOptions& options) {
  return Reader(file, config, facts, options).read();
}

OracleAdapter read_oracle(const std::filesystem::path& adapter_folder, const ModelFacts& facts,
                          const OracleOptions& options) {
  const auto file = TensorFile::open((adapter_folder / "adapter_model.safetensors").string());
  return read_oracle(*file, read_json(adapter_folder / "adapter_config.json"), facts, options);
}

std::map<std::string, Matrix> read_deltas(const TensorFile& file, const ModelFacts& facts, const std::string& suffix) {
  static const std::regex fused(R"((.*)\.(gate_up_proj|down_proj|input_linear\.weight|output_linear\.weight))");
  std::map<std::string, Matrix> deltas;
  for (const TensorInfo& tensor : file.tensors()) {
    std::string name(tensor.name);
    const bool other = name.ends_with("_other");
    if (other != (suffix == "_other")) continue;
    name.resize(name.size() - suffix.size());
    std::smatch match;
    if (name.find("experts.") != std::string::npos || name.find("put_linear.") != std::string::npos) {
      if (!std::regex_match(name, match, fused)) {  // a bias: an ordinary matrix
        deltas[name] = matrix_of(file, tensor);
        continue;
      }
      std::string site = match[1];
      if (match[2].str().find("linear") != std::string::npos) site += ".experts";
      cut_fused(file, tensor, site, is_gate_up(match[2]), facts, deltas);
      continue;
    }
    const bool weight = name.ends_with(".weight");
    const bool turn = facts.model_type == "gpt2" || name.ends_with("embed_tokens.weight");
    Matrix m = matrix_of(file, tensor);
    deltas[weight ? name.substr(0, name.size() - 7) : name] = turn ? transposed(m) : m;
  }
  return deltas;
}

OracleFactor trimmed(const OracleFactor& factor) {
  std::vector<std::int64_t> kept;
  for (std::int64_t k = 0; k < factor.b.cols; ++k)
    for (std::int64_t i = 0; i < factor.b.rows; ++i)
      if (factor.b.at(i, k) != 0) {
        kept.push_back(k);
        break;
      }
  const auto rank = static_cast<std::int64_t>(kept.size());
  OracleFactor result{Matrix(rank, factor.a.cols), Matrix(factor.b.rows, rank), factor.scale};
  for (std::int64_t k = 0; k < rank; ++k) {
    for (std::int64_t j = 0; j < factor.a.cols; ++j)
      result.a.at(k, j) = factor.a.at(kept[static_cast<std::size_t>(k)], j);
    for (std::int64_t i = 0; i < factor.b.rows; ++i)
      result.b.at(i, k) = factor.b.at(i, kept[static_cast<std::size_t>(k)]);
  }
  return result;
}

}  // namespace peft::testing
