#!/usr/bin/env python3
"""Converts the adapters of golden/consumers for other programs with `peft convert --for`, and has the real programs run the results.

    tools/consumers/run.sh [llama_cpp] [mlx_lm] [vllm] [peft]     installs what is missing, then calls this

llama.cpp, MLX-LM and PEFT answer with logits, which must be those of the model with the right update added in place (golden data,
transformers). vLLM answers with the updates that its LoRA manager binds. Each program also answers for each model without an
adapter, and for one adapter that is spoiled: what accepts that one sees nothing. A check that was planned and did not come back is
a failure. Last line: real programs: N checks, N passed.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from cases import FAMILIES, all_cases, read, updates
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / "build" / "venvs"
RESULTS = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "notes" / "consumers.md"
LOGITS_LIMIT = 2e-4  # absolute; adapters move logits by 5 to 9. Programs agree on the models alone within 5e-5
UPDATE_LIMIT = 1e-5
LEAST_MOVED = 1  # a logit


class Program:
    """How `peft` names an engine, which environment runs it, and what it takes for a model."""

    def __init__(self, name, engine, venv, title, left_out=()):
        self.name, self.engine, self.python, self.title = name, engine, VENVS / venv / "bin/python", title
        self.left_out = dict(left_out)
        self.judge = "what its LoRA manager binds" if name == "vllm" else "logits"

    def model(self, root, family):
        folder = root / "models" / f"consumer-{family}"
        path = root / "consumers/llama_cpp" / family / "base.gguf" if self.name == "llama_cpp" else folder
        there = path.is_file() if self.name == "llama_cpp" else (path / "model.safetensors").exists() or self.name == "vllm"
        return path if there else None

    def arguments(self, root, family, mode):
        return [str(self.model(root, family).resolve()), *(["--mixed"] if "mixed" in mode else [])] if self.name == "vllm" else []


PROGRAMS = {program.name: program for program in (
    Program("llama_cpp", "llama.cpp", "llama_cpp", "llama.cpp 0.5.0"),
    Program("mlx_lm", "mlx-lm", "mlx_lm", "MLX-LM 0.32.2", {"qwen3_5_moe": "MLX-LM has no class for the text-only type"}),
    Program("vllm", "vllm@0.32", "vllm", "vLLM 0.32.0"),
    Program("peft", "peft", "new", "PEFT 0.21.2"),
)}


class Worker:
    def __init__(self, program, arguments):
        script = Path(__file__).with_name(f"in_{program.name}.py")
        self.process = subprocess.Popen(
            [program.python, "-W", "ignore", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def answer(self, job):
        """-> what the program said against it, or None"""
        try:
            self.process.stdin.write(json.dumps(job, default=str) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line)["refused"] if line else "the process ended; VERBOSE=1 shows why"

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def convert(peft, root, case, program, work):
    """-> (path, mode of the engine, failure)"""
    out = work / program.name / (case.id.replace("/", "-") + (".gguf" if program.name == "llama_cpp" else ""))
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [peft, "convert", case.adapter, "--for", program.engine, "--base", root / "models" / f"consumer-{case.family}", "--out", out,
               "--overwrite", "--no-sync", "--json", *case.flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return out, "", f"peft convert ended with {done.returncode}: {done.stderr[:300]}"
    return out, answer.get("for", ""), None if done.returncode == 0 else f"peft convert: {answer['error']}"


def spoil(adapter, out):
    """The same adapter with its last tenth of numbers zero."""
    if adapter.is_dir():
        shutil.copytree(adapter, out)
        weights = next(out.glob("*.safetensors"))
    else:
        weights = shutil.copy(adapter, out)
    data = bytearray(Path(weights).read_bytes())
    lost = len(data) // 10
    data[-lost:] = bytes(lost)
    Path(weights).write_bytes(data)
    return out


def far(got, want):
    return max(float(np.abs(got[key] - want[key]).max()) if got[key].shape == want[key].shape else np.inf for key in want)


def judge_logits(got, case, base):
    want = load_file(case.logits)
    distance, moved = far(got, want), far(got, base)
    if distance > LOGITS_LIMIT:
        return f"logits are {distance:.2g} from the right ones (limit {LOGITS_LIMIT})"
    return None if moved > LEAST_MOVED else f"the adapter moved no logit by more than {moved:.2g}"


def judge_updates(got, case, root):
    want = updates(case, root)
    for place, update in want.items():
        if place not in got:
            return f"{place}: nothing is bound"
        distance = np.abs(got[place] - update).max()
        if distance > UPDATE_LIMIT * max(1, np.abs(update).max()):
            return f"{place}: the update is {distance:.2g} from the right one"
    more = [place for place, update in got.items() if place not in want and np.abs(update).max() > 0]
    return f"{more[0]}: an update that the adapter does not have" if more else None


def check_model(worker, program, model, ids, root, family, work):
    """-> (logits of the model alone, failure)"""
    out = work / program.name / f"{family}.safetensors"
    refused = worker.answer({"adapter": None, "model": model, "ids": ids, "out": out})
    if refused:
        return None, refused
    got, right = load_file(out), load_file(root / "consumers" / family / "logits-base.safetensors")
    distance = far(got, {key.replace("base.", "logits."): value for key, value in right.items()})
    return got, None if distance < LOGITS_LIMIT else f"logits of the model alone are {distance:.2g} from those of transformers"


def check_group(program, root, family, cases, results, work, mode=""):
    """Cases of one model, in one process. results: {id: failure or None}."""
    model, base = program.model(root, family), None
    work.joinpath(program.name).mkdir(parents=True, exist_ok=True)
    worker = Worker(program, program.arguments(root, family, mode))
    if program.name != "vllm":
        base, failure = check_model(worker, program, model, cases[0][0].ids(root), root, family, work)
        results[f"{family} alone"] = failure

    def judged(case, adapter):
        out = work / program.name / "answer.safetensors"
        refused = worker.answer({"adapter": adapter, "model": model, "ids": case.ids(root), "out": out})
        if refused:
            return "refused: " + refused
        got = load_file(out)
        return judge_updates(got, case, root) if base is None else judge_logits(got, case, base)

    for case, adapter in cases:
        results[case.id] = judged(case, adapter)
    case, adapter = cases[0]
    noticed = judged(case, spoil(adapter, work / program.name / f"spoiled{mode}-{adapter.name}"))
    results[f"{family} spoiled {mode}".strip()] = None if noticed else "a spoiled adapter was not told from a right one"
    worker.close()


def check(program, root, arguments, work):
    """-> ({id: failure or None}, what was left out)"""
    results, left_out = {}, []
    for family in FAMILIES:
        cases = [case for case in all_cases(root) if case.family == family and (program.name == "vllm" or case.logits.exists())]
        if family in program.left_out or not program.model(root, family) or not cases:
            left_out.append(f"{family}: {program.left_out.get(family, 'the golden data here has not what it needs')}")
            continue
        groups = {}
        for case in cases[:: 4 if arguments.quick else 1]:
            adapter, mode, failure = convert(arguments.peft, root, case, program, work)
            if failure:
                results[case.id] = failure
            else:
                groups.setdefault("mixed" if "mixed" in mode else "", []).append((case, adapter.resolve()))
        for mode, group in groups.items():
            check_group(program, root, family, group, results, work, mode)
    return results, left_out


def keep_results(rows):
    """docs/notes/consumers.md: the last run of each program."""
    known = {row["program"]: row for row in (read(RESULTS) if RESULTS.exists() else [])}
    known.update({row["program"]: row for row in rows})
    RESULTS.write_text("[\n" + ",\n".join(" " + json.dumps(known[name]) for name in PROGRAMS if name in known) + "\n]\n")
    lines = ["| program | judged by | checks | passed | seconds | left out | run |", "|---|---|---:|---:|---:|---|---|"]
    for name, program in PROGRAMS.items():
        if name in known:
            row = known[name]
            lines.append(f"| {program.title} | {program.judge} | {row['checks']} | {row['passed']} | {row['seconds']} "
                         f"| {'; '.join(row['left_out'])} | {row['date']}, {row['commit']} |")
    text = PAGE.read_text()
    head, tail = text.split("<!-- results -->\n")[0], text.split("<!-- end of results -->")[1]
    PAGE.write_text(head + "<!-- results -->\n" + "\n".join(lines) + "\n<!-- end of results -->" + tail)


def commit():
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", help="llama_cpp, mlx_lm, vllm, peft; all that are installed when not given")
    parser.add_argument("--quick", action="store_true", help="every fourth adapter")
    parser.add_argument("--peft", type=Path, default=ROOT / "build/release/peft")
    parser.add_argument("--verbose", action="store_true", help="name every check")
    parser.add_argument("--record", action="store_true", help="keep the results in docs/notes/consumers.md")
    arguments = parser.parse_args()
    places = (ROOT / "../shared/golden", ROOT / "tests/golden")
    root = Path(os.environ.get("PEFT_GOLDEN") or next(place for place in places if place.exists())).resolve()
    work = ROOT / "build" / "consumers"
    shutil.rmtree(work, ignore_errors=True)
    total = passed = 0
    rows = []
    for name in arguments.programs or [name for name, program in PROGRAMS.items() if program.python.exists()]:
        start = time.monotonic()
        results, left_out = check(PROGRAMS[name], root, arguments, work)
        for id, failure in results.items():
            if failure or arguments.verbose:
                print(f"{name}: {id}: {failure or 'ok'}")
        for text in left_out:
            print(f"{name}: left out {text}")
        right, seconds = sum(failure is None for failure in results.values()), round(time.monotonic() - start)
        print(f"{name}: {right} of {len(results)} right, {seconds} s", flush=True)
        rows.append({"program": name, "checks": len(results), "passed": right, "seconds": seconds, "left_out": left_out,
                     "date": str(datetime.date.today()), "commit": commit()})
        total, passed = total + len(results), passed + right
    print(f"golden data {root}")
    print(f"real programs: {total} checks, {passed} passed")
    if arguments.record:
        keep_results(rows)
    sys.exit(0 if total == passed and total else 1)


if __name__ == "__main__":
    main()
