#!/usr/bin/env python3
"""`peft merge` beside `cp` and beside the real PEFT's merge of the same files; and how it grows with the model.

    bench/peft_merge_compare.py [--layers 1] [--rank 16] [--repeat 5] [--no-python]     the table
    bench/peft_merge_compare.py --growth [--repeat 3]                                   1 to 8 GB, docs/merge_growth.svg

Layers of the sizes of Qwen3-30B-A3B, bf16, 1.2 GB each, one shard for each, names as on the hub (one tensor per expert); an
adapter of PEFT 0.21.2 on attention and experts. Files are made once, in --dir, and are in the page cache. Each row is a cold
process; the rounds go through all rows in turn. Compare ratios inside one run: the machine may be shared.
Memory: the largest RssAnon seen in /proc every 2 ms (mapped files are not in it), and VmHWM.
"""
import argparse
import fcntl
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from results import record
from peft_convert_compare import ATTENTION, EXPERT, EXPERTS, HIDDEN, INTERMEDIATE, ROOT, Row, describe_machine, model_config, random_bf16

VOCABULARY = 1000


class Pool:
    """Random bf16 numbers; every tensor is a piece of them, at its own place."""

    def __init__(self):
        self.bytes = random_bf16(1 << 22)
        self.places = random.Random(1)

    def write(self, file, size):
        while size > 0:
            piece = min(size, len(self.bytes) // 2)
            place = 2 * self.places.randrange((len(self.bytes) - piece) // 2)
            file.write(self.bytes[place:place + piece])
            size -= piece


def write_safetensors(path, shapes, pool):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in sorted(shapes.items()):
        size = 2
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        pool.write(file, at)
    return at


def layer_shapes(layer):
    prefix = f"model.layers.{layer}."
    shapes = {f"{prefix}self_attn.{name}.weight": [out, width] for name, out, width in ATTENTION}
    shapes |= {f"{prefix}self_attn.{name}_norm.weight": [128] for name in "qk"}
    shapes |= {f"{prefix}{name}_layernorm.weight": [HIDDEN] for name in ("input", "post_attention")}
    shapes[f"{prefix}mlp.gate.weight"] = [EXPERTS, HIDDEN]
    for expert in range(EXPERTS):
        shapes |= {f"{prefix}mlp.experts.{expert}.{name}.weight": [out, width] for name, out, width in EXPERT}
    return shapes


def make_base(folder, layers):
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pool, total, places = Pool(), 0, {}
    for shard in range(layers):
        shapes = layer_shapes(shard)
        if shard == 0:
            shapes |= {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "lm_head.weight": [VOCABULARY, HIDDEN], "model.norm.weight": [HIDDEN]}
        name = f"model-{shard + 1:05}-of-{layers:05}.safetensors"
        total += write_safetensors(folder / name, shapes, pool)
        places |= dict.fromkeys(shapes, name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps({**model_config(layers), "dtype": "bfloat16", "tie_word_embeddings": False}))


def make_adapter(folder, layers, rank):
    if (folder / "adapter_config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {}
    for layer in range(layers):
        prefix = f"base_model.model.model.layers.{layer}."
        experts = prefix + "mlp.experts."
        shapes |= {experts + "base_layer.lora_A.weight": [EXPERTS * rank, HIDDEN], experts + "base_layer.lora_B.weight": [2 * INTERMEDIATE, EXPERTS * rank],
                   experts + "lora_A.weight": [EXPERTS * rank, INTERMEDIATE], experts + "lora_B.weight": [HIDDEN, EXPERTS * rank]}
        for name, out, width in ATTENTION:
            shapes[f"{prefix}self_attn.{name}.lora_A.weight"] = [rank, width]
            shapes[f"{prefix}self_attn.{name}.lora_B.weight"] = [out, rank]
    write_safetensors(folder / "adapter_model.safetensors", shapes, Pool())
    config = {"base_model_name_or_path": "tiny/qwen3-30b-a3b-shapes", "bias": "none", "inference_mode": True, "lora_alpha": 2 * rank, "lora_dropout": 0.0,
              "peft_type": "LORA", "peft_version": "0.21.2", "r": rank, "task_type": "CAUSAL_LM", "target_modules": sorted(name for name, _, _ in ATTENTION),
              "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def peft_worker(base, adapter, out):
    """The real PEFT: load the base, load the adapter, merge, save in the form of the hub. The adapter keeps its dtype."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")
    import torch
    from peft import PeftModel
    from transformers import Qwen3MoeForCausalLM

    model = Qwen3MoeForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).merge_and_unload()
    model.save_pretrained(out, save_original_format=True)


def our_command(arguments, base, adapter, out, *flags):
    return [str(arguments.peft), "merge", "--base", str(base), "--adapter", str(adapter), "--out", str(out), "--quiet", *flags]


def make_rows(arguments, base, adapters, folder):
    scratch = folder / "scratch"
    fast = ("--no-sync", "--no-readback")
    cp = Row("cp of the base", ["cp", "-r", str(base), str(scratch)], scratch)
    durable = 'cp -r "$0" "$1" && sync -f "$1" && diff -r "$0" "$1"'
    durable_cp = Row("cp + sync + cmp", ["sh", "-c", durable, str(base), str(scratch)], scratch, cp)
    rows = [cp, durable_cp]
    for rank, adapter in adapters.items():
        for mode in ("best", "fast"):
            for threads in ("1", "2"):
                command = our_command(arguments, base, adapter, scratch, "--mode", mode, "--threads", threads, *fast)
                rows.append(Row(f"  {mode}, r {rank}, --threads {threads}", command, scratch, cp))
    first = next(iter(adapters.values()))
    rows.append(Row("  best, durable, --threads 2", our_command(arguments, base, first, scratch, "--threads", "2"), scratch, durable_cp))
    if not arguments.no_python:
        worker = [arguments.python, __file__, "--worker", str(base), str(adapters[arguments.rank]), str(scratch)]
        rows.append(Row(f"  PEFT 0.21.2, r {arguments.rank}", worker, scratch, cp))
    return rows


def print_table(rows):
    print(f"\n| {'':32} | least s | median s | CPU s | times cp's speed | anonymous MiB | VmHWM MiB |\n|---|---|---|---|---|---|---|")
    for row in rows:
        least = min(m.seconds for m in row.runs)
        speed = min(m.seconds for m in row.reference.runs) / least if row.reference else 1
        print(f"| {row.name:32} | {least:.3f} | {row.median('seconds'):.3f} | {row.median('cpu'):.2f} | {speed:.2f} | {max(m.anon for m in row.runs):.1f}"
              f" | {max(m.high_water for m in row.runs):.1f} |")


def record_rows(rows, rank):
    """Keeps the rows that docs/benchmarks.md has (bench/results.py): ours beside PEFT, both of the same rank."""
    least = {row.name.strip(): min(m.seconds for m in row.runs) for row in rows}
    memory = {row.name.strip(): max(m.anon for m in row.runs) for row in rows}
    theirs = next((name for name in least if name.startswith("PEFT")), None)
    for threads in (1, 2) if theirs else ():
        ours = f"best, r {rank}, --threads {threads}"
        what = f"best, {threads} thread{'s' if threads > 1 else ''}"
        record("merge_peft", what, "PEFT: load, merge, save", least[ours], least[theirs], "s", least[theirs] / least[ours])
        record("merge_peft", f"anonymous memory, {what}", "PEFT: load, merge, save", memory[ours], memory[theirs], "MiB", memory[theirs] / memory[ours])


def table(arguments, folder):
    base = folder / f"base-{arguments.layers}"
    make_base(base, arguments.layers)
    adapters = {}
    for rank in sorted({8, 32, 64, arguments.rank}):
        adapters[rank] = folder / f"adapter-{arguments.layers}-r{rank}"
        make_adapter(adapters[rank], arguments.layers, rank)
    describe_machine(arguments, folder)
    rows = make_rows(arguments, base, adapters, folder)
    size = sum(file.stat().st_size for file in base.iterdir())
    print(f"{arguments.layers} layers, {size / 2**30:.2f} GiB; {arguments.repeat} rounds")
    for row in rows:
        print("  $ " + " ".join(row.command).replace(str(ROOT) + "/", ""))
    for _ in range(arguments.repeat):
        for row in rows:
            row.run()
    print_table(rows)
    record_rows(rows, arguments.rank)
    shutil.rmtree(folder / "scratch", ignore_errors=True)


def svg(points):
    """Two small charts side by side: seconds and anonymous memory by size. `points`: (GB, least seconds, MiB)."""
    width, height, left, bottom = 380, 240, 60, 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width}" height="{height + 20}" font-family="sans-serif" font-size="12">',
             f'<rect width="{2 * width}" height="{height + 20}" fill="white"/>']
    for chart, (title, column, unit) in enumerate((("time", 1, "s"), ("anonymous memory", 2, "MiB"))):
        x0, y0, w, h = chart * width + left, height - bottom, width - left - 30, height - bottom - 40
        top = max(100.0 if column == 2 else 0, max(p[column] for p in points)) * 1.1
        x, y = (lambda gb: x0 + w * gb / 8.5), (lambda value, t=top: y0 - h * value / t)
        parts.append(f'<text x="{x0}" y="24" font-weight="bold">peft merge: {title} by size of the base</text>')
        parts.append(f'<path d="M{x0} {y0 - h}V{y0}H{x0 + w}" fill="none" stroke="black"/>')
        for gb in range(0, 9, 2):
            parts.append(f'<text x="{x(gb):.0f}" y="{y0 + 18}" text-anchor="middle">{gb}</text>')
        for step in range(5):
            value = top * step / 4
            parts.append(f'<text x="{x0 - 6}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.3g}</text>')
        parts.append(f'<text x="{x0 + w}" y="{y0 + 34}" text-anchor="end">GB of the base; {unit}</text>')
        line = " ".join(f"{x(p[0]):.1f},{y(p[column]):.1f}" for p in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>')
        parts += [f'<circle cx="{x(p[0]):.1f}" cy="{y(p[column]):.1f}" r="3.5" fill="#1f6feb"/>' for p in points]
    return "\n".join(parts + ["</svg>"]) + "\n"


def growth(arguments, folder):
    points = []
    scratch = folder / "scratch"
    describe_machine(arguments, folder)
    print(f"\n| base, GB | least s | GB/s | anonymous MiB |\n|---|---|---|---|")
    for layers in (1, 2, 3, 5, 6):  # 1.2 GB each
        base, adapter = folder / f"base-{layers}", folder / f"adapter-{layers}-r{arguments.rank}"
        make_base(base, layers)
        make_adapter(adapter, layers, arguments.rank)
        row = Row("ours", our_command(arguments, base, adapter, scratch, "--threads", "2", "--no-sync", "--no-readback"), scratch)
        for _ in range(arguments.repeat):
            row.run()
        size = sum(file.stat().st_size for file in base.iterdir()) / 1e9
        least, anon = min(m.seconds for m in row.runs), max(m.anon for m in row.runs)
        points.append((size, least, anon))
        print(f"| {size:.2f} | {least:.3f} | {size / least:.2f} | {anon:.1f} |", flush=True)
        shutil.rmtree(scratch, ignore_errors=True)
        if layers > 2:
            shutil.rmtree(base)
    (ROOT / "docs/merge_growth.svg").write_text(svg(points))


def main():
    if sys.argv[1:2] == ["--worker"]:
        return peft_worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter that PEFT merges")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--peft", type=Path, default=ROOT / "build/release/peft")
    parser.add_argument("--python", default=str(ROOT / "build/venvs/new/bin/python"), help="with PEFT 0.21.2 and transformers 5.24.0")
    parser.add_argument("--dir", type=Path, default=ROOT / "build/bench_merge", help="where the files go (up to 20 GB)")
    parser.add_argument("--no-python", action="store_true", help="without the real PEFT")
    arguments = parser.parse_args()
    if not arguments.no_python and not arguments.growth and not Path(arguments.python).exists():
        subprocess.run([ROOT / "tools/real_peft/setup.sh"], check=True)
    arguments.no_python = arguments.no_python or arguments.growth
    arguments.dir.mkdir(parents=True, exist_ok=True)
    lock = open(arguments.dir / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another run uses {arguments.dir}; --dir names another place")
    (growth if arguments.growth else table)(arguments, arguments.dir)


if __name__ == "__main__":
    main()
