#include "config/peft_keys.h"

#include <algorithm>
#include <utility>

#include "config/adapter_fields.h"
#include "peft/error.h"

namespace peft::config {
namespace {

using enum Verb;

// What works with the factors of a file; what chooses modules by the config; what reads any value at all.
constexpr Verbs kFactors{convert, verify, merge, combine, resize, run};
constexpr Verbs kChoosing{targets, convert, run, create};
constexpr Verbs kAll = Verbs{inspect, targets, create} | kFactors;
constexpr Verbs kNone{};
constexpr Verbs kOtherArithmetic = kFactors | Verbs{create};
constexpr Verbs kMixing{merge, combine, resize, run, create};
constexpr Verbs kRunning{run, create};

constexpr AdapterConfig::Version kNever{1 << 20, 0, 0};
constexpr std::string_view kMergeThere = "merge the adapter with the PEFT that made it";
constexpr std::string_view kOtherStart = "init_lora_weights = true, gaussian, orthogonal, pissa or olora";

// The versions are those of golden/config/keys_by_version.json, the names those of
// tests/config/lora_config_fields.json; tests compare. What the verbs do with a key is shown in docs/config_fields.md
// and walked by a test.
constexpr PeftKey kKeys[] = {
    {.key = "alora_invocation_tokens",
     .since = {0, 18, 1},
     .before = {0, 17, 1},
     .value = "null",
     .used = {verify},
     .refused = kMixing,
     .what = "activated LoRA: the adapter acts from these tokens on",
     .why = "activated LoRA acts only from its invocation tokens on: no change of the weights does that",
     .hint = "run it with PEFT; peft convert keeps it as it is",
     .tells = Tells::unless_null,
     .on_parameters = false},
    {.key = "alpha_pattern",
     .since = {0, 6, 2},
     .before = {0, 5, 0},
     .value = "{}",
     .used = kAll,
     .refused = kNone,
     .what = "alpha of single modules"},
    {.key = "arrow_config",
     .since = {0, 18, 1},
     .before = {0, 17, 1},
     .value = "null",
     .used = {verify},
     .refused = kMixing,
     .what = "Arrow: a router between other adapters",
     .why = "an Arrow router has no update of its own: it chooses between other adapters, token by token",
     .hint = "name the adapters that it routes to",
     .tells = Tells::unless_null,
     .on_parameters = false},
    {.key = "auto_mapping",
     .since = {0, 4, 0},
     .before = {0, 3, 0},
     .value = "null",
     .used = kNone,
     .refused = kNone,
     .what = "class of the base model, where there is no task_type"},
    {.key = "base_model_name_or_path",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "null",
     .used = {combine},
     .refused = kNone,
     .what = "the base model's name; never looked up"},
    {.key = "bias",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "\"none\"",
     .used = kAll,
     .refused = kNone,
     .what = "which biases of the base are trained and saved"},
    {.key = "corda_config",
     .since = {0, 15, 2},
     .before = {0, 14, 0},
     .value = "null",
     .used = kNone,
     .refused = {create},
     .what = "how CorDA starts an adapter",
     .why = "CorDA starts from data, which is not implemented",
     .hint = kOtherStart,
     .tells = Tells::unless_null},
    {.key = "ensure_weight_tying",
     .since = {0, 18, 1},
     .before = {0, 17, 1},
     .value = "false",
     .used = kNone,
     .refused = kRunning,
     .what = "adapters on tied embeddings are tied; the file holds them for both",
     .why = "tying of adapters on tied embeddings is not implemented",
     .hint = "trainable_token_indices follows tied embeddings by itself"},
    {.key = "eva_config",
     .since = {0, 14, 0},
     .before = {0, 13, 2},
     .value = "null",
     .used = kNone,
     .refused = {create},
     .what = "how EVA starts an adapter",
     .why = "EVA starts from data, which is not implemented",
     .hint = kOtherStart,
     .tells = Tells::unless_null},
    {.key = "exclude_modules",
     .since = {0, 14, 0},
     .before = {0, 13, 2},
     .value = "null",
     .used = kChoosing,
     .refused = kNone,
     .what = "modules that are no targets"},
    {.key = "fan_in_fan_out",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "false",
     .used = {targets, convert, create},
     .refused = kNone,
     .what = "targets are GPT-2's Conv1D; PEFT corrects it by the module's class"},
    {.key = "inference_mode",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "false",
     .used = kRunning,
     .refused = kNone,
     .what = "whether the adapter is loaded to be trained"},
    {.key = "init_lora_weights",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "true",
     .used = kAll,
     .refused = kNone,
     .what = "how the adapter was started; some ways change the base model (LO_INIT)"},
    {.key = "kasa_config",
     .since = {0, 21, 2},
     .before = {0, 20, 0},
     .value = "null",
     .used = kNone,
     .refused = kOtherArithmetic,
     .what = "KaSA: a diagonal between A and B, on a base without its smallest singular values",
     .why = "KaSA has a diagonal between A and B and changes the base weights: its update is not B·A",
     .hint = kMergeThere,
     .tells = Tells::unless_null,
     .on_parameters = false},
    {.key = "layer_replication",
     .since = {0, 10, 0},
     .before = {0, 9, 0},
     .value = "null",
     .used = {verify},
     .refused = kMixing | Verbs{targets},
     .what = "layers of the base are repeated: the adapter belongs to a deeper model",
     .why = "the adapter belongs to a deeper model, which repeats layers of this base: its layers are not the base's",
     .hint = "save the deeper model as one of its own, name it as --base, and set layer_replication to null"},
    {.key = "layers_pattern",
     .since = {0, 4, 0},
     .before = {0, 3, 0},
     .value = "null",
     .used = kChoosing,
     .refused = kNone,
     .what = "what the list of layers is called"},
    {.key = "layers_to_transform",
     .since = {0, 4, 0},
     .before = {0, 3, 0},
     .value = "null",
     .used = kChoosing,
     .refused = kNone,
     .what = "layers whose modules are targets"},
    {.key = "loftq_config",
     .since = {0, 7, 1},
     .before = {0, 6, 2},
     .value = "{}",
     .used = kNone,
     .refused = {create},
     .what = "how LoftQ starts an adapter",
     .why = "LoftQ quantises the base, which is not implemented",
     .hint = kOtherStart},
    {.key = "lora_alpha",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "8",
     .used = kAll,
     .refused = kNone,
     .what = "scale of the update is lora_alpha / r"},
    {.key = "lora_bias",
     .since = {0, 14, 0},
     .before = {0, 13, 2},
     .value = "false",
     .used = kAll,
     .refused = kNone,
     .what = "lora_B has a bias",
     .on_parameters = false},
    {.key = "lora_dropout",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "0.0",
     .used = {targets, convert, run, create},
     .refused = kNone,
     .what = "dropout of training; 0 on parameters"},
    {.key = "lora_ga_config",
     .since = {0, 19, 0},
     .before = {0, 18, 1},
     .value = "null",
     .used = kNone,
     .refused = {create},
     .what = "how LoRA-GA starts an adapter",
     .why = "LoRA-GA starts from gradients, which is not implemented",
     .hint = kOtherStart,
     .tells = Tells::unless_null},
    {.key = "megatron_config",
     .since = {0, 7, 1},
     .before = {0, 6, 2},
     .value = "null",
     .used = kNone,
     .refused = kRunning,
     .what = "targets are Megatron's parallel layers",
     .why = "Megatron's parallel layers are not implemented",
     .hint = "leave it out"},
    {.key = "megatron_core",
     .since = {0, 7, 1},
     .before = {0, 6, 2},
     .value = "\"megatron.core\"",
     .used = kNone,
     .refused = kNone,
     .what = "Megatron's Python module; never imported"},
    {.key = "modules_to_save",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "null",
     .used = kAll,
     .refused = kNone,
     .what = "modules that are saved whole"},
    {.key = "monteclora_config",
     .since = {0, 20, 0},
     .before = {0, 19, 1},
     .value = "null",
     .used = kNone,
     .refused = kRunning,
     .what = "MonteCLoRA: noise on lora_A while training; a trained adapter is plain LoRA",
     .why = "MonteCLoRA's sampling is not implemented",
     .hint = "use plain LoRA",
     .tells = Tells::unless_null,
     .on_parameters = false},
    {.key = "peft_type",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "\"LORA\"",
     .used = kAll,
     .refused = kNone,
     .what = "the method; another than LORA is CF_TYPE"},
    {.key = "peft_version",
     .since = {0, 18, 1},
     .before = {0, 17, 1},
     .value = "null",
     .used = kAll,
     .refused = kNone,
     .what = "who wrote the file"},
    {.key = "qalora_group_size",
     .since = {0, 16, 0},
     .before = {0, 15, 2},
     .value = "16",
     .used = kNone,
     .refused = kNone,
     .what = "says something with use_qalora only"},
    {.key = "r", .since = {0, 3, 0}, .before = {0, 0, 0}, .value = "8", .used = kAll, .refused = kNone, .what = "rank"},
    {.key = "rank_pattern",
     .since = {0, 6, 2},
     .before = {0, 5, 0},
     .value = "{}",
     .used = kAll,
     .refused = kNone,
     .what = "ranks of single modules"},
    {.key = "revision",
     .since = {0, 4, 0},
     .before = {0, 3, 0},
     .value = "null",
     .used = kNone,
     .refused = kNone,
     .what = "revision of the base model; never looked up"},
    {.key = "target_modules",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "null",
     .used = kChoosing,
     .refused = kNone,
     .what = "modules that have LoRA; the file's own tensors say it to the other verbs"},
    {.key = "target_parameters",
     .since = {0, 17, 0},
     .before = {0, 16, 0},
     .value = "null",
     .used = kAll,
     .refused = kNone,
     .what = "parameters that have LoRA"},
    {.key = "task_type",
     .since = {0, 3, 0},
     .before = {0, 0, 0},
     .value = "null",
     .used = kAll,
     .refused = kNone,
     .what = "the task; classification saves its head"},
    {.key = "trainable_token_indices",
     .since = {0, 15, 2},
     .before = {0, 14, 0},
     .value = "null",
     .used = kAll,
     .refused = kNone,
     .what = "rows of embeddings that are trained"},
    {.key = "use_bdlora",
     .since = {0, 19, 0},
     .before = {0, 18, 1},
     .value = "null",
     .used = {targets},
     .refused = kOtherArithmetic,
     .what = "BD-LoRA: lora_A or lora_B is block-diagonal, stored as its blocks",
     .why = "block-diagonal LoRA stores blocks, not matrices: the product of A and B is another",
     .hint = kMergeThere,
     .tells = Tells::unless_null,
     .on_parameters = false},
    {.key = "use_dora",
     .since = {0, 9, 0},
     .before = {0, 8, 2},
     .value = "false",
     .used = kAll,
     .refused = kNone,
     .what = "DoRA: the file has magnitudes",
     .on_parameters = false},
    {.key = "use_qalora",
     .since = {0, 16, 0},
     .before = {0, 15, 2},
     .value = "false",
     .used = kNone,
     .refused = kOtherArithmetic,
     .what = "QALoRA on a GPTQ base: lora_A works on averages of groups of inputs",
     .why = "on the GPTQ base it was made for, QALoRA's lora_A works on averages of inputs: its update is not B·A",
     .hint = kMergeThere,
     .on_parameters = false},
    {.key = "use_rslora",
     .since = {0, 8, 2},
     .before = {0, 7, 1},
     .value = "false",
     .used = kAll,
     .refused = kNone,
     .what = "scale of the update is lora_alpha / √r"},
    {.key = "velora_config",
     .since = {0, 20, 0},
     .before = {0, 19, 1},
     .value = "null",
     .used = kNone,
     .refused = kRunning,
     .what = "VeLoRA: another backward pass; a trained adapter is plain LoRA",
     .why = "VeLoRA's backward pass is not implemented",
     .hint = "use plain LoRA",
     .tells = Tells::unless_null,
     .on_parameters = false},

    // What LoraConfig does not write: fields of other versions and other programs.
    {.key = "enable_lora",
     .since = {},
     .before = kNever,
     .value = "",
     .used = kNone,
     .refused = kOtherArithmetic | Verbs{targets},
     .what = "PEFT before 0.3: which thirds of a merged projection have LoRA",
     .why = "enable_lora is PEFT's MergedLinear before 0.3: groups of rows of one weight, with factors of other shapes",
     .hint = "merge the adapter with PEFT 0.2"},
    {.key = "lora_B_layout",
     .since = {},
     .before = kNever,
     .value = "",
     .used = kFactors | Verbs{inspect},
     .refused = kNone,
     .what = "Unsloth's mark: how the experts lie in lora_B"},
    {.key = "merge_weights",
     .since = {},
     .before = kNever,
     .value = "",
     .used = kNone,
     .refused = kNone,
     .what = "PEFT before 0.3: merge when the model is evaluated"},
    {.key = "runtime_config",
     .since = {},
     .before = {0, 11, 1},
     .value = "",
     .used = kNone,
     .refused = kNone,
     .what = "where PEFT computes; it saves nothing of it"},
    {.key = "unsloth_fused_expert_lora",
     .since = {},
     .before = kNever,
     .value = "",
     .used = kNone,
     .refused = kNone,
     .what = "Unsloth's mark: experts are fused"},
};

constexpr std::string_view kOwnPrefix = "peft_cpp_";

constexpr std::size_t count_peft_keys() {
  std::size_t count = 0;
  while (!kKeys[count].value.empty()) ++count;
  return count;
}

const PeftKey* find_key(std::span<const PeftKey> rows, std::string_view key) {
  const auto found = std::ranges::find(rows, key, &PeftKey::key);
  return found == rows.end() ? nullptr : &*found;
}

}  // namespace

std::span<const PeftKey> peft_keys() { return std::span(kKeys).first(count_peft_keys()); }
std::span<const PeftKey> config_keys() { return kKeys; }

const PeftKey* find_peft_key(std::string_view key) { return find_key(peft_keys(), key); }

bool is_known_extra(std::string_view key) {
  return key.starts_with(kOwnPrefix) || find_key(config_keys().subspan(count_peft_keys()), key) != nullptr;
}

bool tells(const PeftKey& row, const Json& value) {
  if (value.is_null() || value == false) return false;
  if (row.tells == Tells::unless_null) return true;
  return value.is_number() ? value != 0 : value.is_string() ? value != "" : value.is_boolean() || !value.empty();
}

std::vector<TellingKey> telling_keys(const AdapterConfig& config) {
  std::vector<TellingKey> found;
  const Json object = object_of(config);
  for (const auto& [key, value] : object.get_ref<const Json::object_t&>()) {
    const PeftKey* row = find_key(config_keys(), key);
    if (row != nullptr && tells(*row, value)) found.push_back({row, dump_python(value, -1)});
  }
  return found;
}

std::string names(Verbs verbs) {
  constexpr std::pair<Verb, std::string_view> kNames[] = {
      {inspect, "inspect"},     {targets, "targets"}, {convert, "convert"}, {verify, "verify"},
      {merge, "merge"},         {combine, "combine"}, {resize, "resize"},   {run, "logits, generate, train"},
      {create, "a new adapter"}};
  std::string text;
  for (const auto& [verb, name] : kNames) {
    if (verbs.contains(verb)) text += (text.empty() ? "" : ", ") + std::string(name);
  }
  return text;
}

}  // namespace peft::config

namespace peft {

void require_usable(const AdapterConfig& config, Verb verb) {
  for (const auto& [row, value] : config::telling_keys(config)) {
    if (!row->refused.contains(verb)) continue;
    throw Error(ErrorCode::CF_UNSUP, {.file = config.file,
                                      .tensor = std::string(row->key),
                                      .problem = std::string(row->why),
                                      .expected = "no value, for " + config::names({verb}),
                                      .got = value,
                                      .hint = std::string(row->hint)});
  }
}

}  // namespace peft
