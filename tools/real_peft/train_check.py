#!/usr/bin/env python3
"""`peft train` beside the real PEFT: the same adapter, data and options, step by step.

    tools/real_peft/train_check.py PEFT GOLDEN [--only SUBSTRING]

PEFT is build/release/peft. Each variant trains a random adapter, which the real PEFT makes and saves, in a plain torch loop and by the program, and
compares losses, gradient norms, learning rates and the trained tensors; then the real PEFT loads what the program wrote and must give the logits of its own
result. Dropout is compared by the mean and the spread of many draws. Packed rows are compared with the same rows alone, and a run that goes on with an adapter of three steps with the next three. Exit 1 when one differs.
"""
import argparse
import json
import math
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file

ATTENTION = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
BASIC = dict(steps=6, lr=1e-2, schedule="constant", warmup=0, decay=0.0, batch=2, accumulate=1)
# Model, LoRA config, options that differ from BASIC.
VARIANTS = {
    "linear-warmup": ("rt-qwen3_moe", dict(target_modules=ATTENTION, target_parameters=EXPERTS), dict(schedule="linear", warmup=2)),
    "cosine-decay": ("rt-mixtral", dict(target_modules=ATTENTION, target_parameters=EXPERTS), dict(schedule="cosine", decay=0.1)),
    "loraplus": ("rt-qwen3_moe", dict(target_modules=ATTENTION, target_parameters=EXPERTS), dict(loraplus=4.0, lr=3e-3)),
    "trainable-tokens": ("rt-llama", dict(target_modules=ATTENTION, trainable_token_indices=[3, 4, 8]), {}),
    "dora": ("rt-qwen3_moe", dict(target_modules=ATTENTION, use_dora=True), {}),  # PEFT has no DoRA on parameters
    "accumulation-unequal": ("rt-gpt_oss", dict(target_modules=ATTENTION, target_parameters=EXPERTS), dict(accumulate=3)),
    "bf16-base": ("rt-qwen3_moe", dict(target_modules=ATTENTION, target_parameters=EXPERTS), dict(dtype="bfloat16")),
    "autocast": ("rt-qwen3_moe", dict(target_modules=ATTENTION, target_parameters=EXPERTS), dict(autocast=True)),
    "autocast-sinks": ("rt-gpt_oss", dict(target_modules=ATTENTION, target_parameters=EXPERTS), dict(autocast=True, accumulate=2)),
    "linear-attention": ("rt-qwen3_5_moe_text", dict(target_modules="all-linear", target_parameters=EXPERTS), dict(steps=4)),
}


def rows(vocabulary, count):
    """Rows of unequal lengths, some labels not learnt."""
    draw = random.Random(5)
    result = []
    for _ in range(count):
        ids = [draw.randrange(3, vocabulary) for _ in range(draw.randrange(5, 14))]
        skipped = draw.randrange(0, 4)
        result.append({"input_ids": ids, "labels": [-100] * skipped + ids[skipped:]})
    return result


def collate(batch):
    width = max(len(row["input_ids"]) for row in batch)
    pad = lambda values, filler: values + [filler] * (width - len(values))
    return {"input_ids": torch.tensor([pad(r["input_ids"], 0) for r in batch]), "labels": torch.tensor([pad(r["labels"], -100) for r in batch]),
            "attention_mask": torch.tensor([pad([1] * len(r["input_ids"]), 0) for r in batch])}


def learnt(batch):
    return sum(label != -100 for row in batch for label in row["labels"][1:])


def load(folder, options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.get("dtype", "float32")), attn_implementation="eager")


def optimizer_of(model, options):
    if "loraplus" in options:
        return create_loraplus_optimizer(model, torch.optim.AdamW, lr=options["lr"], loraplus_lr_ratio=options["loraplus"], weight_decay=options["decay"])
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options["lr"], weight_decay=options["decay"])


def theirs(model, data, options):
    """Losses, gradient norms and rates of a plain loop; the model is trained."""
    model.train()
    optimizer = optimizer_of(model, options)
    schedule = transformers.get_scheduler(options["schedule"], optimizer, options["warmup"], options["steps"])
    size, told, at = options["batch"], [], 0
    for _ in range(options["steps"]):
        micro = []
        for _ in range(options["accumulate"]):
            micro.append(data[at:at + size])
            at += size
        items = sum(learnt(batch) for batch in micro)
        total = 0.0
        for batch in micro:
            inputs = collate(batch)
            labels = inputs.pop("labels")
            with torch.autocast("cpu", torch.bfloat16, enabled=options.get("autocast", False)):
                logits = model(**inputs, use_cache=False).logits.float()
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum") / items
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0).item()
        told.append({"loss": total, "grad_norm": norm, "learning_rate": schedule.get_last_lr()[0]})
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    return told


def ours(program, base, adapter, data, options, out, extra=()):
    file = out.parent / f"{out.name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data))
    metrics = out.parent / f"{out.name}-metrics.jsonl"
    command = [program, "train", "--base", base, "--adapter", adapter, "--data", file, "--out", out, "--metrics", metrics, "--no-shuffle", "--logging-steps", 1,
               "--save-steps", 0, "--threads", 1, "--max-steps", options["steps"], "--learning-rate", options["lr"], "--lr-scheduler-type", options["schedule"],
               "--warmup-steps", options["warmup"], "--weight-decay", options["decay"], "--per-device-train-batch-size", options["batch"],
               "--gradient-accumulation-steps", options["accumulate"], "--router-aux-loss-coef", 0, "--quiet",
               "--dtype", {"float32": "F32", "bfloat16": "BF16"}[options.get("dtype", "float32")], *extra]
    if "loraplus" in options:
        command += ["--loraplus-lr-ratio", options["loraplus"]]
    if options.get("autocast"):
        command += ["--bf16"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def compare(name, want, got, tolerance, problems, exact=None):
    """`exact`: the real program in float32. Where 16 bits have moved its curve further than the tolerance up to a step, two programs may part by twice as much."""
    moved = {}
    if len(want) != len(got):
        problems.append(f"{name}: {len(want)} steps, got {len(got)}")
    for i, (w, g) in enumerate(zip(want, got)):
        for key in w:
            if exact:
                moved[key] = max(moved.get(key, 0), abs(w[key] - exact[i][key]))
            limit = 1e-12 if key == "learning_rate" else max(tolerance * max(1, abs(w[key])), 2 * moved.get(key, 0))
            if not math.isclose(w[key], g[key], rel_tol=0, abs_tol=limit):
                problems.append(f"{name}: step {i + 1} {key}: expected {w[key]:.7g}, got {g[key]:.7g}")


def check(name, program, models, work):
    model_name, lora, changes = VARIANTS[name]
    options = {**BASIC, **changes}
    reduced = "dtype" in options or "autocast" in options
    tolerance = 3e-2 if reduced else 2e-4
    base, problems = models / model_name, []
    torch.manual_seed(3)
    model = get_peft_model(load(base, options), LoraConfig(r=3, lora_alpha=7, init_lora_weights=False, task_type="CAUSAL_LM", **lora))
    with torch.no_grad():  # far from zero, so that a mistake shows; small, so that training goes on from somewhere
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.mul_(0.2)
    model.save_pretrained(work / "start")
    data = rows(model.config.vocab_size, options["steps"] * options["batch"] * options["accumulate"])
    got = ours(program, base, work / "start", data, options, work / "out")
    want = theirs(model, data, options)
    exact = None
    if reduced:
        plain = {key: value for key, value in options.items() if key not in ("dtype", "autocast")}
        exact = theirs(PeftModel.from_pretrained(load(base, plain), work / "start", is_trainable=True), data, plain)
    compare(name, want, got, tolerance, problems, exact)
    model.save_pretrained(work / "theirs")
    own, real = load_file(work / "out/adapter_model.safetensors"), load_file(work / "theirs/adapter_model.safetensors")
    if own.keys() != real.keys():
        problems.append(f"{name}: other tensors: {sorted(own.keys() ^ real.keys())[:4]}")
    far = max((own[k].float() - real[k].float()).abs().max().item() for k in own.keys() & real.keys())
    if far > (0.2 if reduced else 2e-3):
        problems.append(f"{name}: trained tensors differ by {far:.3g}")
    loaded = PeftModel.from_pretrained(load(base, options), work / "out").eval()
    inputs = {k: v for k, v in collate(data[:3]).items() if k != "labels"}
    with torch.no_grad():
        a, b = loaded(**inputs).logits.float(), model.eval()(**inputs).logits.float()
    gap = ((a - b).abs().max() / b.abs().max()).item()
    if gap > (0.2 if reduced else 2e-3):
        problems.append(f"{name}: logits of what was trained differ by {gap:.3g} in the real PEFT")
    return problems, f"tensors {far:.1e}, logits {gap:.1e}"


def check_packing(program, models, work):
    """The loss of the first step, packed and alone."""
    options = {**BASIC, "steps": 1, "batch": 1, "accumulate": 1}
    base = models / "rt-qwen3_5_moe_text"
    torch.manual_seed(4)
    model = get_peft_model(load(base, options), LoraConfig(r=3, lora_alpha=7, init_lora_weights=False, target_modules="all-linear", target_parameters=EXPERTS))
    model.save_pretrained(work / "start")
    data = rows(model.config.vocab_size, 4)
    length = sum(len(row["input_ids"]) for row in data)
    got = ours(program, base, work / "start", data, options, work / "out", ["--packing", "--max-length", length])
    items, total = learnt(data), 0.0
    with torch.no_grad():
        for row in data:  # alone: no padding, nothing before it
            inputs = collate([row])
            labels = inputs.pop("labels")
            logits = model(**inputs).logits
            total += F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum").item() / items
    problems = []
    compare("packing", [{"loss": total}], got, 2e-5, problems)
    return problems, f"loss {got[0]['loss']:.6f}, alone {total:.6f}"


def check_going_on(program, models, work):
    """Three steps in PEFT, saved; the next three here, with a new optimiser, as PEFT would have them."""
    options = {**BASIC, "steps": 3}
    base = models / "rt-mixtral"
    torch.manual_seed(6)
    model = get_peft_model(load(base, options), LoraConfig(r=3, lora_alpha=7, target_modules=ATTENTION, target_parameters=EXPERTS))
    data = rows(model.config.vocab_size, 12)
    theirs(model, data[:6], options)
    model.save_pretrained(work / "three")
    got = ours(program, base, work / "three", data[6:], options, work / "out")
    problems = []
    compare("going-on", theirs(model, data[6:], options), got, 2e-4, problems)
    return problems, f"loss {got[-1]['loss']:.6f}"


def check_tensorboard(program, models, work):
    """The event files, read by the real tensorboard package, beside --metrics."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    options = {**BASIC, "steps": 5}
    base = models / "rt-mixtral"
    torch.manual_seed(8)
    model = get_peft_model(load(base, options), LoraConfig(r=3, lora_alpha=7, target_modules=ATTENTION))
    model.save_pretrained(work / "start")
    got = ours(program, base, work / "start", rows(model.config.vocab_size, 5 * options["batch"] * options["accumulate"]), options, work / "out", ["--tensorboard"])
    events = EventAccumulator(str(work / "out/runs"))
    events.Reload()
    problems, names = [], {"loss", "grad_norm", "learning_rate", "num_tokens", "mean_token_accuracy", "entropy"} & got[0].keys()
    if not {"loss", "grad_norm", "learning_rate"} <= names:
        problems.append(f"tensorboard: --metrics has only {sorted(names)}")
    for name in sorted(names):
        if f"train/{name}" not in events.Tags()["scalars"]:
            problems.append(f"tensorboard: there is no train/{name}, only {events.Tags()['scalars']}")
            continue
        read = events.Scalars(f"train/{name}")
        if [event.step for event in read] != [line["step"] for line in got]:
            problems.append(f"tensorboard: train/{name} has the steps {[event.step for event in read]}")
        for event, line in zip(read, got):
            if not math.isclose(event.value, line[name], rel_tol=1e-6):
                problems.append(f"tensorboard: train/{name} of step {event.step}: {event.value:.7g}, in --metrics {line[name]:.7g}")
    return problems, f"{len(names)} curves of {len(got)} steps"


def check_dropout(program, models, work):
    """Dropout of 0.4 draws other masks here than in PEFT: the same row again and again, at a rate of 0, gives as many draws of loss and gradient norm.
    Their means and spreads must agree, and must not be those without dropout."""
    draws = 400
    options = {**BASIC, "steps": draws, "batch": 1, "lr": 0.0}
    base = models / "rt-qwen3_moe"
    torch.manual_seed(7)
    model = get_peft_model(load(base, options), LoraConfig(r=3, lora_alpha=7, lora_dropout=0.4, init_lora_weights=False, target_modules=[*ATTENTION, "k_proj", "o_proj"]))
    model.save_pretrained(work / "start")
    data = rows(model.config.vocab_size, 1) * draws
    told = {"ours": ours(program, base, work / "start", data, options, work / "out"), "PEFT": theirs(model, data, options)}
    for config in model.peft_config.values():
        config.lora_dropout = 0.0
    model.save_pretrained(work / "without")
    plain = ours(program, base, work / "without", data[:1], {**options, "steps": 1}, work / "plain")[0]
    problems, text = [], []
    for key in ("loss", "grad_norm"):
        (mean, spread), (mean_peft, spread_peft) = ((statistics.fmean(values), statistics.stdev(values)) for values in ([step[key] for step in steps] for steps in told.values()))
        allowed = 5 * math.sqrt((spread**2 + spread_peft**2) / draws)
        if abs(mean - mean_peft) > allowed:
            problems.append(f"dropout: mean {key} {mean:.5g}, in PEFT {mean_peft:.5g}: more than {allowed:.2g} apart")
        if not 0.8 < spread / spread_peft < 1.25:
            problems.append(f"dropout: spread of {key} {spread:.3g}, in PEFT {spread_peft:.3g}")
        text.append(f"{key} {mean:.4f} +- {spread:.4f} (PEFT {mean_peft:.4f} +- {spread_peft:.4f}, without {plain[key]:.4f})")
    if all(abs(statistics.fmean(step[key] for step in told["ours"]) - plain[key]) < 0.3 * statistics.stdev(step[key] for step in told["ours"]) for key in ("loss", "grad_norm")):
        problems.append("dropout: nothing is dropped")
    return problems, "; ".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("golden", type=pathlib.Path)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    checks = {name: lambda p, m, w, name=name: check(name, p, m, w) for name in VARIANTS}
    checks |= {"packing": check_packing, "going-on": check_going_on, "tensorboard": check_tensorboard, "dropout": check_dropout}
    failed = 0
    for name, run in checks.items():
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                problems, text = run(arguments.program, arguments.golden / "models", pathlib.Path(work))
            except RuntimeError as error:
                problems, text = [str(error).strip()[:300]], "failed"
        print(f"{'differs' if problems else 'same':8} {name:22} {text}")
        for problem in problems:
            print("  " + problem)
        failed += bool(problems)
    print(f"real peft, training: {len(checks)} checks, {failed} differ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
