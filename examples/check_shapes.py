#!/usr/bin/env python3
"""Runs example_qwen3_5_moe_all_linear on a case of golden/shapes and compares names, shapes, targets and the trainable line.

    check_shapes.py PROGRAM CASE
"""
import json
import pathlib
import re
import subprocess
import sys


def main():
    program, case = sys.argv[1], pathlib.Path(sys.argv[2])
    config = json.loads((case / "expected" / "config_after.json").read_text())
    line = json.loads((case / "case.json").read_text())["trainable_line"]
    arguments = [program, str(case / "base"), "--all", "--alpha", str(config["lora_alpha"])]
    all_linear = len(config["target_modules"]) > 4  # the other case names four modules
    arguments += [] if all_linear else ["--targets", ",".join(config["target_modules"])]
    arguments += ["--inference"] if line.startswith("trainable params: 0 ") else []
    output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()
    tensors = {}
    for text in output:
        if match := re.fullmatch(r"(\S+) \[(\d+), (\d+)\] = \[.*\] of \S+", text):
            tensors[match[1]] = [int(match[2]), int(match[3])]
    assert tensors == json.loads((case / "expected" / "shapes.json").read_text()), "names or shapes differ"
    targets = [text for text in output if text.startswith("target_modules of the saved config: ")]
    assert sorted(targets[0].split(": ")[1].split()) == config["target_modules"], f"targets differ: {targets}"
    assert output[-1] == line, f"expected {line}\ngot      {output[-1]}"
    print(f"{case.name}: {len(tensors)} tensors, targets and trainable line are equal")


main()
