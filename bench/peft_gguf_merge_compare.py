#!/usr/bin/env python3
"""`peft merge` into a model in GGUF beside `cp` of the result, and beside llama.cpp's llama-export-lora.

    bench/peft_gguf_merge_compare.py [--quick] [--repeat 3] [--peft BINARY] [--dir build/bench_gguf_merge] [--export-lora PROGRAM]

The base has layers of Qwen3-30B-A3B (H 2048, I 768, 128 experts) in Q8_0: 6 of them are 4 GB. The adapter of rank 16 touches
attention and every expert. Rows as in peft_convert_compare.py: each a process of its own, run twice, the second timed; the
rounds go through all rows in turn.
    cp                    each result, copied
    keep-quantized        --keep-quantized: what the adapter touches is written in Q8_0 again
    F16                   the default: what the adapter touches becomes F16, which makes the file almost twice as large
    llama-export-lora     the same F16 file by llama.cpp's own program (--export-lora), from the adapter as a LoRA file
"""

import argparse
import os
import struct
import sys
from pathlib import Path

import peft_convert_compare as qwen
from peft_convert_compare import ROOT, Measured, Row, describe_machine, print_table
from results import record

RANK, VOCABULARY, ALIGNMENT = 16, 1024, 32
F32, Q8_0 = 0, 8                     # ggml's numbers of types
UINT32, FLOAT32, STRING = 4, 6, 8    # GGUF's numbers of kinds of values


# ------------------------------------------------------------------------------------------------------ the base

def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def keys(layers):
    numbers = {"block_count": layers, "context_length": 4096, "embedding_length": qwen.HIDDEN, "feed_forward_length": 6144,
               "attention.head_count": 32, "attention.head_count_kv": 4, "attention.key_length": 128,
               "attention.value_length": 128, "expert_count": qwen.EXPERTS, "expert_used_count": 8,
               "expert_feed_forward_length": qwen.INTERMEDIATE}
    data = [text("general.architecture") + struct.pack("<I", STRING) + text("qwen3moe")]
    data += [text("qwen3moe." + name) + struct.pack("<II", UINT32, value) for name, value in numbers.items()]
    data.append(text("qwen3moe.attention.layer_norm_rms_epsilon") + struct.pack("<If", FLOAT32, 1e-6))
    return data


def tensors(layers):
    """-> [(name, sizes with the fastest first, type)]"""
    hidden, wide = qwen.HIDDEN, 4096
    rows = [("token_embd.weight", [hidden, VOCABULARY], Q8_0), ("output_norm.weight", [hidden], F32),
            ("output.weight", [hidden, VOCABULARY], Q8_0)]
    for layer in range(layers):
        matrices = [("attn_q", [hidden, wide]), ("attn_k", [hidden, 512]), ("attn_v", [hidden, 512]), ("attn_output", [wide, hidden]),
                    ("ffn_gate_exps", [hidden, qwen.INTERMEDIATE, qwen.EXPERTS]), ("ffn_up_exps", [hidden, qwen.INTERMEDIATE, qwen.EXPERTS]),
                    ("ffn_down_exps", [qwen.INTERMEDIATE, hidden, qwen.EXPERTS])]
        rows += [(f"blk.{layer}.{name}.weight", sizes, Q8_0) for name, sizes in matrices]
        rows += [(f"blk.{layer}.{name}.weight", sizes, F32) for name, sizes in
                 (("attn_norm", [hidden]), ("ffn_norm", [hidden]), ("attn_q_norm", [128]), ("attn_k_norm", [128]),
                  ("ffn_gate_inp", [hidden, qwen.EXPERTS]))]
    return rows


def bytes_of(sizes, kind):
    count = 1
    for size in sizes:
        count *= size
    return count * 4 if kind == F32 else count // 32 * 34


def write_base(path, layers):
    """Every block of 32 values has a scale near 0.01 and random codes; every tensor begins elsewhere in the same pool."""
    pool = bytearray(os.urandom(34 * (1 << 16)))
    pool[1::34] = bytes([0x21]) * (1 << 16)  # the upper byte of the scale in F16: 0.0098 to 0.0117
    plain = struct.pack("<f", 1.0) * (1 << 10)
    rows, at, infos = tensors(layers), 0, []
    for name, sizes, kind in rows:
        infos.append(text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, at))
        at += bytes_of(sizes, kind) + -bytes_of(sizes, kind) % ALIGNMENT
    entries = keys(layers)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(entries)) + b"".join(entries + infos)
    with open(path.with_suffix(".partial"), "wb") as file:
        file.write(header + b"\0" * (-len(header) % ALIGNMENT))
        for number, (name, sizes, kind) in enumerate(rows):
            size = left = bytes_of(sizes, kind)
            begin = 34 * (number * 7919 % (1 << 16)) if kind == Q8_0 else 0
            source = pool[begin:] + pool[:begin] if kind == Q8_0 else plain
            while left > 0:
                left -= file.write(source[:left])
            file.write(b"\0" * (-size % ALIGNMENT))
    path.with_suffix(".partial").rename(path)


# ----------------------------------------------------------------------------------------------------- measuring

def merge_command(arguments, base, adapter, out, *flags):
    return [str(arguments.peft), "merge", "--base", str(base), "--adapter", str(adapter), "--out", str(out), "--overwrite", *flags]


def make_rows(arguments, base, adapter, lora, folder):
    scratch, rows = folder / "scratch.gguf", []
    for form, flags in (("keep-quantized", ("--keep-quantized",)), ("F16", ())):
        result = folder / f"merged-{form}.gguf"
        if not result.exists():
            Measured(merge_command(arguments, base, adapter, result, "--no-sync", *flags))
        cp = Row(f"cp of the result, {form}", ["cp", str(result), str(scratch)], scratch)
        rows.append(cp)
        for threads in ("1", "2"):
            command = merge_command(arguments, base, adapter, scratch, "--no-sync", "--no-readback", "--threads", threads, *flags)
            rows.append(Row(f"  {form}, {threads} thread{'s' if threads > '1' else ''}", command, scratch, cp))
        if form == "F16" and arguments.export_lora:
            command = [str(arguments.export_lora), "-m", str(base), "--lora", str(lora), "-o", str(scratch), "-t", "2"]
            rows.append(Row("  llama-export-lora, 2 threads", command, scratch, cp))
    return rows


def record_rows(rows):
    theirs = next((row for row in rows if "llama-export-lora" in row.name), None)
    for row in rows:
        if row.reference is None or row is theirs:
            continue
        ours, copy = row.least("seconds"), row.reference.least("seconds")
        record("merge_gguf", row.name.strip(), "cp", ours, copy, "s", copy / ours)
        if theirs and row.name.strip() == "F16, 2 threads":
            record("merge_gguf_llama", row.name.strip(), "llama-export-lora", ours, theirs.least("seconds"), "s", theirs.least("seconds") / ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 layer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peft", type=Path, default=ROOT / "build/release/peft")
    parser.add_argument("--dir", type=Path, default=ROOT / "build/bench_gguf_merge", help="where the files go (25 GB)")
    parser.add_argument("--export-lora", type=Path, help="llama.cpp's llama-export-lora: it is run too")
    arguments = parser.parse_args()
    arguments.no_python = True
    layers = 1 if arguments.quick else 6
    folder = arguments.dir / f"layers-{layers}"
    folder.mkdir(parents=True, exist_ok=True)
    base, adapter, lora = folder / "base-Q8_0.gguf", folder / "adapter", folder / "adapter.gguf"
    if not base.exists():
        write_base(base, layers)
    if not adapter.exists():
        qwen.write_adapter(adapter, layers, RANK)
    (folder / "config.json").write_text(qwen.json.dumps(qwen.model_config(layers)))
    if arguments.export_lora and not lora.exists():
        Measured([str(arguments.peft), "convert", str(adapter), "--to", "gguf", "--base", str(folder), "--out", str(lora)])
    describe_machine(arguments, folder)
    rows = make_rows(arguments, base, adapter, lora, folder)
    print(f"{layers} layers: {os.path.getsize(base) / 1e9:.2f} GB in Q8_0, rank {RANK}; {arguments.repeat} rounds")
    for _ in range(arguments.repeat):
        for row in rows:
            row.run()
    print_table(rows)
    record_rows(rows)
    (folder / "scratch.gguf").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
