"""Runs a LoRA in MLX-LM: its own classes and its own load_adapters, on the CPU."""

from worker import serve  # first: it keeps stdout for answers

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm import utils
from mlx_lm.tuner.utils import load_adapters


def halves_of_gpt_oss(weights):
    """MLX-LM takes gpt-oss as MXFP4 or by its own names. Float experts get those names: gate and up alternate in rows."""
    renamed = {}
    for name, value in weights.items():
        if "gate_up_proj" in name:
            stem, kind = name.split("gate_up_proj")[0], ".bias" if name.endswith("_bias") else ".weight"
            value = value if kind == ".bias" else value.swapaxes(-1, -2)
            renamed[stem + "gate_proj" + kind] = value[:, ::2]
            renamed[stem + "up_proj" + kind] = value[:, 1::2]
        elif name.endswith("experts.down_proj"):
            renamed[name + ".weight"] = value.swapaxes(-1, -2)
        elif name.endswith("experts.down_proj_bias"):
            renamed[name.removesuffix("_bias") + ".bias"] = value
        else:
            renamed[name] = value
    return renamed


def load_model(folder):
    config = json.loads((Path(folder) / "config.json").read_text())
    make_model, make_arguments = utils._get_classes(config)
    model = make_model(make_arguments.from_dict(config))
    weights = mx.load(str(Path(folder) / "model.safetensors"))
    weights = halves_of_gpt_oss(weights) if config["model_type"] == "gpt_oss" else model.sanitize(weights)
    model.load_weights(list(weights.items()), strict=True)
    return model


def answer(job):
    model = load_model(job["model"])  # load_adapters changes it: a new one for each job
    if job["adapter"]:
        model = load_adapters(model, job["adapter"])
    model.eval()
    return {f"logits.{number}": np.array(model(mx.array([tokens]))[0].astype(mx.float32))
            for number, tokens in enumerate(job["ids"])}


serve(answer)
