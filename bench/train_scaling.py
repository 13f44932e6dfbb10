#!/usr/bin/env python3
"""How a training step grows with the number of experts and of tokens: bench_train with LoRA on experts, rounds in turn.

    bench/train_scaling.py [--threads 1] [--seconds 1] [--rounds 3] [--build build/release]

The model of peft_train_compare.py. Experts: 64 tokens in a row, 8 to 256 experts, of which 8 are chosen for each token; the weights of all others lie still.
Tokens: 64 experts, 64 to 2048 tokens in two rows. The least processor time of all rounds counts.
"""
import argparse
import json
import pathlib
import subprocess
import sys

from results import record

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERTS, TOKENS = (8, 16, 32, 64, 128, 256), (64, 128, 256, 512, 1024, 2048)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    arguments = parser.parse_args()
    runs = [("train_experts", f"{experts} experts", dict(experts=experts, tokens=64, sequences=1)) for experts in EXPERTS]
    runs += [("train_tokens", f"{tokens} tokens", dict(experts=64, tokens=tokens, sequences=2)) for tokens in TOKENS]
    least = {}
    for _ in range(arguments.rounds):
        for claim, what, sizes in runs:
            flags = {"threads": arguments.threads, "seconds": arguments.seconds, "kinds": "experts", **sizes}
            command = [arguments.build / "bench_train", *(word for name, value in flags.items() for word in (f"--{name}", value))]
            told = json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.splitlines()[-1])
            least[claim, what] = min(least.get((claim, what), float("inf")), told["cpu_ms_least"])
    for claim, what, sizes in runs:
        first = next(row for row in runs if row[0] == claim)
        scale = sizes["tokens"] / first[2]["tokens"]
        ours, reference = least[claim, what] / scale, least[claim, first[1]]
        print(f"{what:14} {least[claim, what]:9.1f} ms  {ours / reference:.2f}x{' for each token' if claim == 'train_tokens' else ''}")
        record(claim, what, first[1], ours, reference, "ms", ours / reference)
    return 0


if __name__ == "__main__":
    sys.exit(main())
