"""Builds the model types of transformers on the meta device, at small sizes, from configs whose numbers are Symbols."""
import copy
import importlib
import json
import os
import re
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import torch

torch.set_num_threads(1)
import transformers
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

import symbols
from symbols import Real, Symbol, plain

transformers.logging.set_verbosity_error()
VERSION = transformers.__version__
V5 = int(VERSION.split(".")[0]) >= 5
symbols.install()
try:
    from transformers.initialization import no_init_weights
except ImportError:
    from transformers.modeling_utils import no_init_weights

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Where a class of a type is looked up; the first that has one is the type's usual class.
TASKS = ["CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "MASKED_LM",
         "TOKEN_CLASSIFICATION", ""]

# Sizes of the small models, by the last part of a key. No two dimensions shall be equal.
TINY = {
    "vocab_size": 211, "hidden_size": 96, "d_model": 96, "n_embd": 96, "dim": 96, "embed_dim": 96, "word_embed_proj_dim": 96,
    "intermediate_size": 136, "ffn_dim": 136, "d_ff": 136, "ffn_hidden_size": 136, "hidden_dim": 136, "mlp_hidden_size": 136,
    "encoder_ffn_dim": 136, "decoder_ffn_dim": 152, "intermediate_size_mlp": 168,
    "moe_intermediate_size": 56, "shared_expert_intermediate_size": 72, "shared_intermediate_size": 72,
    "moe_shared_expert_intermediate_size": 72, "expert_ffn_hidden_size": 56,
    "num_attention_heads": 6, "n_head": 6, "n_heads": 6, "num_heads": 6, "encoder_attention_heads": 6, "decoder_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 20, "d_kv": 20, "q_lora_rank": 44, "kv_lora_rank": 36,
    "qk_rope_head_dim": 12, "qk_nope_head_dim": 26, "v_head_dim": 22,
    "global_head_dim": 28, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 34,
}
LAYERS = {"num_hidden_layers": 12, "n_layer": 12, "n_layers": 12, "num_layers": 12, "depth": 12, "encoder_layers": 12,
          "decoder_layers": 13, "num_decoder_layers": 13}
EXPERTS = {"num_local_experts": 11, "num_experts": 11, "n_routed_experts": 11, "moe_num_experts": 11}
# Defaults without experts, or that a class does not accept as they are.
ROPE3 = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 10000.0}
OVERRIDES = {
    "Qwen3OmniMoeTalkerConfig": dict(spatial_merge_size=2),
    "lfm2_moe": dict(num_dense_layers=2, layer_types=["conv", "full_attention", "conv"] * 4),
    "DbrxAttentionConfig": dict(rope_theta=10000.0),
    "llama4": dict(pad_token_id=None),
    "dots3_note_text": dict(num_key_value_heads=6, head_dim=38),
    "inkling2_vision": dict(text_hidden_size=96),
    "radio": dict(video_temporal_patch_size=2),
    "qwen3_omni_moe_talker_text": dict(shared_expert_intermediate_size=448),
    "qwen4_exp_text": dict(indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=64, indexer_budget=2048,
                           indexer_compress_ratio=4),
    "gemma3n_text": dict(num_kv_shared_layers=3, intermediate_size=[136] * 12),
    "gpt_neo": dict(attention_types=[[["global", "local"], 6]]),
    "qwen3_vl_text": {} if V5 else dict(rope_scaling=ROPE3),
    "qwen3_vl_moe_text": {} if V5 else dict(rope_scaling=ROPE3),
    "gemma4_text": dict(enable_moe_block=True, num_experts=11, top_k_experts=4, moe_intermediate_size=56),
    "diffusion_gemma_text": dict(num_experts=11, top_k_experts=4, moe_intermediate_size=56),
    "dots1": dict(n_routed_experts=11, num_experts_per_tok=4, n_shared_experts=2),
    "deepseek_v2": dict(num_experts_per_tok=4),
    "deepseek_ocr2_text": dict(num_experts_per_tok=4, mlp_layer_types=["dense"] + ["sparse"] * 11),
    "hunyuan_v1_moe": dict(num_experts=11, moe_topk=4, head_dim=20),
    "hunyuan_v1_dense": dict(head_dim=20),
    "cohere2_moe": dict(num_shared_experts=2),
    "switch_transformers": dict(num_sparse_encoder_layers=3, num_sparse_decoder_layers=3),
}


def config_class_of(model_type):
    return CONFIG_MAPPING[model_type]


def classes_of(model_type):
    """Class names by task, the usual one first. A bare model only where nothing else is there, or for encoders."""
    names = []
    for task in TASKS:
        if task == "" and names and model_type not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            continue
        mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES", {})
        found = mapping.get(model_type)
        for name in [found] if isinstance(found, str) else found or []:
            if hasattr(transformers, name) and getattr(transformers, name).config_class is not config_class_of(model_type):
                continue  # takes a part of this config
            if name not in names and task != "TOKEN_CLASSIFICATION" or not names:
                names.append(name)
    return names


def fields_of(config_class):
    """Keyword -> default, as the class states them."""
    if V5:
        import dataclasses
        own = {}
        skip = {f.name for f in dataclasses.fields(PretrainedConfig)} - {"tie_word_embeddings", "is_encoder_decoder"}
        for f in dataclasses.fields(config_class):
            if not f.init or f.name in skip:
                continue
            own[f.name] = (f.default if f.default is not dataclasses.MISSING else
                           f.default_factory() if f.default_factory is not dataclasses.MISSING else None)
        return own
    import inspect
    return {n: p.default for n, p in inspect.signature(config_class.__init__).parameters.items()
            if p.default is not inspect.Parameter.empty}


ASKED = re.compile(r"""getattr\(\s*(?:self\.)?config,\s*["'](\w+)["']""")


def asked_keys(config_class):
    """Keys that the model asks for though the config does not declare them (head_dim of qwen3_moe)."""
    import inspect
    try:
        module = importlib.import_module(config_class.__module__.replace(".configuration_", ".modeling_"))
        return set(ASKED.findall(inspect.getsource(module)))
    except (ImportError, OSError, TypeError):
        return set()


LEGACY = re.compile(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']\s*(?:,\s*([^()]*?))?\)""")


def legacy_keys(config_class):
    """Keys that a config class takes from older files, though they are no fields of it: {key: default}."""
    import ast
    import inspect
    try:
        text = inspect.getsource(config_class)
    except OSError:
        return {}
    found = {}
    for key, default in LEGACY.findall(text):
        try:
            found[key] = ast.literal_eval(default) if default else None
        except (ValueError, SyntaxError):
            found[key] = None
    return {k: v for k, v in found.items() if not k.startswith("_") and "rope" not in k and not isinstance(v, (dict, float))}


class Schema:
    """The fields of a config class and of the configs below it."""

    def __init__(self, config, path=""):
        self.config, self.path = config, path
        self.type = type(config)
        self.model_type = getattr(config, "model_type", "")
        self.fields = fields_of(self.type)
        self.legacy = {k: v for k, v in legacy_keys(self.type).items() if k not in self.fields}
        self.legacy |= {k: None for k in asked_keys(self.type) if k not in self.fields and k not in self.legacy and
                        not hasattr(config, k)}
        self.fields |= self.legacy
        self.children = {}
        for key, value in vars(config).items():
            if isinstance(value, PretrainedConfig) and key in self.fields | dict.fromkeys(getattr(self.type, "sub_configs", {}) or {}):
                self.children[key] = Schema(value, f"{path}{key}.")
        # Layer lists that the class computes when they are left out.
        self.computed = {k: getattr(config, k, None) for k, d in self.fields.items() if d is None and k not in self.children}

    def all(self):
        yield self
        for child in self.children.values():
            yield from child.all()


def cycled(values, count):
    """A list of that many with every kind of value, none of them only at the end."""
    kinds = list(dict.fromkeys(values))
    return [kinds[(i * 2 + i // 3) % len(kinds)] if len(kinds) > 1 else kinds[0] for i in range(count)]


def small(schema, level):
    """Overrides of every field at small sizes: {path: value}. Levels leave more and more as the class has it."""
    point = {}
    for number, part in enumerate(schema.all()):
        # No two parts with as many layers: a count has to tell whose it is.
        own_layers = {k: v + 3 * number for k, v in LAYERS.items()}
        sizes = own_layers | (dict(EXPERTS) if level < 3 else {}) | (TINY if level == 0 else {"vocab_size": 211} if level == 1 else {})
        fixed = {}
        for name in (part.model_type, part.type.__name__):
            fixed |= OVERRIDES.get(name, {})
        layers = next((part.fields[k] for k in LAYERS if type(part.fields.get(k)) is int), None)
        for key, default in part.fields.items():
            path = part.path + key
            value = default = list(default) if isinstance(default, tuple) else default
            if key in fixed:
                value = fixed[key]
            elif type(default) is int:
                if key in sizes:
                    value = sizes[key]
                elif key.endswith("_token_id") or key.endswith("_token_index"):
                    value = min(default, 7)
            elif isinstance(default, (list, tuple)) and layers and len(default) == layers:
                value = cycled(default, next(v for k, v in own_layers.items() if k in part.fields))
            if key in part.children:
                continue
            if not (value is default and default is None):
                point[path] = value
        point |= {part.path + k: v for k, v in fixed.items() if k not in part.fields}
    return point


def symbolic(value, path):
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, Symbol) or isinstance(value, Real):
        return value
    if isinstance(value, int):
        return Symbol(value, path)
    if isinstance(value, float):
        return Real(value, path)
    if isinstance(value, (list, tuple)):
        return [symbolic(v, f"{path}[{i}]") for i, v in enumerate(value)]
    return value


def make_config(schema, point, with_symbols=True):
    def keywords(part):
        kw = {}
        for path, value in point.items():
            key = path[len(part.path):]
            if path.startswith(part.path) and "." not in key:
                kw[key] = symbolic(value, path) if with_symbols else value
        for key, child in part.children.items():
            kw[key] = keywords(child)
            if child.model_type:
                kw[key]["model_type"] = child.model_type
        return kw
    kw = keywords(schema)
    return schema.type(**copy.deepcopy(kw))


def patch_modules():
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and ".modeling_" in name or ".configuration_" in name:
            symbols.patch_module(module)


def build(class_name, config):
    model_class = getattr(transformers, class_name)
    importlib.import_module(model_class.__module__)
    patch_modules()
    for part in [config, *[v for v in vars(config).values() if isinstance(v, PretrainedConfig)]]:
        for key in ("_experts_implementation", "_experts_implementation_internal", "_attn_implementation"):
            try:
                setattr(part, key, "eager")
            except Exception:
                pass
    with torch.device("meta"), no_init_weights():
        return model_class._from_config(config) if hasattr(model_class, "_from_config") else model_class(config)


def find_small(model_type, class_name):
    """The schema, the smallest point that the class accepts, and its level."""
    schema = Schema(CONFIG_MAPPING[model_type]())
    errors = []
    for level in range(4):
        point = small(schema, level)
        try:
            build(class_name, make_config(schema, point))
            return schema, point, level
        except Exception as error:
            errors.append(f"level {level}: {type(error).__name__}: {str(error)[:200]}")
    raise ValueError("; ".join(errors))


# ---- what a model looks like -----------------------------------------------------------------------------------------

def kind_of(module):
    if isinstance(module, torch.nn.Linear):
        return "linear"
    if type(module).__name__ == "Conv1D":
        return "conv1d"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
        return "conv"
    return "other"


def modules_of(model):
    """[(name, class, kind, {parameter: shape}, {parameter: formulas})] of the modules that own parameters, in order."""
    rows = []
    for name, module in model.named_modules():
        kind = kind_of(module)
        own = {n: p for n, p in module._parameters.items() if p is not None and (kind == "other" or n != "bias")}
        if not own:
            continue
        shapes = {n: list(p.shape) for n, p in own.items()}
        formulas = {n: getattr(p, "formulas", None) for n, p in own.items()}
        rows.append((name, type(module).__name__, kind, shapes, formulas))
    return rows


def embedding_names(model):
    names = {id(m): n for n, m in model.named_modules()}

    def of(getter):
        try:
            module = getattr(model, getter)()
        except Exception:
            return ""
        return names.get(id(module), "") if module is not None else ""
    return of("get_input_embeddings"), of("get_output_embeddings")


def config_json(config, class_name):
    """config.json as save_pretrained writes it."""
    config = copy.deepcopy(config)
    config.architectures = [class_name]
    values = plain(config.to_diff_dict())
    text = json.loads(json.dumps(values, default=str, sort_keys=True))
    return strip(text)


def strip(value):
    """Leaves out what no description of modules can need, so that golden files stay small."""
    if not isinstance(value, dict):
        return value
    drop = {"id2label", "label2id", "dtype", "torch_dtype", "_name_or_path", "rope_parameters", "transformers_version",
            "rope_scaling", "initializer_range", "rms_norm_eps", "use_cache"}
    drop |= {k for k, v in value.items() if "Infinity" in json.dumps(v)}  # no JSON
    return {k: strip(v) for k, v in value.items() if k not in drop and (k == "pad_token_id" or not k.endswith("_token_id"))}


# Kinds of layers that a list may name and the default has not.
KINDS = {}


def all_types():
    families = json.loads((ROOT / "data/families.json").read_text())
    return [*families["families"], *families["dense"]]
