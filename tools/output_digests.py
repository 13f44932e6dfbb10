#!/usr/bin/env python3
"""Writes one line for each job of `peft` on the golden data: what the job is, and a digest of all that it gave.

    tools/output_digests.py --peft build/release/peft --out before.txt [--golden ../shared/golden] [--jobs 2]
    tools/output_digests.py --compare before.txt after.txt        exit code 1 and the lines that differ

A change that must not change results is checked by two lists, made before and after it. A job is one verb on one golden
adapter: convert to every layout, merge in every mode, combine, resize and extract. Its digest covers the names and bytes of all
files that were written; of a job that ends in an error, the exit code and the code of the error.
"""

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

LAYOUTS = ("peft-per-expert", "peft-fused", "peft-fused-0.19.0", "peft-fused-0.18", "unsloth-grouped")
MODES = ("best", "peft", "peft-safe")
GROUPS = ("convert", "native", "consumers", "merge", "quant", "runtime", "parity")


def adapters(golden):
    """(name, adapter folder, base folder) of every golden adapter that has both."""
    for group in GROUPS:
        for case_file in sorted((golden / group).rglob("case.json")):
            case, folder = json.loads(case_file.read_text()), case_file.parent
            base = folder / "base"
            if not base.is_dir():
                base = golden / "models" / case.get("model", "")
            for config in sorted(folder.glob("adapter*/adapter_config.json")):
                if (base / "config.json").is_file():
                    yield f"{folder.relative_to(golden)}/{config.parent.name}", config.parent, base


def jobs(golden):
    """(name, arguments) of every job; OUT stands for the folder that is written."""
    for name, adapter, base in adapters(golden):
        on_base = ["--base", str(base)]
        for layout in LAYOUTS:
            yield f"convert {name} {layout}", ["convert", str(adapter), "--to", layout, *on_base, "--out", "OUT"]
        yield f"combine {name}", ["combine", f"{adapter}@0.75", f"{adapter}@0.5", "--type", "linear", *on_base, "--out", "OUT"]
        yield f"combine-cat {name}", ["combine", f"{adapter}@0.75", f"{adapter}@-0.5", "--type", "cat", *on_base, "--out", "OUT"]
        yield f"resize {name}", ["resize", str(adapter), "--rank", "2", *on_base, "--out", "OUT"]
        if not any(base.glob("model*.safetensors")):
            continue
        for mode in MODES:
            yield f"merge-{mode} {name}", ["merge", *on_base, "--adapter", str(adapter), "--mode", mode, "--out", "OUT"]


def digest_of(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            digest.update(f"{path.relative_to(folder)} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:32]


def error_code(output):
    try:
        return json.loads(output)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return "?"


def run(peft, job):
    name, arguments = job
    with tempfile.TemporaryDirectory() as temporary:
        out = pathlib.Path(temporary) / "out"
        arguments = [str(out) if argument == "OUT" else argument for argument in arguments]
        result = subprocess.run([peft, *arguments, "--json", "--no-sync", "--threads", "1"], capture_output=True, text=True)
        if result.returncode != 0:
            return f"{name}: exit {result.returncode} {error_code(result.stdout)}"
        return f"{name}: {digest_of(out)}"


def compare(before, after):
    lines = [dict(line.rsplit(": ", 1) for line in pathlib.Path(file).read_text().splitlines()) for file in (before, after)]
    differing = 0
    for name in sorted(lines[0].keys() | lines[1].keys()):
        first, second = (side.get(name, "absent") for side in lines)
        if first != second:
            differing += 1
            print(f"{name}: {first} -> {second}")
    print(f"{len(lines[0])} and {len(lines[1])} jobs, {differing} differ")
    return 1 if differing else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peft", default="build/release/peft")
    parser.add_argument("--golden", type=pathlib.Path, default=pathlib.Path("../shared/golden"))
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        return compare(*options.compare)
    if not options.out:
        parser.error("--out is missing")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        lines = list(pool.map(lambda job: run(options.peft, job), jobs(options.golden)))
    options.out.write_text("".join(line + "\n" for line in lines))
    failed = sum(": exit " in line for line in lines)
    print(f"{len(lines)} jobs, {failed} of them end in an error: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
