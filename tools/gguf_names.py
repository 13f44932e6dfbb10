#!/usr/bin/env python3
"""Makes data/gguf_names.json: what llama.cpp calls the modules of each model type, and which rows it reorders.

  python tools/gguf_names.py LLAMA_CPP_DIR > data/gguf_names.json

LLAMA_CPP_DIR is a checkout of llama.cpp, or vendor/llama.cpp of the llama_cpp_python sdist. Needs torch and transformers.
Nothing is copied from its tables by hand: each weight of each module tree (tests/module_trees) goes through the converter
of its class, filled with numbers that show where every row ends up. A module whose weight comes out as one tensor, whole
or with the rows of its heads permuted, gets a name; every other one is listed under "changed".
"""
import glob
import json
import logging
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The order of the tensors of a layer in the files we write; names that are not here follow, as the class has them.
ORDER = ["ffn_gate_inp", "ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate", "ffn_up",
         "ffn_down", "attn_q", "attn_k", "attn_v", "attn_output"]
# Class attributes and hparams that converters set up while they read a checkpoint.
STATE = {"fuse_gate_up_exps": False, "no_mtp": True, "mtp_only": False, "fuse_qkv": False, "lazy": False, "tensor_names": None,
         "dir_model": Path("/nowhere"), "_ssm_layers": [], "_is_mxfp4": False, "_mtp_bid": None}


def converter(cls, hf_class, config, gguf):
    hparams = dict(config)
    for key in ("text_config", "llm_config"):
        if isinstance(hparams.get(key), dict):
            hparams.update(hparams[key])
    model = object.__new__(cls)
    layers = hparams.get("num_hidden_layers", 2)
    model.__dict__.update(STATE, hparams=hparams, block_count=layers, hf_arch=hf_class, model_arch=cls.model_arch, origin_hf_arch=hf_class,
                          tensor_map=gguf.get_tensor_name_map(cls.model_arch, layers), rope_parameters=hparams.get("rope_parameters") or {})
    cls._n_main_layers = cls._original_block_count = layers
    return model


def first_of_ranges(name):
    return re.sub(r"\{(\d+)[^}]*\}", r"\1", name)


def convert(model, name, tensor):
    layer = re.search(r"\.layers\.(\d+)\.", name)
    item = model.filter_tensors((name, lambda: tensor))
    return [] if item is None else list(model.modify_tensors(tensor, item[0], int(layer.group(1)) if layer else None))


def fate(model, name, shape, torch, permute):
    """("same" | "permuted" | "changed" | "left out", the tensor's name)"""
    tensor = torch.arange(shape[0] * shape[1], dtype=torch.float32).reshape(shape)
    try:
        made = convert(model, name, tensor)
    except Exception:  # the converter refuses it, or needs files of a real model
        return "changed", ""
    if not made:
        return "left out", ""
    if len(made) != 1 or made[0][1].shape != tensor.shape:
        return "changed", ""
    gguf_name = re.sub(r"^blk\.\d+\.", "", made[0][0]).removesuffix(".weight")
    if torch.equal(made[0][1], tensor):
        return "same", gguf_name
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = model.hparams.get(key)
        if heads and shape[0] % (2 * heads) == 0 and torch.equal(made[0][1], permute(tensor, heads, heads)):
            return "permuted", gguf_name
    return "changed", ""


def fuses_gate_up(model, modules, torch):
    """Whether the converter keeps gate and up of all experts as one tensor."""
    for name, _, _, shapes in modules:
        if "gate_up_proj" in shapes and name.endswith("experts"):
            try:
                made = convert(model, first_of_ranges(name) + ".gate_up_proj", torch.zeros(shapes["gate_up_proj"]))
            except Exception:
                return False
            return any("ffn_gate_up_exps" in made_name for made_name, _ in made)
    return False


def row_of(tree, gguf, torch, get_model_class, base, permute):
    hf_class = tree["class"]
    try:
        cls = get_model_class(hf_class)
    except NotImplementedError:
        return None
    if not issubclass(cls, base):
        return None
    model = converter(cls, hf_class, tree["config"], gguf)
    named, permuted, changed = {}, [], []
    prefix, experts = "", ""
    for name, class_name, kind, shapes in tree["modules"]:
        path = first_of_ranges(name)
        inside = re.search(r"^(.*)\.layers\.\d+\.(.*)", path)
        if inside and class_name.endswith("Experts") and len(shapes) > 1:
            prefix, experts = inside.groups()
        shape = shapes.get("weight")
        top = name in (tree.get("input"), tree.get("output"))
        if not shape or len(shape) != 2 or kind == "conv" or not (inside or top):
            continue
        suffix = inside.group(2) if inside else path.rsplit(".", 1)[-1]
        how, gguf_name = fate(model, path + ".weight", shape, torch, permute)
        if how == "changed":
            changed.append(suffix)
        elif how != "left out" and gguf_name not in named:
            named[gguf_name] = suffix
            prefix = prefix or (inside.group(1) if inside else "")
            if how == "permuted":
                permuted.append(gguf_name)
    if not any(name.startswith("attn") for name in named):
        return None
    order = {name: i for i, name in enumerate(ORDER)}
    tensors = sorted(named.items(), key=lambda item: order.get(item[0], len(order)))
    return {"architecture": gguf.MODEL_ARCH_NAMES[cls.model_arch], "prefix": prefix, "experts": experts, "fused_gate_up": fuses_gate_up(model, tree["modules"], torch),
            "permuted": permuted, "changed": sorted(set(changed)), "tensors": [list(item) for item in tensors]}


def main():
    source = sys.argv[1]
    sys.path[:0] = [source, os.path.join(source, "gguf-py")]
    logging.disable(logging.CRITICAL)
    import gguf
    import torch
    from conversion import get_model_class
    from conversion.base import TextModel
    from conversion.llama import LlamaModel

    rows = {}
    for path in sorted(glob.glob(str(ROOT / "tests/module_trees/*.v5.json"))):
        tree = json.load(open(path))
        model_type = tree["model_type"]
        if not tree["class"].endswith(("ForCausalLM", "ForConditionalGeneration")):
            continue
        row = row_of(tree, gguf, torch, get_model_class, TextModel, LlamaModel.permute)
        if row is not None:
            rows.setdefault(json.dumps(row), []).append(model_type)
    lines = []
    for text, types in rows.items():
        row = json.loads(text)
        lines.append(json.dumps({"architecture": row.pop("architecture"), "types": sorted(set(types)), **row}))
    version = re.search(r'^version = "(.*)"', open(os.path.join(source, "gguf-py/pyproject.toml")).read(), re.M).group(1)
    print('{\n "about": {"gguf": "%s", "made by": "tools/gguf_names.py"},\n "architectures": [\n  %s\n ]\n}' % (version, ",\n  ".join(sorted(lines))))


if __name__ == "__main__":
    main()
