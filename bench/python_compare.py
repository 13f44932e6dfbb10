#!/usr/bin/env python3
"""The Python package beside the real PEFT, in one process on the same torch tensors; and what its calls cost.

    build/venvs/new/bin/python bench/python_compare.py [--quick] [--repeat 5] [--dir build/bench_convert] [--cli PROGRAM]

peft_cpp must be importable in that Python (or by PYTHONPATH). The adapter is that of peft_convert_compare.py: 37,248 tensors.
    convert_state_dict       per expert -> fused, tensors in memory; memory: what the call adds (VmHWM), to the result's bytes
    PEFT                     its own in-memory conversion of the same tensors
    read_factors             opening the file and a view of A and B of every pair
    inspect                  a tiny adapter: the call beyond the C++ verb's own time is not seen apart from it, so the whole call
    import                   python -c "import peft_cpp" less python -c pass, least of 20
    console command          peft --version less python -c pass, least of 20
"""
import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

from peft_convert_compare import ROOT, make_inputs, status


def timed(call, repeat):
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), min(seconds), result


def added_memory(call):
    """MiB that a call adds at its peak."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("self", "VmRSS")
    result = call()
    return status("self", "VmHWM") - before, result


def least_of_process(command, environment, repeat=20):
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peft_conversion(adapter, base):
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")
    import torch
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import (convert_peft_adapter_state_dict_for_transformers,
                                                           convert_peft_config_for_transformers)
    from transformers import AutoConfig, Qwen3MoeForCausalLM

    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(AutoConfig.from_pretrained(base)).to(torch.bfloat16)
    config = LoraConfig.from_pretrained(adapter)
    convert_peft_config_for_transformers(config, model, None)
    return lambda tensors: convert_peft_adapter_state_dict_for_transformers(model, config, tensors, "default")


def compare_conversions(adapter, base, repeat):
    import json

    import peft_cpp
    import torch
    from safetensors.torch import load_file

    tensors = {name: t.clone() for name, t in load_file(adapter / "adapter_model.safetensors").items()}
    config = json.loads((adapter / "adapter_config.json").read_text())
    result_bytes = 0
    rows = []
    for threads in (1, 2):
        def ours():
            return peft_cpp.convert_state_dict(tensors, config, to="peft-fused", base=base, threads=threads)

        memory, result = added_memory(ours)
        result_bytes = sum(t.nbytes for t in result.tensors.values()) / 2**20
        if threads == 1:
            kept = result.tensors
        del result
        rows.append((f"convert_state_dict, {threads} threads", *timed(ours, repeat)[:2], memory / result_bytes))
    real = peft_conversion(adapter, base)
    memory, other = added_memory(lambda: real(dict(tensors)))
    same = all(torch.equal(kept[name], other[name]) for name in kept) and kept.keys() == other.keys()
    del other, kept
    rows.append(("PEFT", *timed(lambda: real(dict(tensors)), repeat)[:2], memory / result_bytes))
    print(f"{len(tensors)} tensors -> {result_bytes:.0f} MiB; equal to PEFT's, tensor by tensor: {same}")
    for name, median, least, memory in rows:
        print(f"{name:34} median {median:7.3f} s  least {least:7.3f} s  {rows[-1][2] / least:6.2f}x PEFT's speed"
              f"  memory {memory:5.2f} of the result")


def call_costs(adapter, base, tiny, cli):
    import peft_cpp

    def all_factors():
        count = 0
        for site, a, b, scale in peft_cpp.read_factors(adapter, base=base):
            count += 1
        return count

    median, least, count = timed(all_factors, 5)
    print(f"read_factors, {count} pairs: median {median:.3f} s, least {least:.3f} s")
    median, least, _ = timed(lambda: peft_cpp.inspect(tiny), 50)
    print(f"inspect of a tiny adapter: median {1000 * median:.2f} ms, least {1000 * least:.2f} ms")
    environment = dict(os.environ)
    nothing = least_of_process([sys.executable, "-c", "pass"], environment)
    imported = least_of_process([sys.executable, "-c", "import peft_cpp"], environment)
    used = least_of_process([sys.executable, "-c", "import peft_cpp; peft_cpp.inspect"], environment)
    print(f"import: {1000 * (imported - nothing):.1f} ms; with the first function: {1000 * (used - nothing):.1f} ms beyond python -c pass")
    if cli:
        started = least_of_process([cli, "--version"], environment)
        print(f"peft --version: {1000 * (started - nothing):.1f} ms beyond python -c pass ({1000 * nothing:.1f} ms)")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dir", type=pathlib.Path, default=ROOT / "build" / "bench_convert")
    parser.add_argument("--cli")
    arguments = parser.parse_args()
    layers = 2 if arguments.quick else 48
    folder = arguments.dir / f"{layers}-layers"
    folder.mkdir(parents=True, exist_ok=True)
    adapter, base = make_inputs(folder, layers)
    print(f"load {os.getloadavg()[0]:.1f}")
    compare_conversions(adapter, base, arguments.repeat)
    call_costs(adapter, base, ROOT / "tests" / "golden" / "convert" / "mixtral-plain" / "adapter", arguments.cli)


if __name__ == "__main__":
    main()
