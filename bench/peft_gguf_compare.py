#!/usr/bin/env python3
"""`peft convert --to gguf` beside `cp` and beside llama.cpp's own converter, on the adapter of peft_convert_compare.py.

    bench/peft_gguf_compare.py [--quick] [--repeat 5] [--peft BINARY] [--dir build/bench_convert] [--llama-cpp DIR]

Rows as there: each a process of its own, run twice, the second timed; the rounds go through all rows in turn.
    cp                       the .gguf that `peft convert` writes, copied
    cp + sync + cmp          the same, made durable and compared
    ours                     --no-sync --no-readback, 1 and 2 threads, from the fused and from the per-expert form
    ours, durable            the default: synced, read back
    convert_lora_to_gguf.py  the whole job from the per-expert form, run once (--llama-cpp: a checkout, or vendor/llama.cpp of
                             llama_cpp_python's sdist; --python: an interpreter with torch, transformers and numpy)
Before the table the .gguf is converted back, and compared with the file it was made of, tensor by tensor; and with the
converter's, where that is run.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from peft_convert_compare import ROOT, Measured, Row, describe_machine, make_inputs, our_command, print_table, same_tensors
from results import record

CONVERTER = "convert_lora_to_gguf.py"


def converter_command(arguments, adapter, base, out):
    script = str(arguments.llama_cpp / "convert_lora_to_gguf.py")
    return [str(arguments.python), script, "--base", str(base), "--outtype", "bf16", "--outfile", str(out), str(adapter)]


def make_rows(arguments, inputs, base, folder, result):
    scratch = folder / "scratch.gguf"
    cp = Row("cp of the result", ["cp", str(result), str(scratch)], scratch)
    durable = 'cp "$0" "$1" && sync "$1" && cmp "$0" "$1"'
    durable_cp = Row("  cp + sync + cmp", ["sh", "-c", durable, str(result), str(scratch)], scratch, cp)
    rows = [cp, durable_cp]
    for form, source in inputs:
        for kind, flags, reference in (("", ("--no-sync", "--no-readback"), cp), ("durable, ", (), durable_cp)):
            for threads in ("1", "2"):
                command = our_command(arguments.peft, source, "gguf", base, scratch, "--threads", threads, *flags)
                rows.append(Row(f"  {form} -> gguf, {kind}{threads} thread{'s' if threads > '1' else ''}", command, scratch, reference))
    if arguments.llama_cpp:
        rows.append(Row(f"  {CONVERTER}", converter_command(arguments, inputs[1][1], base, scratch), scratch, cp, once=True))
    return rows


def header_mib(adapter):
    with open(adapter / "adapter_model.safetensors", "rb") as file:
        return int.from_bytes(file.read(8), "little") / 2**20


def record_memory(rows, inputs):
    """The largest of all runs, beside 64 MB and the header of the file that is read."""
    for form, source in inputs:
        largest = max(run.anon for row in rows if row.name.strip().startswith(f"{form} -> gguf") for run in row.runs)
        allowed = 64e6 / 2**20 + header_mib(source)
        record("gguf_memory", f"{form} -> gguf", "64 MB and the header", largest, allowed, "MiB", allowed / largest)


def record_rows(rows):
    converter = next((row for row in rows if row.name.strip() == CONVERTER), None)
    for row in rows:
        name = row.name.strip()
        if "-> gguf" not in name:
            continue
        reference, least = row.reference.least("seconds"), row.least("seconds")
        against = "cp + sync + cmp" if "durable" in name else "cp"
        record("gguf", name, against, least, reference, "s", reference / least)
        if converter and re.fullmatch(r"per-expert -> gguf, \d threads?", name):
            theirs = converter.least("seconds")
            record("gguf_converter", name, CONVERTER, least, theirs, "s", theirs / least)


def check(arguments, fused, base, folder, result):
    """-> failed"""
    Measured(our_command(arguments.peft, fused, "gguf", base, result, "--no-sync", "--overwrite"))
    back = folder / "back-gguf"
    shutil.rmtree(back, ignore_errors=True)
    Measured(our_command(arguments.peft, result, "peft-fused", base, back, "--no-sync"))
    answer = same_tensors(fused, back)
    print("the way back equals the original:", answer)
    shutil.rmtree(back)
    return answer.startswith("NO")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 layers, 3 rounds")
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--peft", type=Path, default=ROOT / "build/release/peft")
    parser.add_argument("--dir", type=Path, default=ROOT / "build/bench_convert", help="where the files go (4 GB)")
    parser.add_argument("--llama-cpp", type=Path, help="a checkout of llama.cpp: its converter is run too")
    parser.add_argument("--python", type=Path, default=ROOT / "build/venvs/new/bin/python")
    arguments = parser.parse_args()
    arguments.no_python = True
    layers = 4 if arguments.quick else 48
    folder = arguments.dir / f"layers-{layers}"
    folder.mkdir(parents=True, exist_ok=True)
    adapter, base = make_inputs(folder, layers)
    describe_machine(arguments, folder)
    fused, result = folder / "fused", folder / "result.gguf"
    if not fused.exists():
        Measured(our_command(arguments.peft, adapter, "peft-fused", base, fused, "--no-sync"))
    failed = check(arguments, fused, base, folder, result)
    inputs = (("fused", fused), ("per-expert", adapter))
    rows = make_rows(arguments, inputs, base, folder, result)
    print(f"{layers} layers: {os.path.getsize(result) / 2**20:.0f} MiB; {arguments.repeat or 3} rounds")
    for done in range(arguments.repeat or 3):
        for row in rows:
            if row.name.strip() == CONVERTER and done > 0:
                continue  # it takes more than a minute
            row.run()
    print_table(rows)
    record_rows(rows)
    record_memory(rows, inputs)
    for path in (result, folder / "scratch.gguf"):
        path.unlink(missing_ok=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
