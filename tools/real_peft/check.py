#!/usr/bin/env python3
"""Loads adapters with the real PEFT and compares what the model then answers. Runs inside an environment of setup.sh:

    build/venvs/new/bin/python tools/real_peft/check.py --golden tests/golden --work build/real_peft < JOBS

A job is one JSON object on a line; the answer is one JSON object on stdout: {"id", "failures": [text]}.
    {"do": "make", "id", "model"}    writes the base under WORK/models, in the form both transformers generations read
    {"do": "check", "id", "model", "adapter", ...}    loads the adapter: no key missing, none unexpected, logits changed
        "ids"        token ids: [[...]] or a safetensors file with `input_ids`
        "write"      file for the answer: tensors `base` and `lora`
        "against"    [[file, limit]]: files with `base` and `lora`; limit is relative to the largest logit (at least 1)
        "deltas"     file of get_delta_weight per parameter, limit 2e-6 absolute, as the golden group `native` says
        "rename"     [[old, new]]: parameter names of that file that have changed since
        "strict"     false: keys that PEFT did not use are no failure
        "migration"  false: PEFT's own v4 -> v5 conversion is switched off
    {"do": "merged", "id", "folder", "ids", "against", "limit"}    loads a merged model; its logits are `lora` of the file `against`
Without --serve it ends with `real peft: N checks, N passed` and fails unless all passed.
"""

import argparse
import importlib
import json
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore")

import torch
import peft
import peft.peft_model
from safetensors.torch import load_file, save_file

from models import Models

LEAST_CHANGE = 1e-2  # an adapter that moves no logit by this much was not applied
DELTA_LIMIT = 2e-6


def keep_adapter(*arguments, **named):
    return named["adapter_state_dict"] if "adapter_state_dict" in named else arguments[2]


@contextmanager
def migration_off():
    """PEFT rewrites even a right v5 config where a dense module has an expert's name; without that, the file is judged."""
    importlib.import_module("peft.utils.transformers_weight_conversion")  # PEFT loads it late
    stubs = {"convert_peft_config_for_transformers": lambda *a, **k: None,
             "convert_peft_adapter_state_dict_for_transformers": keep_adapter}
    saved = [(module, name, getattr(module, name)) for module_name, module in list(sys.modules.items())
             if module_name.startswith("peft") for name in stubs if hasattr(module, name)]
    assert saved, "this PEFT has no migration to switch off"
    for module, name, _ in saved:
        setattr(module, name, stubs[name])
    try:
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)


def load_adapter(model, folder):
    """-> (model, complaints): PeftModel.from_pretrained, and what it did not find or did not use."""
    seen = []
    original = peft.peft_model.set_peft_model_state_dict

    def spy(*arguments, **named):
        result = original(*arguments, **named)
        seen.append(result)
        return result

    peft.peft_model.set_peft_model_state_dict = spy
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = peft.PeftModel.from_pretrained(model, folder).eval()
    finally:
        peft.peft_model.set_peft_model_state_dict = original
    if not seen:
        raise RuntimeError("PEFT loaded no state dict: this check no longer sees what it reports")
    complaints = []
    for result in seen:
        missing = [k for k in result.missing_keys if re.search(r"\.lora_|modules_to_save|trainable_tokens_delta", k)]
        if missing:
            complaints.append(f"{len(missing)} keys missing: {missing[:3]}")
        if result.unexpected_keys:
            complaints.append(f"{len(result.unexpected_keys)} keys unexpected: {result.unexpected_keys[:3]}")
    for warning in caught:
        text = str(warning.message)
        if "missing adapter keys" in text or "unexpected keys" in text:
            complaints.append("PEFT warns: " + text[:200])
    return loaded, complaints


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float().contiguous()


def largest_difference(got, want):
    if got.shape != want.shape:
        return float("inf")
    difference = (got - want).abs().max().item()
    return difference if difference == difference else float("inf")  # NaN compares as nothing


def compare_logits(answer, file, limit):
    want = load_file(file)
    failures = []
    for name in ("base", "lora"):
        allowed = limit * max(1.0, want[name].abs().max().item())
        difference = largest_difference(answer[name], want[name].float())
        if not difference <= allowed:
            failures.append(f"{name} logits differ by {difference:.3g} (limit {allowed:.3g}) from {file}")
    return failures


def compare_deltas(model, file, rename):
    """get_delta_weight of every parameter the file names, for the adapter `default`."""
    from peft.tuners.lora.layer import LoraLayer

    wrappers = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.scaling:
            parameter = getattr(module, "parameter_name", "weight")
            wrappers[name.replace(".base_layer", "") + "." + parameter] = module
    failures, compared = [], 0
    for name, want in load_file(file).items():
        for old, new in rename:
            name = name.replace(old, new)
        if name not in wrappers:
            failures.append(f"no LoRA on {name}")
            continue
        got = wrappers[name].get_delta_weight("default").detach().float()
        got = got.reshape(want.shape) if got.numel() == want.numel() and got.dim() != want.dim() else got
        if got.dim() == 3 and got.shape != want.shape:
            want = want.transpose(1, 2)  # the older transformers stored this parameter the other way round
        difference = largest_difference(got, want)
        if not difference <= DELTA_LIMIT:
            failures.append(f"delta of {name} differs by {difference:.3g}")
        compared += 1
    if not compared:
        failures.append(f"no delta compared: {file}")
    return failures


def check(models, job):
    ids = load_file(job["ids"])["input_ids"] if isinstance(job["ids"], str) else torch.tensor(job["ids"])
    base = models.get(job["model"])
    answer = {"base": logits(base, ids)}
    if job.get("migration", True):
        model, failures = load_adapter(base, job["adapter"])
    else:
        with migration_off():
            model, failures = load_adapter(base, job["adapter"])
    if not job.get("strict", True):
        failures = []
    answer["lora"] = logits(model, ids)
    change = largest_difference(answer["lora"], answer["base"])
    if not LEAST_CHANGE < change < float("inf"):
        failures.append(f"the adapter moves the logits by {change:.3g}")
    for file, limit in job.get("against", []):
        failures += compare_logits(answer, file, limit)
    if job.get("deltas"):
        failures += compare_deltas(model, job["deltas"], job.get("rename", []))
    if job.get("write"):
        Path(job["write"]).parent.mkdir(parents=True, exist_ok=True)
        save_file(answer, job["write"])
    elif not job.get("against") and not job.get("deltas"):
        failures.append("nothing to compare with")
    return failures


def check_merged(models, job):
    """The merged model alone gives what base and adapter gave together."""
    want = load_file(job["against"])["lora"].float()
    ids = load_file(job["ids"])["input_ids"] if isinstance(job["ids"], str) else torch.tensor(job["ids"])
    got = logits(models.merged(Path(job["folder"])), ids)
    allowed = job["limit"] * max(1.0, want.abs().max().item())
    difference = largest_difference(got, want)
    return [] if difference <= allowed else [f"merged logits differ by {difference:.3g} (limit {allowed:.3g})"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--serve", action="store_true", help="answer line by line, no summary: for run.py")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = Models(arguments.golden, arguments.work)
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the libraries print is not an answer
    checks = passed = 0
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["do"] == "make":
                failures = models.make(job["model"]) or []
            else:
                failures = (check_merged if job["do"] == "merged" else check)(models, job)
        except Exception as error:  # any failure of the real programs is a result here
            failures = [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
            if os.environ.get("VERBOSE"):
                traceback.print_exc()
        checks += job["do"] != "make"
        passed += job["do"] != "make" and not failures
        if arguments.serve:
            print(json.dumps({"id": job["id"], "failures": failures}), file=answers, flush=True)
        else:
            for failure in failures:
                print(f"FAILED {job['id']}: {failure}", file=answers)
    if not arguments.serve:
        print(f"real peft: {checks} checks, {passed} passed", file=answers)
        sys.exit(0 if checks and checks == passed else 1)


if __name__ == "__main__":
    main()
