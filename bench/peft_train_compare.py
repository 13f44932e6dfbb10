#!/usr/bin/env python3
"""A training step: ours beside the real PEFT in a plain torch loop, in one run, on the same machine and threads.

    bench/peft_train_compare.py [--threads 1] [--seconds 3] [--rounds 3] [--dtype float32] [--build build/release] [--python PYTHON]

Model: Qwen3-MoE, H 512, I 256, 64 experts, top-8, 4 layers (110 M parameters); LoRA r 8, 2 x 128 tokens; forward, backward and AdamW. Ours (bench_train) and
theirs take turns; the least processor time of all rounds counts, so that a busy machine hits both alike. Memory: the peak while training, less what the model
took before. Theirs: experts_implementation grouped_mm, attention sdpa.

PYTHON needs peft, transformers and torch: build/venvs/new of tools/real_peft/setup.sh when not given.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

from results import record

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = ("attention", "experts", "both")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


# ------------------------------------------------------------------------------------------- in a process of its own

def memory_mb(what):
    return int(re.search(rf"{what}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024


def worker(kind, threads, seconds, dtype, checkpointing):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=4096, hidden_size=512, intermediate_size=1024, moe_intermediate_size=256, num_hidden_layers=4,
                            num_attention_heads=8, num_key_value_heads=2, head_dim=64, num_experts=64, num_experts_per_tok=8, norm_topk_prob=True)
    model = Qwen3MoeForCausalLM._from_config(config, attn_implementation="sdpa", experts_implementation="grouped_mm").to(getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig(
        r=8, lora_alpha=16, init_lora_weights=False, task_type="CAUSAL_LM", target_modules=ATTENTION if kind != "experts" else [],
        target_parameters=EXPERTS if kind != "attention" else None)).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, 4096, (2, 128))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step(), optimizer.zero_grad()
    before = memory_mb("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    step()
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.process_time()
        step()
        least = min(least, time.process_time() - start)
    print(json.dumps({"ms": 1e3 * least, "mb": memory_mb("VmHWM") - before}))


# ------------------------------------------------------------------------------------------- here

def run(command):
    return json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def ours(a, kind, checkpointing):
    told = run([a.build / "bench_train", "--threads", a.threads, "--seconds", a.seconds, "--dtype", a.dtype, "--kinds", kind,
                "--checkpointing", int(checkpointing)])
    return {"ms": told["cpu_ms_least"], "mb": told["peak_rss_mb"] - told["model_rss_mb"]}


def theirs(a, kind, checkpointing):
    return run([a.python, __file__, "--worker", kind, "--threads", a.threads, "--seconds", a.seconds, "--dtype", a.dtype]
               + (["--checkpointing"] if checkpointing else []))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--python", type=pathlib.Path, default=ROOT / "build/venvs/new/bin/python")
    parser.add_argument("--worker")
    parser.add_argument("--checkpointing", action="store_true")
    a = parser.parse_args()
    if a.worker:
        return worker(a.worker, a.threads, a.seconds, a.dtype, a.checkpointing)
    least = {}
    for _ in range(a.rounds):
        for kind in KINDS:
            for checkpointing in (False, True):
                for who in (ours, theirs):
                    told, best = who(a, kind, checkpointing), least.setdefault((kind, checkpointing, who.__name__), {})
                    for key, value in told.items():
                        best[key] = min(best.get(key, float("inf")), value)
    for kind in KINDS:
        for checkpointing in (False, True):
            our, their = least[kind, checkpointing, "ours"], least[kind, checkpointing, "theirs"]
            name = f"{kind}, {a.dtype}{', checkpointing' if checkpointing else ''}, {a.threads} thread{'s' if a.threads > 1 else ''}"
            for key, unit, what in (("ms", "ms", "step"), ("mb", "MiB", "memory above the model")):
                ratio = their[key] / our[key]
                print(f"{what:23} {name:42} {our[key]:9.1f} {their[key]:9.1f} {unit}  {ratio:.2f}x")
                record("train", f"{what}, {name}", "PEFT", our[key], their[key], unit, ratio)
    # With the same setting both hold the adapter's gradients and AdamW's state, which are most of what is left; so ours is compared
    # with what PEFT takes without it, too.
    our, their = least["experts", True, "ours"]["mb"], least["experts", False, "theirs"]["mb"]
    name = f"experts, {a.dtype}, ours alone with checkpointing, {a.threads} thread{'s' if a.threads > 1 else ''}"
    print(f"{'memory above the model':23} {name:42} {our:9.1f} {their:9.1f} MiB  {their / our:.2f}x")
    record("train", f"memory above the model, {name}", "PEFT", our, their, "MiB", their / our)
    attention, experts = (least[kind, False, "ours"]["ms"] for kind in ("attention", "experts"))
    print(f"our step with LoRA on experts against our step with LoRA on attention: {experts / attention:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
