#!/usr/bin/env python3
"""Compares the names that `peft convert --to mlx` writes with the modules of MLX-LM's own classes. Called by run.sh, in MLX-LM's environment.

    build/venvs/mlx_lm/bin/python tools/consumers/mlx_names.py [--peft build/release/peft] [model_type ...]

For every module tree of tests/module_trees (transformers 5) whose type MLX-LM has: an adapter with LoRA on all Linear modules and
experts of the tree, converted; then each name must be a module of that kind in the class that MLX-LM makes of the same config.
A module for which `peft` says that MLX-LM has no place is left out, and counted. Last line: mlx names: N types, N right.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.nn as nn
import numpy as np
from mlx_lm import utils
from mlx_lm.models.switch_layers import SwitchLinear
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig

ROOT = Path(__file__).resolve().parents[2]
NOT_TEXT = re.compile("visual|vision|audio|multi_modal|mtp")
RANK = 2
# MLX-LM's classes require these fields, and configs of transformers 5 call them otherwise or leave them out. Names do not depend on them.
FIELDS = {"rope_theta": 10000.0, "mlp_bias": False, "post_norm": False, "qk_norm": False, "rope_scaling": None, "partial_rotary_factor": 0.5,
          "rotary_emb_base": 10000, "rotary_pct": 0.25, "rotary_dim": 8, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
          "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "tie_word_embeddings": False,
          "norm_topk_prob": False, "first_k_dense_replace": 1}
LEAST_TYPES = 35
# MLX-LM's class does not take the config of these types; LoRA on its BitLinear is refused with a message (bitnet).
LEFT_OUT = ("bitnet",)


def expand(name):
    """ "layers.{0-2,5}.mlp" -> the four names."""
    match = re.search(r"\{([^}]*)\}", name)
    if not match:
        return [name]
    numbers = []
    for part in match[1].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return [each for n in numbers for each in expand(f"{name[:match.start()]}{n}{name[match.end():]}")]


def pair(tensors, name, shape_a, shape_b):
    tensors[f"base_model.model.{name}.lora_A.weight"] = np.ones(shape_a, np.float32)
    tensors[f"base_model.model.{name}.lora_B.weight"] = np.ones(shape_b, np.float32)


def all_pairs(tree, hidden):
    tensors = {}
    for pattern, _class, kind, shapes in (module for module in tree["modules"] if len(module) > 3):
        for name in expand(pattern):
            if NOT_TEXT.search(name):
                continue
            if kind == "linear" and "weight" in shapes and re.search(r"\.\d+\.", name):
                rows, columns = shapes["weight"]
                pair(tensors, name, (RANK, columns), (rows, RANK))
            stack = shapes.get("gate_up_proj", [])
            if len(stack) == 3:
                experts, inner = stack[0], (stack[1] if stack[2] == hidden else stack[2]) // 2
                for projection, rows, columns in (("w1", inner, hidden), ("w3", inner, hidden), ("w2", hidden, inner)):
                    pair(tensors, f"{name}.{projection}", (experts, RANK, columns), (experts, rows, RANK))
    return tensors


def without_numbers(name):
    return re.sub(r"\d+", "N", name)


def convert(peft, tensors, config, folder):
    """-> (names -> whether it is a switch layer, modules that have no place)"""
    (folder / "base").mkdir()
    (folder / "base/config.json").write_text(json.dumps(config))
    (folder / "adapter").mkdir()
    refused = []
    while tensors:
        save_file(tensors, folder / "adapter/adapter_model.safetensors")
        targets = sorted({key.split(".lora_")[0].split(".")[-1] for key in tensors})
        (folder / "adapter/adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": targets}))
        done = subprocess.run([peft, "convert", folder / "adapter", "--to", "mlx", "--base", folder / "base", "--out", folder / "mlx",
                               "--overwrite", "--no-sync", "--json"], capture_output=True, text=True)
        if done.returncode == 0:
            with safe_open(folder / "mlx/adapters.safetensors", "np") as file:
                return {key.removesuffix(".lora_a"): len(file.get_slice(key[:-1] + "b").get_shape()) == 3
                        for key in file.keys() if key.endswith(".lora_a")}, refused
        error = json.loads(done.stdout)["error"]
        place = without_numbers(error["tensor"].split(".lora_")[0].removeprefix("base_model.model."))
        less = {key: value for key, value in tensors.items()
                if not without_numbers(key.removeprefix("base_model.model.")).startswith(place + ".")}
        if error["code"] not in ("LO_NO_FORM", "LO_TARGET") or not place or len(less) == len(tensors):
            raise RuntimeError(f"{error['code']} {error['tensor']}: {error['problem']}")
        refused.append(f"{place}: {error['problem']}")
        tensors = less
    return {}, refused


def make_model(model_type, config):
    """MLX-LM's class for this config, or None where it has none or needs fields that are unknown here."""
    full = AutoConfig.for_model(model_type, **{k: v for k, v in config.items() if k not in ("model_type", "architectures")}).to_dict()
    full.pop("quantization", None)
    text = full.get("text_config") or full
    fields = FIELDS | {"head_dim": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
                       "num_experts": text.get("num_local_experts"), "intermediate_size": text.get("intermediate_size"),
                       "shared_intermediate_size": text.get("intermediate_size"), "block_dim": text["hidden_size"]}
    make, arguments = utils._get_classes({**config, "model_type": model_type})
    more = {}
    while True:
        values = {**full, "model_type": model_type, **more}
        if isinstance(full.get("text_config"), dict):
            values["text_config"] = {**full["text_config"], **more}
        try:
            return make(arguments.from_dict(values))
        except TypeError as error:
            missing = re.findall(r"'(\w+)'", str(error)) if "missing" in str(error) else []
            if not missing or any(name in more or name not in fields for name in missing):
                raise
            more |= {name: fields[name] for name in missing}


def compare(names, model):
    modules = dict(model.named_modules())
    wrong = set()
    for name, stacked in names.items():
        module = modules.get(name)
        if not isinstance(module, SwitchLinear if stacked else nn.Linear):
            wrong.add(f"{without_numbers(name)}: {'no such module' if module is None else type(module).__name__}")
    return sorted(wrong)


def check(peft, path, verbose):
    """-> right, or None where MLX-LM has not this type"""
    tree = json.loads(path.read_text())
    model_type, config = tree["model_type"], {"model_type": tree["model_type"], **tree["config"]}
    hidden = config.get("text_config", config).get("hidden_size")
    tensors = all_pairs(tree, hidden)
    if model_type in LEFT_OUT or not tensors:
        return None
    try:
        model = make_model(model_type, config)
    except (Exception, SystemExit) as error:  # noqa: BLE001: a class that is not there, or does not take this config
        if verbose:
            print(f"{path.name}: left out: {type(error).__name__}: {str(error)[:100]}")
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            names, refused = convert(peft, tensors, config, Path(folder))
        except RuntimeError as error:
            print(f"{path.name}: {error}")
            return False
    wrong = compare(names, model)
    for text in wrong:
        print(f"{path.name}: {text}")
    if verbose:
        print(f"{path.name}: {len(names)} names, {len(wrong)} wrong" + "".join(f"\n    no place: {text}" for text in refused))
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; all when not given")
    parser.add_argument("--peft", type=Path, default=ROOT / "build/release/peft")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    trees = sorted((ROOT / "tests/module_trees").glob("*.v5.json"))
    answers = [check(arguments.peft, path, arguments.verbose) for path in trees
               if not arguments.types or path.name.split(".")[0] in arguments.types]
    answers = [answer for answer in answers if answer is not None]
    print(f"mlx names: {len(answers)} types, {sum(answers)} right")
    sys.exit(0 if all(answers) and (arguments.types or len(answers) >= LEAST_TYPES) else 1)


if __name__ == "__main__":
    main()
