#!/usr/bin/env python3
"""The Python module in one run beside the real PEFT, beside the way over files, and beside an empty Python.

    bench/module_compare.py [--quick] [--repeat 5] [--dir build/bench_convert] [--only memory,calls,start]

Needs build/venvs/new (tools/real_peft/setup.sh) and the module of the build tree (build/release/python).

memory   the adapter of peft_convert_compare.py (48 layers x 128 experts, rank 8, bf16; 37,248 tensors, 810 MiB) as torch
         tensors in memory, per-expert -> fused. Each row is a process of its own that holds the tensors and makes the call
         twice; the second is timed. Added memory: the largest VmHWM during the call, less what there was before it.
    ours, N threads          peft_cpp.convert_state_dict
    PEFT in memory           convert_peft_adapter_state_dict_for_transformers
    over files               safetensors' save_file, peft_cpp.convert without sync and read-back, load_file
calls    inspect of a tiny adapter; read_factors over all factors of the large one; how much another Python thread gets done
         while a conversion runs, and two conversions at once beside two in turn.
start    `import peft_cpp` and the program as Python starts it, each beside `python -c pass`; rounds in turn.

Before the times are printed our result is compared with PEFT's, tensor by tensor.
"""
import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import peft_convert_compare as adapters
from results import record

ROOT = Path(__file__).resolve().parent.parent
PYTHON = str(ROOT / "build/venvs/new/bin/python")
MODULE = ROOT / "build/release/python"


# ------------------------------------------------------------------------------------------------ in their own processes

def real_conversion(adapter, base):
    import torch
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import (convert_peft_adapter_state_dict_for_transformers,
                                                           convert_peft_config_for_transformers)
    from transformers import AutoConfig, Qwen3MoeForCausalLM

    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(AutoConfig.from_pretrained(base)).to(torch.bfloat16)
    config = LoraConfig.from_pretrained(adapter)
    convert_peft_config_for_transformers(config, model, None)
    return lambda tensors: convert_peft_adapter_state_dict_for_transformers(model, config, dict(tensors), "default")


def our_conversion(adapter, base, threads):
    import peft_cpp

    config = json.loads(Path(adapter, "adapter_config.json").read_text())
    return lambda tensors: peft_cpp.convert_state_dict(tensors, config, to="peft-fused", base=base, threads=threads)[0]


def conversion_over_files(adapter, base, scratch):
    import shutil

    import peft_cpp
    from safetensors.torch import load_file, save_file

    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(f"{scratch}/in")
    shutil.copy(Path(adapter, "adapter_config.json"), f"{scratch}/in")

    def convert(tensors):
        save_file(tensors, f"{scratch}/in/adapter_model.safetensors", metadata={"format": "pt"})
        peft_cpp.convert(f"{scratch}/in", to="peft-fused", base=base, out=f"{scratch}/out", overwrite=True, sync=False,
                         readback=False)
        return load_file(f"{scratch}/out/adapter_model.safetensors")

    return convert


def digest_of(tensors):
    """Of names, shapes, dtypes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def memory_worker(kind, adapter, base, scratch, with_digest):
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")
    from safetensors.torch import load_file

    if kind == "peft":
        convert = real_conversion(adapter, base)
    elif kind == "files":
        convert = conversion_over_files(adapter, base, scratch)
    else:
        convert = our_conversion(adapter, base, int(kind))
    tensors = {name: tensor.clone() for name, tensor in load_file(f"{adapter}/adapter_model.safetensors").items()}
    new = convert(tensors)
    del new
    Path("/proc/self/clear_refs").write_text("5")
    before = adapters.status("self", "VmRSS")
    start = time.perf_counter()
    new = convert(tensors)
    seconds = time.perf_counter() - start
    added = adapters.status("self", "VmHWM") - before
    size = sum(tensor.numel() * tensor.element_size() for tensor in new.values()) / 2**20
    print(json.dumps({"seconds": seconds, "added": added, "size": size,
                      "digest": digest_of(new) if with_digest else ""}))


def least(call, count):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def turns(seconds, stop):
    """How many steps of plain Python a thread makes in the time."""
    end, count = time.perf_counter() + seconds, 0
    while not stop() and time.perf_counter() < end:
        count += sum(range(100)) > 0
    return count


def calls_worker(tiny, adapter, base):
    import peft_cpp
    from safetensors.torch import load_file

    answer = {"inspect": least(lambda: peft_cpp.inspect(tiny, family="mixtral"), 200)}

    def read():
        count = 0
        for site, a, b, scale in peft_cpp.read_factors(adapter, base=base):
            count += a.shape[0] == b.shape[1]
        answer["pairs"] = count

    import numpy  # noqa: F401  its import is not part of the call

    answer["read_factors"] = least(read, 5)
    convert = our_conversion(adapter, base, 1)
    tensors = load_file(f"{adapter}/adapter_model.safetensors")
    answer["one"] = least(lambda: convert(tensors), 3)

    def both():
        threads = [threading.Thread(target=convert, args=(tensors,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    answer["two"] = least(both, 3)
    alone = turns(answer["one"], lambda: False) / answer["one"]
    thread = threading.Thread(target=convert, args=(tensors,))
    start = time.perf_counter()
    thread.start()
    done = turns(60, lambda: not thread.is_alive())
    answer["other"] = done / (time.perf_counter() - start) / alone
    print(json.dumps(answer))


# ------------------------------------------------------------------------------------------------------------- the run

def worker(what, *arguments):
    environment = os.environ | {"PYTHONPATH": str(MODULE), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([PYTHON, __file__, "--worker", what, *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
                          text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(adapter, base, folder, repeat):
    kinds = {"1": "ours, 1 thread", "2": "ours, 2 threads", "peft": "PEFT in memory", "files": "over files"}
    runs = {kind: [] for kind in kinds}
    for round_number in range(repeat):
        for kind in kinds:
            runs[kind].append(worker("memory", kind, adapter, base, folder / "memory", "1" if round_number == 0 else ""))
    digests = {runs[kind][0]["digest"] for kind in kinds}
    print(f"all results are the same tensors: {'yes' if len(digests) == 1 else 'NO'}")
    size = runs["1"][0]["size"]
    print(f"\n{'':18} {'least s':>8} {'median s':>9} {'ours faster':>12} {'added MiB':>10} {'of the result':>14}")
    best = {kind: min(run["seconds"] for run in runs[kind]) for kind in kinds}
    for kind, name in kinds.items():
        added = max(run["added"] for run in runs[kind])
        print(f"{name:18} {best[kind]:8.3f} {statistics.median(run['seconds'] for run in runs[kind]):9.3f}"
              f" {best[kind] / best['2']:11.2f}x {added:10.0f} {added / size:13.2f}x")
        if kind in ("1", "2"):
            record("module", f"convert_state_dict, {name[6:]}", "PEFT in memory", best[kind], best["peft"], "s", best["peft"] / best[kind])
    added = max(run["added"] for run in runs["2"])
    record("module", "convert_state_dict instead of files", "save, convert, load", best["2"], best["files"], "s", best["files"] / best["2"])
    record("module_cost", "memory of convert_state_dict", "the result", added, size, "MiB", added / size)
    return len(digests) == 1


def measure_calls(adapter, base):
    tiny = ROOT / "tests/golden/convert/mixtral-plain/adapter"
    with open(tiny / "adapter_model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = len(header.keys() - {"__metadata__"})
    answer = worker("calls", tiny, adapter, base)
    print(f"\ninspect of {tensors} tensors, verb and all: {1e3 * answer['inspect']:.2f} ms")
    print(f"read_factors of {answer['pairs']} pairs, each looked at: {answer['read_factors']:.3f} s")
    print(f"two conversions at once, of one thread each: {2 * answer['one'] / answer['two']:.2f} x as fast as in turn")
    print(f"another Python thread while one runs: {answer['other']:.2f} of what it does alone")
    record("module_cost", "inspect of a tiny adapter, verb and all", "2 ms", 1e3 * answer["inspect"], 2, "ms", 1e3 * answer["inspect"] / 2)
    record("module_cost", f"read_factors of {answer['pairs']} pairs", "0.15 s", answer["read_factors"], 0.15, "s", answer["read_factors"] / 0.15)
    record("module", "two conversions at once", "in turn", answer["two"], 2 * answer["one"], "s", 2 * answer["one"] / answer["two"])


def measure_start(repeat):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "peft").write_text((ROOT / "python/peft").read_text())
        rows = {"python -c pass": ["-c", "pass"], "import peft_cpp": ["-c", "import peft_cpp"],
                "import numpy": ["-c", "import numpy"], "peft --version": [f"{folder}/peft", "--version"]}
        python = str(ROOT / "build/venvs/python/bin/python")
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(MODULE)}
        times = {name: [] for name in rows}
        for _ in range(8 * repeat):
            for name, words in rows.items():
                start = time.perf_counter()
                subprocess.run([python, "-s", *words], env=environment, check=True,
                               stdout=subprocess.DEVNULL)
                times[name].append(time.perf_counter() - start)
    empty = statistics.median(times["python -c pass"])
    print(f"\n{'':18} {'median ms':>9} {'beyond an empty Python':>24}")
    for name in rows:
        median = statistics.median(times[name])
        print(f"{name:18} {1e3 * median:9.1f} {1e3 * (median - empty):21.1f} ms")
        allowed = {"import peft_cpp": 0.05, "peft --version": 0.01}.get(name)
        if allowed:
            record("module_cost", f"{name}, beyond python -c pass", f"{1e3 * allowed:.0f} ms", 1e3 * (median - empty), 1e3 * allowed, "ms",
                   (median - empty) / allowed)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return {"memory": memory_worker, "calls": calls_worker}[sys.argv[2]](*sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 layers, 2 rounds")
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--dir", type=Path, default=ROOT / "build/bench_convert")
    parser.add_argument("--only", default="memory,calls,start")
    arguments = parser.parse_args()
    layers, repeat = (4, 2) if arguments.quick else (48, 5)
    repeat = arguments.repeat or repeat
    folder = arguments.dir / f"layers-{layers}"
    folder.mkdir(parents=True, exist_ok=True)
    adapter, base = adapters.make_inputs(folder, layers)
    same = measure_memory(adapter, base, folder, repeat) if "memory" in arguments.only else True
    if "calls" in arguments.only:
        measure_calls(adapter, base)
    if "start" in arguments.only:
        measure_start(repeat)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
