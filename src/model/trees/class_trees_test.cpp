// What describe() says of a model from its config.json alone, against the real classes of transformers:
// tests/module_trees, written by tools/module_trees/dump.py.
#include "model/trees/class_trees.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>

#include "peft/model.h"
#include "support/model_files.h"
#include "test_paths.h"

namespace peft {
namespace {

using model::OrderedJson;
using test::fs::path;

path folder() { return path(PEFT_SOURCE_DIR) / "tests" / "module_trees"; }

std::vector<path> golden_trees() {
  std::vector<path> files;
  for (const auto& entry : test::fs::directory_iterator(folder())) {
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Files that describe() does not get right, and why. One that comes out right has to leave this table.
const std::map<std::string, std::string>& exceptions() {
  static const auto table = [] {
    std::ifstream file(folder() / "exceptions.txt");
    std::map<std::string, std::string> rows;
    for (std::string line; std::getline(file, line);) {
      const std::size_t space = line.find(' ');
      if (!line.empty() && line[0] != '#') rows[line.substr(0, space)] = line.substr(space + 1);
    }
    return rows;
  }();
  return table;
}

// "{0-3,6}" -> 0, 1, 2, 3, 6
std::vector<std::string> numbers_of(const std::string& text) {
  std::vector<std::string> numbers;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string run = text.substr(at, end - at);
    const std::size_t dash = run.find('-');
    const int first = std::stoi(run), last = dash == std::string::npos ? first : std::stoi(run.substr(dash + 1));
    for (int n = first; n <= last; ++n) numbers.push_back(std::to_string(n));
    at = end + 1;
  }
  return numbers;
}

std::vector<std::string> expand(const std::string& name) {
  const std::size_t open = name.find('{'), close = name.find('}');
  if (open == std::string::npos) return {name};
  std::vector<std::string> names;
  for (const std::string& number : numbers_of(name.substr(open + 1, close - open - 1))) {
    for (std::string& rest : expand(name.substr(close + 1))) names.push_back(name.substr(0, open) + number + rest);
  }
  return names;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ",") + std::to_string(size);
  return "[" + text + "]";
}

std::string_view kind_text(ModuleKind kind) {
  constexpr std::string_view kNames[] = {"linear", "conv1d", "embedding", "conv", "other"};
  return kNames[static_cast<std::size_t>(kind)];
}

// Module -> class, kind, and every parameter with its shape.
using Shown = std::map<std::string, std::string>;

Shown real_tree(const OrderedJson& json) {
  Shown shown;
  for (const auto& row : json.at("modules")) {
    std::map<std::string, std::string> parameters;
    for (const auto& [name, shape] : row.at(3).items())
      parameters[name] = shape_text(shape.get<std::vector<std::int64_t>>());
    std::string text = row.at(1).get<std::string>() + " " + row.at(2).get<std::string>();
    for (const auto& [name, shape] : parameters) text += " " + name + shape;
    for (const std::string& name : expand(row.at(0).get<std::string>())) shown[name] = text;
  }
  return shown;
}

Shown our_tree(const ModuleTree& tree) {
  std::map<std::string, std::map<std::string, std::string>> parameters;
  for (const Module& module : tree.modules) {
    parameters[module.name];
    if (!module.weight.empty()) parameters[module.name]["weight"] = shape_text(module.weight);
  }
  for (const Parameter& parameter : tree.parameters)
    parameters[parameter.module][parameter.name] = shape_text(parameter.shape);
  Shown shown;
  for (const Module& module : tree.modules) {
    std::string text = module.class_name + " " + std::string(kind_text(module.kind));
    for (const auto& [name, shape] : parameters[module.name]) text += " " + name + shape;
    shown[module.name] = text;
  }
  return shown;
}

// The first few differences, in words; "" when there is none.
std::string difference(const Shown& real, const Shown& ours) {
  std::string text;
  int count = 0;
  for (const auto& [name, row] : real) {
    const auto found = ours.find(name);
    if (found != ours.end() && found->second == row) continue;
    if (++count <= 3)
      text += "\n  " + name + ": " + row + (found == ours.end() ? ", missing here" : ", here " + found->second);
  }
  for (const auto& [name, row] : ours) {
    if (!real.contains(name) && ++count <= 3) text += "\n  " + name + ": " + row + " is not there";
  }
  return count == 0 ? "" : std::to_string(count) + " modules differ:" + text;
}

std::string scratch_config(const std::string& name, const OrderedJson& config) {
  const path file = path(::testing::TempDir()) / ("module_trees_" + name);
  std::ofstream(file) << config.dump();
  return file.string();
}

std::string compare(const path& file) {
  const OrderedJson json = test::read_json(file);
  Model model;
  try {
    model = describe({.base = scratch_config(file.filename().string(), json.at("config"))});
  } catch (const Error& error) {
    return std::string("describe: ") + error.what();
  }
  const bool v4 = file.stem().string().ends_with(".v4");
  const auto& tree = v4 ? model.v4 : model.v5;
  if (!tree) return "no tree of this generation";
  const std::string found = difference(real_tree(json), our_tree(*tree));
  if (!found.empty()) return found;
  if (!tree->complete) return "the tree is not complete";
  if (tree->input_embedding != json.at("input")) return "input embedding is " + tree->input_embedding;
  if (tree->output_embedding != json.at("output")) return "output embedding is " + tree->output_embedding;
  return {};
}

TEST(ModuleTrees, AreTheRealOnes) {
  int equal = 0;
  std::set<std::string> types;
  for (const path& file : golden_trees()) {
    const std::string name = file.stem().string();
    const std::string found = compare(file);
    types.insert(name.substr(0, name.find('.')));
    if (exceptions().contains(name)) {
      EXPECT_NE(found, "") << name << " is right: take it out of exceptions.txt";
    } else {
      EXPECT_EQ(found, "") << name;
      equal += found.empty() ? 1 : 0;
    }
  }
  EXPECT_GT(equal, 0);
  std::cout << types.size() << " types, " << equal << " trees equal, " << exceptions().size() << " exceptions\n";
}

TEST(ModuleTrees, ExceptionsAreOfFiles) {
  for (const auto& [name, why] : exceptions()) {
    EXPECT_TRUE(test::fs::exists(folder() / (name + ".json"))) << name;
    EXPECT_FALSE(why.empty()) << name;
  }
}

// A golden tree and its config, to be described after a change of the config.
struct Golden {
  explicit Golden(const std::string& stem)
      : json(test::read_json(folder() / (stem + ".json"))), config(json["config"]) {}
  Model described() const { return describe({.base = scratch_config("changed.json", config)}); }
  void expect_the_same_v5() const { EXPECT_EQ(difference(real_tree(json), our_tree(*described().v5)), ""); }

  OrderedJson json, config;
};

// Files of before transformers 5 say the same by other keys.
TEST(ModuleTrees, OlderKeysOfAConfigCount) {
  Golden nemotron("nemotron_h.NemotronHForCausalLM.v5");
  nemotron.config.erase("layers_block_type");
  nemotron.config["hybrid_override_pattern"] = "ME*-";
  nemotron.expect_the_same_v5();
  Golden gemma("gemma4_text.Gemma4ForCausalLM.v5");
  gemma.config.erase("per_layer_config");
  gemma.config["global_head_dim"] = 28;
  gemma.expect_the_same_v5();
}

// Heads and bare models of tools/module_trees/bodies.py: the body under the class's own prefix, and no head.
TEST(ModuleTrees, OtherHeadsHaveTheBody) {
  for (const auto& [class_name, prefix] : {std::pair{"LlamaForSequenceClassification", "model."},
                                           {"LlamaForQuestionAnswering", "transformer."},
                                           {"LlamaModel", ""}}) {
    Golden llama("llama.LlamaForCausalLM.v5");
    llama.config["architectures"] = {class_name};
    const Model model = llama.described();
    const std::string query = std::string(prefix) + "layers.3.self_attn.q_proj";
    ASSERT_NE(model.v5->find(query), nullptr) << class_name;
    EXPECT_EQ(model.v5->find(query)->weight, (std::vector<std::int64_t>{96, 96}));
    EXPECT_EQ(model.v5->find("lm_head"), nullptr);
    EXPECT_EQ(model.v5->input_embedding, std::string(prefix) + "embed_tokens");
    EXPECT_EQ(model.has(Generation::v5, "score"), std::nullopt) << "the head is not known";
    EXPECT_EQ(our_tree(*model.v5).size(), real_tree(llama.json).size() - 1) << "all but lm_head";
  }
}

TEST(ModuleTrees, AClassThatNobodyKnowsIsNotDescribedByAnother) {
  Golden whisper("whisper.WhisperForConditionalGeneration.v5");
  whisper.config["architectures"] = {"WhisperForAudioClassification"};  // an encoder alone, under another name
  const Model unknown = whisper.described();
  EXPECT_FALSE(unknown.v4 || unknown.v5);
  ASSERT_FALSE(unknown.notes.empty());
  Golden qwen("qwen3_moe.Qwen3MoeForCausalLM.v5");
  qwen.config["architectures"] = {"Qwen3MoeForSomethingElse"};
  const Model by_rows = qwen.described();
  EXPECT_FALSE(by_rows.v5->complete);
  EXPECT_FALSE(by_rows.experts.empty()) << "data/families.json still says where experts are";
}

// No row in data/families.json: seen as unknown types before.
TEST(ModuleTrees, DenseTypesWithoutARowAreKnown) {
  const Model gemma = Golden("gemma3.Gemma3ForConditionalGeneration.v5").described();
  EXPECT_TRUE(gemma.notes.empty());
  EXPECT_EQ(gemma.has(Generation::v5, "model.language_model.layers.0.self_attn.q_proj"), true);
  EXPECT_EQ(gemma.has(Generation::v5, "language_model.model.layers.0.self_attn.q_proj"), true) << "before 4.52";
  EXPECT_EQ(gemma.has(Generation::v5, "model.language_model.layers.99.self_attn.q_proj"), false);
  for (const std::string stem : {"distilbert.DistilBertForMaskedLM", "qwen3_vl.Qwen3VLForConditionalGeneration",
                                 "whisper.WhisperForConditionalGeneration", "t5.T5ForConditionalGeneration"}) {
    const Model model = Golden(stem + ".v5").described();
    EXPECT_TRUE(model.v4 && model.v5) << stem;
    EXPECT_TRUE(model.notes.empty()) << stem;
    EXPECT_TRUE(model.experts.empty()) << stem;
  }
}

}  // namespace
}  // namespace peft
