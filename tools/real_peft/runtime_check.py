#!/usr/bin/env python3
"""Adapters that the runtime saves, loaded by the real PEFT: same logits, same counts, same config, same front matter of the card.

    tools/real_peft/runtime_check.py PROGRAM GOLDEN [--only SUBSTRING]

PROGRAM is build/release/adapter_session. Every golden/runtime case goes through it (the adapter loaded and saved again),
and a table of new configs (get_peft_model, initialised and saved here; PiSSA and OLoRA trained a little and converted on saving, by
path_initial_model_for_weight_conversion). Exit 1 when one differs.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import yaml
from peft import PeftModel, get_peft_model
from peft import LoraConfig
import transformers

ATTENTION = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# Configs for new adapters: model folder, what is not a default.
NEW = {
    "qwen3_moe-experts": ("rt-qwen3_moe", dict(r=4, lora_alpha=10, target_modules=ATTENTION, target_parameters=EXPERTS, init_lora_weights=False)),
    "mixtral-rslora": ("rt-mixtral", dict(r=4, lora_alpha=10, target_modules=ATTENTION, target_parameters=EXPERTS, use_rslora=True, init_lora_weights=False)),
    "gpt_oss-experts": ("rt-gpt_oss", dict(r=2, target_modules=ATTENTION, target_parameters=EXPERTS, init_lora_weights=False)),
    "qwen3_5-all-linear": ("rt-qwen3_5_moe_text", dict(r=4, target_modules="all-linear", target_parameters=EXPERTS, init_lora_weights=False)),
    "llama-dora": ("rt-llama", dict(r=4, target_modules=["q_proj", "down_proj"], use_dora=True, init_lora_weights=False)),
    "llama-embedding": ("rt-llama", dict(r=4, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)),
    "llama-saved": ("rt-llama", dict(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)),
    "llama-tokens": ("rt-llama", dict(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 4, 8], init_lora_weights=False)),
    "qwen2-lora_bias": ("rt-qwen2", dict(r=4, target_modules=["q_proj"], lora_bias=True, init_lora_weights=False)),
    "qwen3-patterns": ("rt-qwen3", dict(r=4, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3}, init_lora_weights=False)),
    "llama-orthogonal": ("rt-llama", dict(r=4, target_modules=["q_proj"], init_lora_weights="orthogonal")),
    "llama-pissa": ("rt-llama", dict(r=4, lora_alpha=10, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa")),
    "qwen3_moe-pissa-niter": ("rt-qwen3_moe", dict(r=4, target_modules=ATTENTION, init_lora_weights="pissa_niter_4")),
    "mixtral-olora": ("rt-mixtral", dict(r=4, target_modules=ATTENTION, init_lora_weights="olora")),
    "llama-olora-rslora": ("rt-llama", dict(r=4, lora_alpha=10, target_modules=ATTENTION, init_lora_weights="olora", use_rslora=True)),
    "llama-pissa-patterns": ("rt-llama", dict(r=4, target_modules=ATTENTION, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}, init_lora_weights="pissa")),
    "llama-layers": ("rt-llama", dict(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[1], init_lora_weights=False)),
}
# Differ by nature: sets are sorted here, and names the base by its folder.
SETS = ("target_modules", "exclude_modules", "target_parameters", "modules_to_save")


def normal(config):
    return {k: sorted(v) if k in SETS and isinstance(v, list) else v for k, v in config.items() if k != "base_model_name_or_path"}


def front_matter(folder):
    card = yaml.safe_load((pathlib.Path(folder) / "README.md").read_text().split("---\n")[1])
    base = card.get("base_model")  # a path here, and another one there
    return {k: [v.replace(base, "BASE") if base else v for v in value] if k == "tags" else value for k, value in card.items() if k != "base_model"}, bool(base)


def save_theirs(model, folder):
    """As PEFT saves the same config; a start that changes the base is converted."""
    config = model.peft_config["default"]
    init = config.init_lora_weights
    if not (isinstance(init, str) and init.startswith(("pissa", "olora"))):
        return model.save_pretrained(folder)
    with tempfile.TemporaryDirectory() as start:
        config.init_lora_weights = True  # else PEFT takes the start out of the base again
        model.save_pretrained(start)
        config.init_lora_weights = init
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=start)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 10)[None]).logits.double()


def load_base(folder):
    # The class the checkpoint names: AutoModelForCausalLM would take the text part of a composite model.
    name = json.loads((pathlib.Path(folder) / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def differences(program, base, given, fresh):
    with tempfile.TemporaryDirectory() as out:
        run = subprocess.run([program, base, str(given), out], capture_output=True, text=True)
        if run.returncode:
            return [run.stderr.strip()]
        out = pathlib.Path(out)
        ours = torch.tensor(json.loads((out / "logits.json").read_text()), dtype=torch.float64)
        real = PeftModel.from_pretrained(load_base(base), out / "adapter", is_trainable=True)
        theirs = logits_of(real.eval())
        found = []
        gap = (ours.reshape(theirs.shape) - theirs).abs().max().item()
        limit = 5e-5 * max(1.0, theirs.abs().max().item())
        if not gap <= limit:
            found.append(f"logits differ by {gap:.3g} (limit {limit:.3g})")
        trainable, total = real.get_nb_trainable_parameters()
        line = f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
        if line != (out / "line.txt").read_text().strip():
            found.append(f"PEFT counts {line!r}, the runtime {(out / 'line.txt').read_text().strip()!r}")
        if fresh:
            wanted = get_peft_model(load_base(base), LoraConfig(**fresh))
            with tempfile.TemporaryDirectory() as theirs_folder:
                save_theirs(wanted, theirs_folder)
                if front_matter(theirs_folder) != front_matter(out / "adapter"):
                    found.append(f"card: PEFT writes {front_matter(theirs_folder)}, the runtime {front_matter(out / 'adapter')}")
                want = normal(json.loads((pathlib.Path(theirs_folder) / "adapter_config.json").read_text()))
            got = normal(json.loads((out / "adapter/adapter_config.json").read_text()))
            found += [f"config {k}: PEFT writes {want.get(k)!r}, the runtime {got.get(k)!r}" for k in sorted(want.keys() | got.keys()) if want.get(k) != got.get(k)]
        return found


def cases(golden):
    for folder in sorted((golden / "runtime").iterdir()):
        if (folder / "case.json").exists():
            case = json.loads((folder / "case.json").read_text())
            yield folder.name, str(golden / "models" / case["model"]), folder / "adapter", None
    for name, (model, config) in NEW.items():
        if (golden / "models" / model).exists():
            yield name, str(golden / "models" / model), None, dict(config, task_type="CAUSAL_LM")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("golden", type=pathlib.Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    failed = count = 0
    for name, base, adapter, fresh in cases(options.golden):
        if options.only not in name:
            continue
        count += 1
        with tempfile.TemporaryDirectory() as folder:
            given = adapter
            if given is None:
                given = pathlib.Path(folder) / "adapter_config.json"
                given.write_text(json.dumps(dict(fresh, peft_type="LORA")))
            found = differences(options.program, base, given, fresh)
        failed += bool(found)
        print(f"{'ok  ' if not found else 'FAIL'} {name}" + "".join(f"\n       {text}" for text in found), flush=True)
    print(f"runtime_check: {count} cases, {count - failed} passed")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
