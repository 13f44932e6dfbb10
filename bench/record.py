#!/usr/bin/env python3
"""Runs a benchmark and keeps what it measured in bench/results/CLAIM.json, from which report.py makes the page.

    bench/record.py build/release/bench/bench_header
    bench/record.py build/release/bench/bench_merge /tmp/bench --gb 0.8 --rank 8

A row that was measured before is replaced; the others stay, each with its own date, commit, machine and command.
"""
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def machine():
    """Processor, number of processors and system: "AMD EPYC 9V45, 2 CPUs, Linux 6.18"."""
    names = (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    system = ".".join(platform.release().split(".")[:2])
    return f"{next(names, platform.machine())}, {os.cpu_count()} CPUs, Linux {system}"


def commit():
    """The short hash of HEAD, with a "+" where files differ from it."""
    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def keep(rows):
    """Writes rows to the files of their claims. The title of a claim stands in claims.json; an unknown claim is an error."""
    known = {row["claim"] for row in json.loads((ROOT / "bench" / "claims.json").read_text())}
    RESULTS.mkdir(exist_ok=True)
    for claim in sorted({row["claim"] for row in rows}):
        if claim not in known:
            sys.exit(f"bench/claims.json has no claim {claim!r}")
        path = RESULTS / f"{claim}.json"
        new = [{key: value for key, value in row.items() if key != "claim"} for row in rows if row["claim"] == claim]
        measured = {row["what"] for row in new}
        old = [row for row in (json.loads(path.read_text()) if path.exists() else []) if row["what"] not in measured]
        merged = sorted(old + new, key=lambda row: row["what"])
        path.write_text("[\n" + ",\n".join(" " + json.dumps(row) for row in merged) + "\n]\n")
        print(f"{path.relative_to(ROOT)}: {len(new)} rows")


def main():
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        done = subprocess.run(sys.argv[1:], env=os.environ | {"PEFT_BENCH_RESULTS": file.name})
        rows = [json.loads(line) for line in Path(file.name).read_text().splitlines()]
    if done.returncode != 0:
        sys.exit(f"{sys.argv[1]} failed: {done.returncode}; nothing is kept")
    command = " ".join(word.replace(str(ROOT) + "/", "") for word in sys.argv[1:])
    where = {"date": datetime.date.today().isoformat(), "commit": commit(), "machine": machine(), "command": command}
    keep([row | where for row in rows])


if __name__ == "__main__":
    main()
