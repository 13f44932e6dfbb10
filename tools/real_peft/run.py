#!/usr/bin/env python3
"""Converts and merges golden adapters with `peft` and has the real PEFT and transformers load the results. Called by run.sh; cases.py says what.

One process per environment answers all its jobs. Every check that was planned must come back, or the run fails.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cases import V4_FORMS, all_cases, read

ROOT = Path(__file__).resolve().parents[2]
LEAST_CHECKS = 100  # fewer: golden data is missing, and a run that checks nothing would pass
LEAST_CHECKS_QUICK = 40
MERGED_LIMIT = 1e-4  # of the largest logit: W + delta in one product, or W and B A apart
# Checkpoints of transformers 5 that transformers 4 cannot read, merged or not: no such class; the experts are turned.
ONLY_IN_V5 = ("qwen3_5_moe", "qwen3_vl_moe")


def as_json(value):
    return str(value) if isinstance(value, Path) else value


class Environment:
    """check.py --serve in one virtual environment."""

    def __init__(self, name, golden, work):
        python = ROOT / "build" / "venvs" / name / "bin" / "python"
        checker = Path(__file__).with_name("check.py")
        self.process = subprocess.Popen(
            [python, "-W", "ignore", checker, "--serve", "--golden", golden, "--work", work],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"})

    def answer(self, jobs):
        """-> {id: failures}. A process that ends early leaves its jobs failed."""
        answers = {}
        for job in jobs:
            try:
                self.process.stdin.write(json.dumps(job, default=as_json) + "\n")
                self.process.stdin.flush()
                answer = json.loads(self.process.stdout.readline() or "{}")
            except BrokenPipeError:
                answer = {}
            matches = answer.get("id") == job["id"]
            answers[job["id"]] = answer["failures"] if matches else ["the Python process ended; VERBOSE=1 shows why"]
        return answers

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def answer_in_parallel(environments, jobs):
    """jobs: [(environment name, job)]; the environments work side by side."""
    results, threads = {}, []
    for name, environment in environments.items():
        mine = [job for env, job in jobs if env == name]
        thread = threading.Thread(target=lambda e=environment, j=mine: results.update(e.answer(j)))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    return results


def convert(peft, golden, case, work):
    """-> (folder of the result, failures)"""
    adapter = case.adapter
    model = V4_FORMS.get(case.model, case.model) if case.env == "old" else case.model
    for step, layout in enumerate(case.to):
        target = work / "converted" / case.id.replace(" ", "_") / str(step)
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [peft, "convert", adapter, "--to", layout, "--out", target, "--base", golden / "models" / model,
                   "--overwrite", "--no-sync", "--quiet", *case.flags]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return target, [f"peft convert --to {layout} ran for a minute"]
        if done.returncode or not (target / "adapter_config.json").exists():
            said = " ".join(done.stderr.split())[:400]
            return target, [f"peft convert --to {layout} ended with {done.returncode}: {said}"]
        adapter = target
    return adapter, []


def spoil(adapter, out):
    """The same adapter with its last quarter of numbers zero: a check that accepts this one sees nothing."""
    shutil.copytree(adapter, out)
    weights = out / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    lost = (len(data) - begin) // 4
    data[-lost:] = bytes(lost)
    weights.write_bytes(data)
    return out


def source_job(source, work):
    against = [[source.golden, source.limit]] if source.golden else []
    return {"do": "check", "id": source.id, "model": source.model, "adapter": source.adapter, "ids": source.ids,
            "strict": source.strict, "against": against, "write": work / "answers" / f"{source.id}.safetensors"}


def case_job(case, adapter, work):
    against = [[work / "answers" / f"{case.source}.safetensors", case.limit]] if case.source else []
    against += [[case.golden, case.limit]] if case.golden else []
    return {"do": "check", "id": case.id, "model": case.model, "adapter": adapter, "ids": case.ids, "against": against,
            "deltas": case.deltas, "rename": case.rename, "migration": case.migration, "strict": case.strict}


def model_jobs(golden, sources, cases):
    """Every base, made by the environment whose transformers wrote its config."""
    jobs = []
    for name in sorted({x.model for x in sources + cases}):
        v4 = read(golden / "models" / name / "config.json").get("transformers_version", "5").startswith("4.")
        jobs.append(("old" if v4 else "new", {"do": "make", "id": f"models/{name}", "model": name}))
    return jobs


def merge(peft, source, work):
    """`peft merge` of a source adapter into the base that was made -> (folder, failures)"""
    out = work / "merged" / source.id
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [peft, "merge", "--base", work / "models" / source.model, "--adapter", source.adapter, "--out", out,
               "--overwrite", "--no-sync", "--quiet"] + ([] if source.strict else ["--ignore-unused"])
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return out, ["peft merge ran for a minute"]
    if done.returncode:
        return out, [f"peft merge ended with {done.returncode}: {' '.join(done.stderr.split())[:400]}"]
    return out, []


def merged_checks(peft, environments, sources, source_results, work):
    """Every source that its own environment answered, merged, and loaded by both transformers generations."""
    results, jobs = {}, []
    for source in sources:
        if source_results[source.id]:
            continue
        folder, failures = merge(peft, source, work)
        for env in environments:
            if env == "old" and source.model.split("-")[-1] != "v4" and any(m in source.model for m in ONLY_IN_V5):
                continue
            id = f"merged {source.id} in {env}"
            if failures:
                results[id] = failures
                continue
            against = work / "answers" / f"{source.id}.safetensors"
            jobs.append((env, {"do": "merged", "id": id, "folder": folder, "ids": source.ids, "against": against,
                               "limit": MERGED_LIMIT}))
    results.update(answer_in_parallel(environments, jobs))
    return results


def run(arguments, golden, work):
    """-> {id: failures} of the bases, of the sources, and of the cases with one spoiled adapter per environment."""
    sources, cases = all_cases(golden, arguments.quick)
    environments = {name: Environment(name, golden, work) for name in ("old", "new")}
    with ThreadPoolExecutor(2) as pool:  # while Python imports torch
        converted = list(pool.map(lambda case: convert(arguments.peft, golden, case, work), cases))
    results = answer_in_parallel(environments, model_jobs(golden, sources, cases))
    made = {id: failures for id, failures in results.items() if failures}
    source_results = answer_in_parallel(environments, [(s.env, source_job(s, work)) for s in sources])
    jobs, case_results = [], {}
    for case, (adapter, failures) in zip(cases, converted):
        if failures:
            case_results[case.id] = failures
        elif case.source and source_results[case.source]:
            case_results[case.id] = [f"its judge {case.source} failed"]
        else:
            jobs.append((case.env, case_job(case, adapter, work)))
    case_results.update(answer_in_parallel(environments, jobs))
    controls = []
    for name in environments:
        job = next((job for env, job in jobs if env == name and not case_results[job["id"]]), None)
        if job:
            spoiled = spoil(job["adapter"], work / "spoiled" / name)
            controls.append((name, {**job, "id": f"spoiled in {name}", "adapter": spoiled}))
    for id, failures in answer_in_parallel(environments, controls).items():
        noticed = failures and all("differ" in failure for failure in failures)
        case_results[id] = [] if noticed else [f"a spoiled adapter was not told from a right one: {failures}"]
    case_results.update(merged := merged_checks(arguments.peft, environments, sources, source_results, work))
    for environment in environments.values():
        environment.close()
    assert len(case_results) == len(cases) + len(controls) + len(merged) and len(source_results) == len(sources)
    return made, {f"source {id}": f for id, f in source_results.items()}, case_results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case of each kind and family")
    parser.add_argument("--peft", type=Path, default=ROOT / "build" / "release" / "peft")
    parser.add_argument("--verbose", action="store_true", help="name every check")
    arguments = parser.parse_args()
    if not arguments.peft.exists():
        sys.exit(f"{arguments.peft} is missing: make build")
    places = (ROOT / "../shared/golden", ROOT / "tests/golden")
    golden = Path(os.environ.get("PEFT_GOLDEN") or next(p for p in places if p.exists()))
    work = ROOT / "build" / "real_peft"
    shutil.rmtree(work, ignore_errors=True)
    start = time.monotonic()
    made, sources, cases = run(arguments, golden.resolve(), work)
    for id, failures in {**made, **sources, **cases}.items():
        for failure in failures:
            print(f"FAILED {id}: {failure}")
        if arguments.verbose and not failures:
            print(f"ok {id}")
    checks = {**sources, **cases}
    passed = sum(not failures for failures in checks.values())
    seconds = time.monotonic() - start
    print(f"{len(sources)} source adapters, {len(cases)} results, golden data {golden.resolve()}, {seconds:.0f} s")
    print(f"real peft: {len(checks)} checks, {passed} passed")
    enough = len(checks) >= (LEAST_CHECKS_QUICK if arguments.quick else LEAST_CHECKS)
    if not enough:
        print(f"too few checks: {len(checks)}")
    sys.exit(0 if enough and passed == len(checks) and not made else 1)


if __name__ == "__main__":
    main()
