#!/usr/bin/env python3
"""`peft convert` beside `cp` and beside the real PEFT, in one run, on an adapter of the size of a Qwen3-30B-A3B LoRA.

    bench/peft_convert_compare.py [--quick] [--repeat 5] [--peft BINARY] [--dir build/bench_convert] [--no-python]

48 layers x 128 experts, H 2048, I 768, r 8, bf16: 37,248 tensors, 810 MiB per expert, 949 MiB fused; made once.
Rows, each a process of its own on files that are in the page cache; the rounds go through all rows in turn, so that a
busy machine hits all alike. A virtual machine may give free memory back to its host (/sys/module/page_reporting), and
taking it again costs 1 to 17 us a page, more than all else here. Which free pages a row gets depends on the sizes that it
asks for: cp asks for single pages, others for 1 MiB at a time, and what one has just freed is not what the next one takes.
So every run is made twice in a row, its output removed in between: the first, not timed, leaves it the pages it will ask for.
    cp                       the file that `peft convert` writes, copied
    cp + sync + cmp          the same, made durable and compared
    least I/O                the source read and as many bytes written as ours does, and nothing computed (bench_least_io)
    ours                     --no-sync --no-readback, 1 and 2 threads, both directions
    ours, durable            the default: synced, read back
    PEFT in memory           its state dict conversion alone, tensors already read: time of that call, not of the process
    PEFT, whole job          import, base on the meta device (no weights), read, convert, save; the adapter keeps its
                             dtype, and no model takes it: less than loading and saving it as the documentation says
Memory: the largest RssAnon seen in /proc, sampled every 2 ms (mapped files are not in it), and VmHWM.
Before the table our result is compared with PEFT's, tensor by tensor, and the way back with the original.
"""

import argparse
import fcntl
import json
import mmap
import os
import platform
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

from results import record

ROOT = Path(__file__).resolve().parent.parent
HIDDEN, INTERMEDIATE, EXPERTS, RANK = 2048, 768, 128, 8
ATTENTION = (("q_proj", 4096, HIDDEN), ("k_proj", 512, HIDDEN), ("v_proj", 512, HIDDEN), ("o_proj", HIDDEN, 4096))
EXPERT = (("gate_proj", INTERMEDIATE, HIDDEN), ("up_proj", INTERMEDIATE, HIDDEN), ("down_proj", HIDDEN, INTERMEDIATE))


# --------------------------------------------------------------------------------------------------- the adapter

def tensor_shapes(layers, rank=RANK):
    """-> {name: shape}, sorted as the safetensors library writes them (one dtype: by name)."""
    shapes = {}
    for layer in range(layers):
        prefix = f"base_model.model.model.layers.{layer}."
        modules = [(f"{prefix}self_attn.{name}", out, width) for name, out, width in ATTENTION]
        for expert in range(EXPERTS):
            modules += [(f"{prefix}mlp.experts.{expert}.{name}", out, width) for name, out, width in EXPERT]
        for module, out, width in modules:
            shapes[module + ".lora_A.weight"] = [rank, width]
            shapes[module + ".lora_B.weight"] = [out, rank]
    return dict(sorted(shapes.items()))


def random_bf16(count):
    """The upper halves of normal fp32 numbers."""
    numbers = random.Random(0)
    floats = array("f", (numbers.gauss(0, 1) for _ in range(count)))
    return array("H", floats.tobytes())[1::2].tobytes()


def write_adapter(folder, layers, rank=RANK):
    """Every tensor is a piece of one pool of random numbers, at its own place: no two are equal."""
    pool = random_bf16(1 << 20)
    places = random.Random(1)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensor_shapes(layers, rank).items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    with open(folder / "adapter_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                place = 2 * places.randrange((len(pool) - (end - begin)) // 2)
                file.write(pool[place:place + end - begin])
    config = {"base_model_name_or_path": "tiny/qwen3-30b-a3b-shapes", "bias": "none", "inference_mode": True,
              "lora_alpha": 2 * rank, "lora_dropout": 0.0, "peft_type": "LORA", "peft_version": "0.18.1", "r": rank,
              "task_type": "CAUSAL_LM",
              "target_modules": sorted(name for name, _, _ in ATTENTION + EXPERT)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def model_config(layers):
    return {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 1000,
            "hidden_size": HIDDEN, "intermediate_size": 6144, "moe_intermediate_size": INTERMEDIATE,
            "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "num_experts": EXPERTS, "num_experts_per_tok": 8, "norm_topk_prob": True}


def make_inputs(folder, layers):
    adapter, base = folder / "per-expert", folder / "base"
    if not (adapter / "adapter_config.json").exists():
        shutil.rmtree(adapter, ignore_errors=True)
        write_adapter(adapter, layers)
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps(model_config(layers)))
    return adapter, base


# ----------------------------------------------------------------------------------------------------- measuring

def status(pid, field):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return 0.0


class Measured:
    """One cold process: wall and CPU seconds, largest RssAnon and VmHWM in MiB, what it printed."""

    def __init__(self, command):
        self.anon = self.high_water = 0.0
        start = time.perf_counter()
        errors = tempfile.TemporaryFile()  # a pipe that nobody reads would stop a program that says much
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        watcher = threading.Thread(target=self._watch, args=(process.pid,))
        watcher.start()
        self.output = process.stdout.read().decode()
        _, code, usage = os.wait4(process.pid, 0)
        self.seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(code)
        watcher.join()
        self.cpu = usage.ru_utime + usage.ru_stime
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{errors.read().decode()[-2000:]}")

    def _watch(self, pid):
        try:
            while True:
                anon, high_water = status(pid, "RssAnon"), status(pid, "VmHWM")
                if not high_water:  # the process has ended and waits to be collected
                    return
                self.anon, self.high_water = max(self.anon, anon), max(self.high_water, high_water)
                time.sleep(0.002)
        except (FileNotFoundError, ProcessLookupError):
            return


class Row:
    def __init__(self, name, command, remove, reference=None, inner=False, once=False):
        self.name, self.command, self.remove, self.reference, self.inner = name, command, remove, reference, inner
        self.once = inner or once
        self.runs = []

    def run(self):
        for _ in range(1 if self.once else 2):  # the second is timed; an inner call needs no pages for files
            shutil.rmtree(self.remove) if self.remove.is_dir() else self.remove.unlink(missing_ok=True)
            os.sync()  # what earlier runs left to be written is not this run's work
            measured = Measured(self.command)
        if self.inner:  # the worker times its own call, and resets the memory marks before it
            measured.__dict__.update(json.loads(measured.output.splitlines()[-1]))
        self.runs.append(measured)

    def median(self, field):
        return statistics.median(getattr(m, field) for m in self.runs)

    def least(self, field):
        return min(getattr(m, field) for m in self.runs)


def read_tensors(path):
    """-> (header without metadata, view of the data section)"""
    file = open(path, "rb")
    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(bytes(data[8:8 + length]))
    header.pop("__metadata__", None)
    return header, data[8 + length:]


def same_tensors(one, two):
    (header, data), (other_header, other_data) = (read_tensors(p / "adapter_model.safetensors") for p in (one, two))
    if header.keys() != other_header.keys():
        return f"NO: {len(header.keys() ^ other_header.keys())} names differ"
    for name, entry in header.items():
        other = other_header[name]
        if entry["dtype"] != other["dtype"] or entry["shape"] != other["shape"]:
            return f"NO: {name} is {entry['dtype']} {entry['shape']} and {other['dtype']} {other['shape']}"
        if data[slice(*entry["data_offsets"])] != other_data[slice(*other["data_offsets"])]:
            return f"NO: {name} differs"
    return f"yes, {len(header)} tensors bit for bit"


# ------------------------------------------------------------------------------ the real PEFT (its own process)

def peft_worker(what, adapter, base, out):
    """Runs inside build/venvs/new. `memory`: the conversion call alone; `job`: the shortest way to a v5 file.

    Not PeftModel.from_pretrained and save_pretrained: that needs the weights of the base (61 GB); on the meta device
    it leaves the adapter there too, without data.
    """
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")
    import torch
    from peft import LoraConfig
    from peft.utils import load_peft_weights
    from peft.utils.transformers_weight_conversion import (convert_peft_adapter_state_dict_for_transformers,
                                                           convert_peft_config_for_transformers)
    from safetensors.torch import save_file
    from transformers import AutoConfig, Qwen3MoeForCausalLM

    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(AutoConfig.from_pretrained(base)).to(torch.bfloat16)
    tensors = load_peft_weights(adapter, device="cpu")
    if what == "memory":  # not mapped: reading the file is not part of the call
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    config = LoraConfig.from_pretrained(adapter)
    convert_peft_config_for_transformers(config, model, None)
    Path("/proc/self/clear_refs").write_text("5") if what == "memory" else None
    before = status("self", "RssAnon")
    wall, cpu = time.perf_counter(), time.process_time()
    fused = convert_peft_adapter_state_dict_for_transformers(model, config, tensors, "default")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert any("experts.base_layer.lora_A" in name for name in fused)
    if what == "memory":
        added = status("self", "VmHWM") - before
        print(json.dumps({"seconds": wall, "cpu": cpu, "anon": added, "high_water": status("self", "VmHWM")}))
        return
    config.save_pretrained(out)
    weights = os.path.join(out, "adapter_model.safetensors")
    save_file({n: t.contiguous() for n, t in fused.items()}, weights, metadata={"format": "pt"})


# ------------------------------------------------------------------------------------------------------- the run

def our_command(peft, adapter, layout, base, out, *flags):
    paths = [str(adapter), "--to", layout, "--base", str(base), "--out", str(out)]
    return [str(peft), "convert", *paths, "--quiet", *flags]


def make_rows(arguments, adapter, base, folder):
    fused, back, scratch = folder / "fused", folder / "back", folder / "scratch"
    fast = ("--no-sync", "--no-readback")
    rows = []
    for title, source, layout, result in (("per-expert -> fused", adapter, "peft-fused", fused),
                                          ("fused -> per-expert", fused, "peft-per-expert", back)):
        file = result / "adapter_model.safetensors"
        cp = Row(f"cp of the result of {title}", ["cp", str(file), str(scratch)], scratch)
        durable = 'cp "$0" "$1" && sync "$1" && cmp "$0" "$1"'
        durable_cp = Row("  cp + sync + cmp", ["sh", "-c", durable, str(file), str(scratch)], scratch, cp)
        rows += [cp, durable_cp]
        for threads in ("1", "2"):
            least = [str(arguments.peft.parent / "bench/bench_least_io"), str(source / "adapter_model.safetensors"), str(scratch)]
            rows.append(Row(f"  least I/O, {threads} threads", [*least, str(file.stat().st_size), threads], scratch, cp))
        for name, flags, reference in (("ours", fast, cp), ("ours, durable", (), durable_cp)):
            for threads in ("1", "2"):
                command = our_command(arguments.peft, source, layout, base, scratch, "--threads", threads, *flags)
                rows.append(Row(f"  {name}, --threads {threads}", command, scratch, reference))
        if layout == "peft-fused" and not arguments.no_python:
            worker = [str(ROOT / "build/venvs/new/bin/python"), __file__, "--worker"]
            memory, job = (worker + [what, str(adapter), str(base), str(folder / "real")] for what in ("memory", "job"))
            rows.append(Row("  PEFT 0.21.2, in memory", memory, folder / "real", cp, inner=True))
            rows.append(Row("  PEFT 0.21.2, whole job", job, folder / "real", cp))
    return rows


def check_results(arguments, adapter, base, folder, fused, back):
    """Makes the two results that are copied and converted back, and compares them. -> failed"""
    for source, layout, out in ((adapter, "peft-fused", fused), (fused, "peft-per-expert", back)):
        shutil.rmtree(out, ignore_errors=True)
        Measured(our_command(arguments.peft, source, layout, base, out, "--no-sync"))
    answers = {"the way back equals the original": same_tensors(adapter, back)}
    if not arguments.no_python:
        real = folder / "real"
        shutil.rmtree(real, ignore_errors=True)
        python = str(ROOT / "build/venvs/new/bin/python")
        Measured([python, __file__, "--worker", "job", str(adapter), str(base), str(real)])
        answers["our fused file equals PEFT's"] = same_tensors(fused, real)
    for question, answer in answers.items():
        print(f"{question}: {answer}")
    return any(answer.startswith("NO") for answer in answers.values())


def first_line(command):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout.splitlines()[0]
    except (OSError, IndexError):
        return "?"


def describe_machine(arguments, folder):
    names = (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    cpu = next(names, platform.machine())
    filesystem = first_line(["stat", "-f", "-c", "%T", str(folder)])
    print(f"{cpu}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Linux {platform.release()}, {filesystem}")
    print(f"{first_line([str(arguments.peft), '--version'])}; {first_line(['cp', '--version'])}")
    if not arguments.no_python:
        code = ("import peft, transformers as t, torch; "
                "print('PEFT', peft.__version__, 'transformers', t.__version__, 'torch', torch.__version__)")
        print(first_line([str(ROOT / "build/venvs/new/bin/python"), "-W", "ignore", "-c", code]))


def print_table(rows):
    print(f"\n{'':38} {'median s':>8} {'least s':>8} {'speed':>6} {'CPU s':>7} {'speed':>6}  {'anon MiB':>8} {'VmHWM MiB':>9}")
    for row in rows:
        reference = row.reference or row
        wall, cpu = (reference.least(field) / max(row.least(field), 1e-9) for field in ("seconds", "cpu"))
        print(f"{row.name:38} {row.median('seconds'):8.3f} {row.least('seconds'):8.3f} {wall:5.2f}x {row.least('cpu'):7.3f} {cpu:5.2f}x"
              f"  {max(m.anon for m in row.runs):8.1f} {max(m.high_water for m in row.runs):9.1f}")
    print("CPU s: user and system, the least. speed: of the least values, to cp of the same result; durable rows: to cp + sync + cmp.")
    print("PEFT in memory: anon is what the call adds to the tensors that it was given.")


def record_rows(rows):
    """Keeps the rows that docs/benchmarks.md has (bench/results.py)."""
    title, ours = "", {}
    for row in rows:
        name = row.name.strip()
        if name.startswith("cp of the result of "):
            title = name.removeprefix("cp of the result of ")
            continue
        least = row.least("seconds")
        match = re.fullmatch(r"(ours, durable|ours|least I/O), (?:--threads )?(\d)(?: threads)?", name)
        if match:
            kind, threads = match[1], int(match[2])
            what = {"ours": "", "ours, durable": "durable, ", "least I/O": "least I/O, "}[kind] + f"{threads} thread{'s' if threads > 1 else ''}"
            reference = row.reference.least("seconds")
            against = "cp + sync + cmp" if kind == "ours, durable" else "cp"
            record("convert", f"{title}, {what}", against, least, reference, "s", reference / least)
            ours[kind, threads] = row
        elif name.startswith("PEFT"):
            kind = name.split(", ")[1]
            mine = [ours["ours", threads].least("seconds") for threads in (1, 2)]
            for threads, seconds in zip(("1 thread", "2 threads"), mine):
                record("convert_peft", f"{kind}, {threads}", name, seconds, least, "s", least / seconds)
            memory, real = max(m.anon for m in ours["ours", 1].runs), max(m.anon for m in row.runs)
            if kind == "whole job":
                record("convert_peft", "anonymous memory of the whole job", name, memory, real, "MiB", real / memory)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return peft_worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 layers, 3 rounds")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--peft", type=Path, default=ROOT / "build/release/peft")
    parser.add_argument("--dir", type=Path, default=ROOT / "build/bench_convert", help="where the files go (5 GB)")
    parser.add_argument("--no-python", action="store_true", help="without the real PEFT")
    arguments = parser.parse_args()
    layers = arguments.layers or (4 if arguments.quick else 48)
    repeat = arguments.repeat or (3 if arguments.quick else 5)
    if not arguments.no_python:
        subprocess.run([ROOT / "tools/real_peft/setup.sh"], check=True)
    folder = arguments.dir / f"layers-{layers}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another run uses {folder}; --dir names another place")
    adapter, base = make_inputs(folder, layers)
    describe_machine(arguments, folder)
    fused, back = folder / "fused", folder / "back"
    failed = check_results(arguments, adapter, base, folder, fused, back)
    rows = make_rows(arguments, adapter, base, folder)
    sizes = {p: (p / "adapter_model.safetensors").stat().st_size for p in (adapter, fused)}
    print(f"{layers} layers, {EXPERTS} experts: {len(tensor_shapes(layers))} tensors, "
          f"{sizes[adapter] / 2**20:.0f} MiB per expert, {sizes[fused] / 2**20:.0f} MiB fused; {repeat} rounds")
    for command in (row.command for row in rows):
        print("  $ " + " ".join(command).replace(str(ROOT) + "/", ""))
    for _ in range(repeat):
        for row in rows:
            row.run()
    print_table(rows)
    record_rows(rows)
    for path in (folder / "scratch", folder / "real", back):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
