#!/usr/bin/env python3
"""Random adapters that the real PEFT writes on the golden v4 models, as a golden root for run.py: odd mixes of targets,
patterns, excludes, layers, rsLoRA, saved modules.

    build/venvs/old/bin/python tools/real_peft/make_mixes.py --golden ../shared/golden --out /tmp/mixes --number 40 --seed 1
    PEFT_GOLDEN=/tmp/mixes tools/real_peft/run.sh

Needs the golden models with their weights. A mix that PEFT refuses is drawn again.
"""

import argparse
import json
import os
import random
import shutil
import sys
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
import torch
from peft import LoraConfig, get_peft_model

sys.path.insert(0, str(Path(__file__).parent))
from models import Models

# Golden model: whether it has shared experts or dense layers, whose right config PEFT 0.21.2 rewrites on loading.
MODELS = {"mixtral-v4": False, "qwen3_moe-v4": False, "olmoe-v4": False, "qwen2_moe-v4": True, "deepseek_v3-v4": True,
          "glm4_moe-v4": True, "mixtral-small-v4": False}


def linear_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]


def some(rng, items, most):
    items = sorted(items)
    return rng.sample(items, min(len(items), rng.randint(1, most)))


def patterns(rng, names, draw):
    """Keys of every kind PEFT takes: leaf, longer suffix, full name, regular expression."""
    result = {}
    for name in some(rng, names, 4):
        parts = name.split(".")
        key = rng.choice([parts[-1], ".".join(parts[-2:]), name, r".*\.layers\.%s\..*%s" % (parts[2], parts[-1]),
                          rf"layers\.\d+\..*\.{parts[-1]}"])
        result[key] = draw()
    return dict(sorted(result.items()))  # PEFT sorts them on saving; another order would be another adapter


def draw_config(rng, names):
    leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
    experts = [name for name in names if ".experts." in name]
    kind = rng.random()
    if kind < 0.6:
        targets = some(rng, leaves, len(leaves))
    elif kind < 0.8:
        targets = r".*\.(%s)" % "|".join(some(rng, leaves, len(leaves)))
    else:
        targets = some(rng, names, 12)
    config = dict(r=rng.randint(1, 6), lora_alpha=rng.choice([1, 5, 8, 16, 7.5]), target_modules=targets, task_type="CAUSAL_LM",
                  use_rslora=rng.random() < 0.3, lora_dropout=rng.choice([0, 0, 0.1]))
    if rng.random() < 0.5:
        config["rank_pattern"] = patterns(rng, rng.choice([names, experts]), lambda: rng.randint(1, 6))
    if rng.random() < 0.5:
        config["alpha_pattern"] = patterns(rng, rng.choice([names, experts]), lambda: rng.choice([2, 4, 9, 2.5]))
    if rng.random() < 0.3:
        config["exclude_modules"] = rng.choice([some(rng, leaves, 2), some(rng, names, 3), r".*\.layers\.0\..*"])
    if isinstance(targets, list) and rng.random() < 0.2:
        config["layers_to_transform"] = rng.choice([0, 1, [0, 1]])
        config["layers_pattern"] = "layers"
    if rng.random() < 0.15:
        config["modules_to_save"] = ["lm_head"]
    return config


def write(models, name, config, folder, seed):
    """-> whether PEFT took it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(models.get(name), LoraConfig(**config))
    except (ValueError, KeyError, AttributeError):
        return False
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "adapter")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    models, rng, written = Models(given.golden, given.out), random.Random(given.seed), 0
    while written < given.number:
        name = rng.choice(sorted(MODELS))
        config = draw_config(rng, linear_names(models.get(name)))
        folder = given.out / "convert" / f"mix-{given.seed}-{written}"
        shutil.rmtree(folder, ignore_errors=True)
        if not write(models, name, config, folder, written):
            continue
        if not (given.out / "models" / name).exists():
            shutil.copytree(given.golden / "models" / name, given.out / "models" / name, copy_function=shutil.copyfile)
        as_is = {"max_abs_diff": 1.0 if MODELS[name] else 0.0}
        case = {"id": folder.name, "model": name, "producer": {"peft": "0.18.1", "transformers": "4.57.6"},
                "input_ids": [[1, 5, 9, 3, 7, 2, 8], [4, 4, 6, 1, 2, 9, 3]], "config": {k: str(v) for k, v in config.items()},
                "expect": {"v4": {}, "v5": {"0.21.2": {"outcome": "error"}}, "right": {"real_peft_on_it": {"as_is": as_is}}}}
        (folder / "case.json").write_text(json.dumps(case, indent=1))
        written += 1
    print(f"{written} adapters in {given.out / 'convert'}")


if __name__ == "__main__":
    main()
