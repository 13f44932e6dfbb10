#!/usr/bin/env python3
"""Decode, prefill and loading: ours beside the real PEFT and transformers, in one run, on the same machine and threads.

    bench/peft_forward_compare.py [--threads 1] [--seconds 4] [--rounds 3] [--build build/release] [--python PYTHON]
                                  [--only forward|loading] [--keep FILE]

Model: Qwen3-MoE, H 512, I 256, 64 experts, top-8, 4 layers, fp32 (110 M parameters). decode: one token after 32 in the cache; prefill:
512 tokens. LoRA of rank 8 on nothing, attention, experts, both. Ours (bench_lora) and theirs take turns, round by round; the least
time of all rounds counts, so that a busy machine hits both alike; --keep adds the rounds of earlier calls, and --keep FILE alone
with --rounds 0 prints them. Times are the processor's: with one thread that is the time it takes
on a machine that does nothing else. transformers runs each of its implementations of experts,
and the fastest counts. Memory: peak of anonymous memory of `peft-torch logits` on 512 tokens, with and without LoRA on experts. Loading:
bench_load on the same model as transformers 4 writes it, one tensor per expert.

PYTHON needs peft, transformers and torch: build/venvs/new of tools/real_peft/setup.sh when not given.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from results import record

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = ("base", "attention", "experts", "both")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


# ------------------------------------------------------------------------------------------- in a process of its own

def their_model(kind, implementation):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=4096, hidden_size=512, intermediate_size=1024, moe_intermediate_size=256, num_hidden_layers=4,
                            num_attention_heads=8, num_key_value_heads=2, head_dim=64, num_experts=64, num_experts_per_tok=8,
                            norm_topk_prob=True)
    model = Qwen3MoeForCausalLM._from_config(config, attn_implementation="sdpa", experts_implementation=implementation).eval()
    if kind == "base":
        return model
    return get_peft_model(model, LoraConfig(
        r=8, lora_alpha=16, init_lora_weights=False, task_type="CAUSAL_LM", target_modules=ATTENTION if kind != "experts" else [],
        target_parameters=EXPERTS if kind != "attention" else None)).eval()


def least_ms(step, seconds):
    step()
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.process_time()
        step()
        least = min(least, time.process_time() - start)
    return 1e3 * least


def worker(threads, seconds):
    import torch
    torch.set_num_threads(threads)
    for kind in KINDS:
        for implementation in ("grouped_mm", "batched_mm", "eager") if kind == "base" else ("grouped_mm",):
            what = measured(their_model(kind, implementation), seconds)
            print(json.dumps([kind, implementation, what]), flush=True)


def measured(model, seconds):
    import torch
    prompt, context, token = (torch.randint(0, 4096, (1, n)) for n in (512, 32, 1))
    with torch.no_grad():
        prefill = least_ms(lambda: model(input_ids=prompt, use_cache=False, logits_to_keep=1), seconds)
        cache = [model(input_ids=context, use_cache=True).past_key_values, 0]

        def decode():
            if cache[1] == 256:
                cache[:] = [model(input_ids=context, use_cache=True).past_key_values, 0]
            model(input_ids=token, use_cache=True, past_key_values=cache[0])
            cache[1] += 1
        return {"prefill": prefill, "decode": least_ms(decode, seconds)}


def save_worker(folder):
    """The model as transformers 4 writes it, and an adapter on its experts."""
    import json as j
    import torch
    from safetensors.torch import save_file
    lora = their_model("experts", "eager")
    lora.save_pretrained(f"{folder}/adapter")
    model = lora.get_base_model()
    config = model.config.to_dict()
    tensors = {}
    for name, value in model.state_dict().items():
        name = name.replace(".base_layer", "").replace(".parametrizations", "")
        if ".lora_" in name:
            continue
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(value):
                gate, up = both.chunk(2)
                tensors[name.replace("gate_up_proj", f"{expert}.gate_proj.weight")] = gate.contiguous()
                tensors[name.replace("gate_up_proj", f"{expert}.up_proj.weight")] = up.contiguous()
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(value):
                tensors[name.replace("down_proj", f"{expert}.down_proj.weight")] = down.contiguous()
        else:
            tensors[name] = value.contiguous()
    os.makedirs(f"{folder}/v4", exist_ok=True)
    save_file(tensors, f"{folder}/v4/model.safetensors", metadata={"format": "pt"})
    config["architectures"] = ["Qwen3MoeForCausalLM"]
    with open(f"{folder}/v4/config.json", "w") as out:
        j.dump(config, out, default=str)


# ---------------------------------------------------------------------------------------------------- the comparison

def theirs(options):
    command = [options.python, __file__, "--worker", str(options.threads), str(options.seconds)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr)
    for line in result.stdout.splitlines():
        if line.startswith("["):
            yield json.loads(line)


def ours(options):
    command = [options.build / "bench_lora", "--threads", str(options.threads), "--seconds", str(options.seconds)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {(what, kind): float(ms) for what, kind, ms in re.findall(r"(\w+) +(\w+) +([\d.]+) ms", output)}


def peak_mib(command):
    """Peak of anonymous memory (mapped files are not in it), looked at every millisecond."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        if match := re.search(r"RssAnon:\s+(\d+)", status):
            peak = max(peak, int(match[1]) / 1024)
        time.sleep(0.001)
    assert process.returncode == 0, command
    return peak


def forward(options):
    rounds = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else []
    for _ in range(options.rounds):
        one = [["ours", kind, "", what, ms] for (what, kind), ms in ours(options).items()]
        one += [["theirs", kind, how, what, ms] for kind, how, both in theirs(options) for what, ms in both.items()]
        rounds.append(one)
        if options.keep:
            options.keep.write_text(json.dumps(rounds))
    best = {}
    for side, kind, how, what, ms in sum(rounds, []):
        if (side, what, kind) not in best or ms < best[side, what, kind][0]:
            best[side, what, kind] = (ms, how)
    print(f"{len(rounds)} rounds\n")
    print("| | LoRA on | ours, ms | of our base | transformers, PEFT, ms | theirs / ours |\n|---|---|---:|---:|---:|---:|")
    for what in ("decode", "prefill"):
        for kind in KINDS:
            mine, (other, how) = best["ours", what, kind][0], best["theirs", what, kind]
            name = "nothing" if kind == "base" else kind
            case = {"decode": "decode", "prefill": "prefill of 512 tokens"}[what]
            lora = "no LoRA" if kind == "base" else f"LoRA on {kind}"
            record("run", f"{case}, {lora}", "transformers" if kind == "base" else "PEFT", mine, other, "ms", other / mine)
            if kind != "base":
                base = best["ours", what, "base"][0]
                record("run_lora", f"{case}, {lora}", "our base", mine, base, "ms", mine / base)
            print(f"| {what} | {name} | {mine:.2f} | {mine / best['ours', what, 'base'][0]:.2f} | {other:.1f} ({how}) | {other / mine:.2f} |")
    print("\nLoRA on experts and on both, of our base, in each round by itself:")
    for what in ("decode", "prefill"):
        ratios = []
        for one in rounds:
            times = {kind: ms for side, kind, _, w, ms in one if side == "ours" and w == what}
            ratios.append(f"{times['experts'] / times['base']:.2f} {times['both'] / times['base']:.2f}")
        print(f"{what}: {', '.join(ratios)}")


def loading(options):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([options.python, __file__, "--save", folder], check=True, stdout=subprocess.DEVNULL)
        load = subprocess.run([options.build / "bench_load", f"{folder}/v4", "--threads", str(options.threads), "--rounds", "15"], check=True,
                              capture_output=True, text=True).stdout
        ids = ",".join(str(i % 4096) for i in range(1, 513))
        run = [options.build / "peft-torch", "logits", "--base", f"{folder}/v4", "--ids", ids, "--threads", str(options.threads), "--json"]
        base, lora = peak_mib(run), peak_mib(run + ["--adapter", f"{folder}/adapter"])
        factors = os.path.getsize(f"{folder}/adapter/adapter_model.safetensors") / 2**20
    times = {line.split()[0].rstrip(","): line for line in load.splitlines()}
    loaded = float(re.search(r"([\d.]+) ms least", times["load"])[1])
    read, ratio = re.search(r"([\d.]+) ms least.*load / read ([\d.]+) least", next(l for l in load.splitlines() if "huge" in l)).groups()
    record("load", "load, huge pages", "reading", loaded, float(read), "ms", float(ratio))
    print(f"\nloading, one tensor per expert:\n{load.strip()}")
    print(f"peak of anonymous memory of `peft-torch logits`, 512 tokens: {base:.0f} MiB; with LoRA on experts {lora:.0f} MiB "
          f"(+{lora - base:.0f}; the adapter's file has {factors:.0f})")


def main():
    if sys.argv[1:2] == ["--worker"]:
        return worker(int(sys.argv[2]), float(sys.argv[3]))
    if sys.argv[1:2] == ["--save"]:
        return save_worker(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--python", default=str(ROOT / "build" / "venvs" / "new" / "bin" / "python"))
    parser.add_argument("--only", choices=("forward", "loading"))
    parser.add_argument("--keep", type=pathlib.Path, help="a file of rounds, read and added to")
    options = parser.parse_args()
    if options.only != "loading":
        forward(options)
    if options.only != "forward":
        loading(options)


main()
