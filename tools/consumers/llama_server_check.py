#!/usr/bin/env python3
"""Starts the real llama-server with adapters of golden/consumers, and has `peft doctor --endpoint` ask it.

    tools/consumers/llama_server_check.py LLAMA_SERVER [--peft build/release/peft] [--verbose]

tools/consumers/setup.sh llama_server builds one (build/llama_cpp/build/bin/llama-server). Each model gets a vocabulary first: the golden ones have
none, without which the server ends at its first answer. One token of it is a part of a character and one ends a text. Then the adapter is made
by `peft convert --to gguf` and loaded; POST /lora-adapters makes it too strong, too weak, nothing, and what it was. Needs peft-torch
(beside peft, or $PEFT_TORCH), and the weights of ../shared/golden or $PEFT_GOLDEN. Last line: llama-server: N checks, N passed.
"""

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("qwen3_moe", "mixtral", "gpt_oss", "qwen3_5_moe")
ADAPTER, OTHER = "fused", "fused-gateup-only"  # the one that is loaded; one that is not
LINE_END, PART_OF_A_CHARACTER, END = 3, 4, 2
IDS = [17, 1, 40, LINE_END, 22, PART_OF_A_CHARACTER, 55, 63, END, 23, 31, 34, 11, 27, 9, 46, 8, 26, 36, 44, 61, 13, 50, 6]
# What is asked for, the scale that the server has the adapter at, and what must be the answer: verdict, factor.
ROWS = (
    ("the adapter", dict(), 1, "right", 1),
    ("its file's name", dict(lora="lora.gguf"), 1, "right", 1),
    ("its number", dict(lora="0"), 1, "right", 1),
    ("twice as strong", dict(), 2, "wrong scale", 2),
    ("half as strong", dict(), 0.5, "wrong scale", 0.5),
    ("switched off", dict(), 0, "ignores the adapter", 1),
    ("as before", dict(), 1, "right", 1),
    ("another adapter", dict(adapter=OTHER), 1, "different", 1),
    ("another base model", dict(other_base=True), 1, "another base model", 1),
    ("a name that is not loaded", dict(lora="other"), 1, "not readable", 1),
    ("a token that the model has not", dict(ids=[1, 2, 100000, 3]), 1, "not readable", 1),
)

# GGUF: a key, its type, its value.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def array(kind, items):
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def after_value(data, at, kind):
    if kind == STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != ARRAY:
        return at + SIZES[kind]
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    for _ in range(count):
        at = after_value(data, at, kind)
    return at


def after_tensors(data, at, count):
    for _ in range(count):
        at = after_value(data, at, STRING)
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 4 + 8
    return at


def vocabulary(size):
    """Of the kind that llama.cpp calls "llama": words, bytes and control tokens."""
    words = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xE4>"] + [f"\u2581w{i}" for i in range(5, size)]
    kinds = [2, 3, 3, 6, 6] + [1] * (size - 5)
    return {"tokenizer.ggml.model": (STRING, string("llama")),
            "tokenizer.ggml.tokens": (ARRAY, array(STRING, [string(word) for word in words])),
            "tokenizer.ggml.scores": (ARRAY, array(F32, [struct.pack("<f", -i) for i in range(size)])),
            "tokenizer.ggml.token_type": (ARRAY, array(I32, [struct.pack("<i", kind) for kind in kinds])),
            "tokenizer.ggml.bos_token_id": (U32, struct.pack("<I", 1)),
            "tokenizer.ggml.eos_token_id": (U32, struct.pack("<I", END))}


def add_vocabulary(source, out):
    data = source.read_bytes()
    magic, version, tensors, keys = struct.unpack_from("<4sIQQ", data)
    assert magic == b"GGUF" and version == 3, source
    at, kept, size, alignment = 24, [], 0, 32
    for _ in range(keys):
        begin = at
        at = after_value(data, at, STRING)
        key = data[begin + 8:at].decode()
        kind, = struct.unpack_from("<I", data, at)
        value, at = at + 4, after_value(data, at + 4, kind)
        if key.endswith(".vocab_size"):
            size, = struct.unpack_from("<I", data, value)
        if key == "general.alignment":
            alignment, = struct.unpack_from("<I", data, value)
        if not key.startswith("tokenizer."):
            kept.append(data[begin:at])
    assert size > max(IDS), f"{source}: a vocabulary of {size}"
    kept += [string(key) + struct.pack("<I", kind) + value for key, (kind, value) in vocabulary(size).items()]
    end = after_tensors(data, at, tensors)
    head = struct.pack("<4sIQQ", magic, version, tensors, len(kept)) + b"".join(kept) + data[at:end]
    out.write_bytes(head + bytes(-len(head) % alignment) + data[end + -end % alignment:])


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    def __init__(self, program, model, lora, log):
        self.url, self.log = f"http://127.0.0.1:{free_port()}", log
        flags = ["--host", "127.0.0.1", "--port", self.url.rsplit(":", 1)[1], "-c", "256", "-t", "1"]
        with log.open("w") as out:
            self.process = subprocess.Popen([program, "-m", model, "--lora", lora, *flags], stdout=out, stderr=out)

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url + "/health", timeout=5).close()
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.__exit__()
        sys.exit(f"llama-server did not start:\n{self.log.read_text()[-2000:]}")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def set_scale(self, scale):
        request = urllib.request.Request(self.url + "/lora-adapters", json.dumps([{"id": 0, "scale": scale}]).encode())
        urllib.request.urlopen(request, timeout=30).close()


def doctor(peft, url, base, adapter, lora, ids):
    command = [peft, "doctor", adapter, "--endpoint", url, "--model", "base", "--lora", lora, "--base", base, "--ids", ",".join(map(str, ids)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"verdict": f"exit code {done.returncode}", "factor": 1, "what": done.stderr[:500]}


def check_family(arguments, root, family, other, work):
    """-> {what was asked: failure or None}"""
    base, adapters = root / "models" / f"consumer-{family}", root / "consumers" / family
    model, lora = work / f"{family}.gguf", work / "lora.gguf"
    add_vocabulary(root / "consumers/llama_cpp" / family / "base.gguf", model)
    subprocess.run([arguments.peft, "convert", adapters / ADAPTER / "adapter", "--to", "gguf", "--base", base, "--out", lora, "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    results = {}
    with Server(arguments.llama_server, model, lora, work / "server.log") as server:
        for number, (what, asked, scale, verdict, factor) in enumerate(ROWS):
            server.set_scale(scale)
            ours = other if "other_base" in asked else family
            base, adapter = root / "models" / f"consumer-{ours}", root / "consumers" / ours / asked.get("adapter", ADAPTER) / "adapter"
            url = server.url + ("/v1" if number % 2 else "")  # both are addresses that users have
            answer = doctor(arguments.peft, url, base, adapter, asked.get("lora", "lora"), asked.get("ids", IDS))
            right = answer["verdict"] == verdict and abs(answer["factor"] - factor) < 0.1 * factor
            # All tokens but the part of a character are answered.
            right = right and (verdict == "not readable" or answer["tokens"] == len(IDS) - 1)
            results[f"{family}: {what}"] = None if right else f"not {verdict}: {json.dumps(answer)}"
            if arguments.verbose:
                print(f"{family}: {what}: {answer['verdict']}: {answer['what']} (moved {answer.get('moved')}, base off {answer.get('base_off')}, "
                      f"adapter off {answer.get('adapter_off')})", flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_server", type=Path)
    parser.add_argument("--peft", type=Path, default=ROOT / "build/release/peft")
    parser.add_argument("--verbose", action="store_true", help="print each answer")
    arguments = parser.parse_args()
    root = Path(os.environ.get("PEFT_GOLDEN") or ROOT / "../shared/golden").resolve()
    families = [family for family in FAMILIES if (root / f"models/consumer-{family}/model.safetensors").exists()]
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for family, other in zip(families, families[1:] + families[:1]):
            results |= check_family(arguments, root, family, other, Path(work))
    for id, failure in results.items():
        if failure:
            print(f"{id}: {failure}")
    passed = sum(failure is None for failure in results.values())
    print(f"llama-server: {len(results)} checks, {passed} passed")
    sys.exit(0 if results and passed == len(results) else 1)


if __name__ == "__main__":
    main()
