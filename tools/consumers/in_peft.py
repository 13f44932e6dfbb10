"""Runs a LoRA in PEFT on transformers. A key that PEFT does not find, or does not use, is an error here: PEFT only warns."""

from worker import serve  # first: it keeps stdout for answers

import copy
import os
import warnings
from functools import lru_cache

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


@lru_cache(maxsize=1)
def load_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def load_adapter(model, folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, folder)
    for warning in caught:
        text = str(warning.message)
        if "missing adapter keys" in text or "unexpected keys" in text:
            raise RuntimeError("PEFT warns: " + text)
    return model


def answer(job):
    model = copy.deepcopy(load_model(job["model"]))
    if job["adapter"]:
        model = load_adapter(model, job["adapter"])
    model.eval()
    with torch.no_grad():
        return {f"logits.{number}": model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy().copy()
                for number, tokens in enumerate(job["ids"])}


torch.set_num_threads(1)
serve(answer)
