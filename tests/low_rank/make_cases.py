#!/usr/bin/env python3
"""Makes cases.json's cases: what the real PEFT's add_weighted_adapter gives for the types that prune.

    python3 make_cases.py            in a venv with peft 0.21.2, transformers 5.24.0, torch

Two adapters of a tiny llama are written to adapter/ and adapter/other/; for each case expected/ID.safetensors holds scale * B * A of
every module. PEFT draws its random masks from torch's generator; here they are replaced by the ones peft.cpp draws (restated
below), so that everything else of dare_linear and dare_ties is compared number by number. peft.cpp adds no noise of its own to ties
between equal magnitudes: the random adapters have none.
"""
import json
import pathlib
import shutil

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import model as lora_model
from peft.utils import merge_utils
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def stream_of(name, index):
    h = 0xCBF29CE484222325
    for c in name.encode():
        h = ((h ^ c) * 0x100000001B3) & MASK64
    return mix((h + index * GOLDEN) & MASK64)


def mask(shape, density, seed, stream):
    key = mix((seed + GOLDEN) & MASK64) ^ stream
    n = int(np.prod(shape))
    uniform = [(mix((key + (i + 1) * GOLDEN) & MASK64) >> 11) * 2.0**-53 for i in range(n)]
    return torch.tensor([1.0 if u < density else 0.0 for u in uniform], dtype=torch.float64).reshape(shape)


class Draws:
    """Hands out our masks in the order in which PEFT asks for them."""

    def __init__(self, seed):
        self.seed, self.queue = seed, []

    def prune(self, tensor, density, rescale):
        stream = self.queue.pop(0)
        kept = tensor * mask(tuple(tensor.shape), density, self.seed, stream).to(tensor.dtype)
        return kept / density if rescale else kept


def base():
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                                        num_key_value_heads=2, vocab_size=32)).double()


def fill(model, name, seed):
    g = torch.Generator().manual_seed(seed)
    for key, p in model.named_parameters():
        if f".{name}." in key and "lora_" in key:
            # Both adapters pull the same way in part: else no sign would ever be agreed on.
            p.data = (torch.randn(p.shape, generator=g, dtype=torch.float32) + 0.5).to(p.dtype)


def cases():
    for kind in ("ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd"):
        for weights, density, method in (([0.7, 0.4], 0.5, "total"), ([0.7, -0.4], 0.31, "frequency")):
            if method == "frequency" and "ties" not in kind:
                method = "total"
            yield dict(id=f"{kind}-{density}", type=kind, weights=weights, density=density, majority_sign_method=method, seed=11)


class OurMasks:
    """Stands in for merge_utils.random_pruning while LoraModel combines one module after the other."""

    def __init__(self):
        self.draws, self.names = Draws(0), {}
        merge_utils.random_pruning = lambda tensor, density, rescale: self.draws.prune(tensor, density, rescale)
        self.wrap("_generalized_task_arithmetic_weighted_adapter", sides=(0, 1))
        self.wrap("_svd_generalized_task_arithmetic_weighted_adapter", sides=(0,))

    def wrap(self, method, sides):
        original = getattr(lora_model.LoraModel, method)

        def wrapped(model, kind, adapters, weights, *rest, **options):
            target = next(r for r in rest if hasattr(r, "lora_A"))
            which = [i for i, a in enumerate(adapters) if a in target.lora_A]
            self.draws.queue = [stream_of(self.names[target], 2 * i + side) for side in sides for i in which]
            return original(model, kind, adapters, weights, *rest, **options)

        setattr(lora_model.LoraModel, method, wrapped)

    def begin(self, model, seed):
        self.draws, self.names = Draws(seed), {m: n for n, m in model.base_model.model.named_modules()}


def write_adapters():
    model = get_peft_model(base(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]))
    model.add_adapter("other", LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "v_proj", "o_proj"]))
    fill(model, "default", 1)
    fill(model, "other", 2)
    for folder in ("adapter", "expected"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    (HERE / "expected").mkdir()
    model.save_pretrained(HERE / "adapter")
    for readme in HERE.rglob("adapter/**/README.md"):
        readme.unlink()
    for config in HERE.rglob("adapter_config.json"):  # a set in PEFT: sorted, the file is the same every time
        value = json.loads(config.read_text())
        value["target_modules"] = sorted(value["target_modules"])
        config.write_text(json.dumps(value, indent=2, sort_keys=True))


def main():
    torch.set_default_dtype(torch.float64)
    write_adapters()
    masks, listed = OurMasks(), list(cases())
    for case in listed:
        model = PeftModel.from_pretrained(base(), HERE / "adapter", autocast_adapter_dtype=False)
        model.load_adapter(HERE / "adapter" / "other", "other", autocast_adapter_dtype=False)
        masks.begin(model, case["seed"])
        model.add_weighted_adapter(["default", "other"], case["weights"], "combined", combination_type=case["type"],
                                   density=case["density"], majority_sign_method=case["majority_sign_method"])
        deltas = {n: m.get_delta_weight("combined").detach().numpy() for n, m in model.base_model.model.named_modules()
                  if hasattr(m, "lora_A") and "combined" in m.lora_A}
        save_file({k: np.ascontiguousarray(v, dtype=np.float64) for k, v in deltas.items()}, HERE / "expected" / f"{case['id']}.safetensors")
        print(case["id"], {k: float(np.linalg.norm(v)) for k, v in list(deltas.items())[:2]})
    (HERE / "cases.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
