#!/usr/bin/env python3
"""Decode and prefill without adapters: peft.cpp beside the real transformers, in turns, on the same weights and threads.

    compare_transformers.py build/release/bench_model [--threads 1] [--rounds 3] [--dtype float32]

The model is that of tools/bench/peft_forward_train.py: Qwen3-MoE, H 512, I 256, 64 experts, top-8, 4 layers. Of transformers the
fastest of its implementations of experts counts. The smallest time of all rounds is compared; with one thread, of the processor's.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time


def model(a):
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    torch.manual_seed(0)
    c = Qwen3MoeConfig(vocab_size=4096, hidden_size=512, intermediate_size=1024, moe_intermediate_size=256, num_hidden_layers=4,
                       num_attention_heads=8, num_key_value_heads=2, head_dim=64, num_experts=64, num_experts_per_tok=8, norm_topk_prob=True)
    return Qwen3MoeForCausalLM._from_config(c, attn_implementation="sdpa", experts_implementation=a.impl).to(getattr(torch, a.dtype)).eval()


def best(f, a):
    clock = time.process_time if a.threads == 1 else time.perf_counter
    f()
    times, end = [], time.perf_counter() + a.seconds
    while len(times) < 3 or time.perf_counter() < end:
        t = clock()
        f()
        times.append(1e3 * (clock() - t))
    return min(times)


def theirs(a):
    import torch
    torch.set_num_threads(a.threads)
    m = model(a)
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 4096, (1, 512), generator=g)
    t = torch.randint(0, 4096, (1, 1), generator=g)
    with torch.no_grad():
        print("prefill", best(lambda: m(input_ids=x, use_cache=False, logits_to_keep=1), a))
        state = {}

        def fresh():
            out = m(input_ids=x[:, :32], use_cache=True)
            state["name"] = "cache" if getattr(out, "cache", None) is not None else "past_key_values"
            state["cache"], state["n"] = getattr(out, state["name"]), 0

        def step():
            state["n"] += 1
            if state["n"] % 64 == 0:
                fresh()
            m(input_ids=t, use_cache=True, **{state["name"]: state["cache"]})
        fresh()
        print("decode", best(step, a))


def lines(command, env):
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return {x.split()[0]: float(x.split()[1]) for x in text.splitlines() if x.split()[0] in ("prefill", "decode", "load")}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=3)
    p.add_argument("--dtype", default="float32")
    p.add_argument("--impl", default="grouped_mm")
    p.add_argument("--impls", default="grouped_mm,batched_mm")
    p.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "peft-bench-model"))
    p.add_argument("--theirs", action="store_true")
    a = p.parse_args()
    if a.theirs:
        return theirs(a)
    if not os.path.exists(os.path.join(a.folder, "config.json")):
        model(a).save_pretrained(a.folder)
    env = dict(os.environ, OMP_NUM_THREADS=str(a.threads), OMP_WAIT_POLICY="passive")
    common = ["--threads", str(a.threads), "--seconds", str(a.seconds), "--dtype", a.dtype]
    ours, real = {}, {}
    for _ in range(a.rounds):
        for k, v in lines([a.program, a.folder, *common], env).items():
            ours[k] = min(v, ours.get(k, v))
        for impl in a.impls.split(","):
            for k, v in lines([sys.executable, __file__, a.program, "--theirs", "--impl", impl, *common], env).items():
                real[k] = min(v, real.get(k, v))
    for k in ("prefill", "decode"):
        print(f"{k:8} transformers {real[k]:9.3f} ms   peft.cpp {ours[k]:9.3f} ms   {real[k] / ours[k]:.2f} x faster")
    print(f"load     peft.cpp {ours['load']:.0f} ms")


main()
