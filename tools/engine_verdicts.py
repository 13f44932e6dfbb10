#!/usr/bin/env python3
"""Writes tests/engines/recorded.json: what real programs made of the golden adapters, one row a program and adapter.

    tools/engine_verdicts.py [GOLDEN]      GOLDEN: a folder as ../shared/golden

A row is [engine@version, mode, adapter, base, answer, where it is recorded]. Answers: right, wrong (it loads, says nothing and is another
function), refused. Most rows are read from case.json and verdicts*.json; those that only the README of consumers records stand below.
"""
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIXED = "enable_mixed_moe_lora_format"
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "qwen3_5_moe")
# Lines of golden/consumers/README.md about adapters that have no verdict file: adapter, then PEFT, llama.cpp, vLLM 0.32, vLLM 0.32 mixed.
README = [
    ("unsloth/gpt_oss/rank-major", "R", "x", "R", "R"), ("unsloth/qwen3_moe/rank-major", "R", "x", "x", "R"),
    ("unsloth/gpt_oss/grouped-by-expert", "W", "x", "W", "W"), ("unsloth/gpt_oss/grouped-by-expert-unmarked", "W", "x", "W", "W"),
    ("unsloth/qwen3_moe/grouped-by-expert", "W", "x", "x", "W"), ("unsloth/qwen3_moe/grouped-by-expert-unmarked", "W", "x", "x", "W"),
    ("tinker/qwen3_moe/{form}/expected/peft", "R", "R", "R", "R"), ("tinker/gpt_oss/{form}/expected/peft", "W", "x", "x", "x"),
    ("tinker/mixtral/{form}/expected/peft", "W", "x", "W", "."),
]
ANSWER = {"R": "right", "W": "wrong", "x": "refused", "ok": "right", "differs": "wrong", "error": "refused"}
PEFT = {"0.18.1": ("0.18.1", "4"), "0.19.0": ("0.19.0", "5"), "0.19.1": ("0.19.1", "5"), "0.20.0": ("0.20.0", "5"), "0.21.2": ("0.21.2", "5")}


def read(path):
    return json.loads(path.read_text())


def of_difference(value, limit):
    """The answer that a golden records as a difference of logits, or as the text of an error."""
    return "refused" if isinstance(value, str) else "right" if value < limit else "wrong"


def consumers(golden):
    root = golden / "consumers"
    for family in FAMILIES:
        base = f"models/consumer-{family}"
        for case in sorted(root.glob(f"{family}/*/case.json")):
            adapter = f"consumers/{family}/{case.parent.name}/adapter"
            yield "peft@0.21.2", "", adapter, base, of_difference(read(case)["expect"]["peft_0.21.2_vs_right"], 1e-2), "case.json"
            yield "mlx-lm@0.32", "", adapter, base, "refused", "README.md"
        for file in sorted(root.glob(f"vllm/{family}/verdicts*.json")):
            version = "0.33" if "0.33" in file.name else "0.32"
            for name, verdict in read(file)["verdicts"].items():
                yield f"vllm@{version}", MIXED if "mixed3d" in file.name else "", f"consumers/{family}/{name}/adapter", base, verdict["verdict"], file.name
        for case in sorted(root.glob(f"llama_cpp/{family}/*/case.json")):
            verdicts = read(case)
            converter = verdicts["converter.gguf"]["verdict"].split()[0]
            yield "llama.cpp", "", f"consumers/{family}/{case.parent.name}/adapter", base, converter, "llama_cpp case.json"
            yield "llama.cpp", "", f"consumers/llama_cpp/{family}/{case.parent.name}/right.gguf", base, verdicts["right.gguf"]["verdict"], "llama_cpp case.json"
        for case in sorted(root.glob(f"mlx_lm/{family}/*/case.json")):
            answer = "refused" if case.parent.name == "old-2d" else "right"
            yield "mlx-lm@0.32", "", f"consumers/mlx_lm/{family}/{case.parent.name}/adapter", base, answer, "README.md"
    for name, *answers in README:
        for form in ("independent", "shared") if "{form}" in name else ("",):
            adapter = f"consumers/{name.format(form=form)}" + ("/adapter" if name.startswith("unsloth") else "")
            base = f"models/consumer-{name.split('/')[1]}"
            for engine, mode, answer in zip(("peft@0.21.2", "llama.cpp", "vllm@0.32", "vllm@0.32"), ("", "", "", MIXED), answers):
                if answer != ".":
                    yield engine, mode, adapter, base, ANSWER[answer], "README.md"


def convert(golden):
    for case in sorted(golden.glob("convert/*/case.json")):
        facts, adapter = read(case), f"convert/{case.parent.name}/adapter"
        base = f"models/{facts['model']}"
        for version, row in facts["expect"].get("v5", {}).items():
            yield f"peft@{version}", "", adapter, base, ANSWER[row["outcome"]], "case.json"
        if facts["producer"]["peft"] == "0.18.1":
            yield "peft@0.18.1", "", adapter, base, "right", "its producer"


def native(golden):
    for case in sorted(golden.glob("native/*/case.json")):
        facts, adapter = read(case), f"native/{case.parent.name}/adapter"
        base, producer = f"models/{facts['model']}", facts["producer"]
        profile = PEFT.get(producer["peft"])
        if profile and producer["transformers"].startswith(profile[1]):
            yield f"peft@{profile[0]}", "", adapter, base, "right", "its producer"
        now = facts["expect"].get("load_in_0.21.2")
        if now:
            answer = "refused" if "error" in now else "right" if now["result"] == "same logits" else "wrong"
            yield "peft@0.21.2", "", adapter, f"models/{now.get('loaded_on', facts['model'])}", answer, "load_in_0.21.2"


def main():
    golden = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT.parent / "shared" / "golden")
    rows = [list(row) for group in (consumers, convert, native) for row in group(golden)]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    (ROOT / "tests/engines/recorded.json").write_text('{"made_by": "tools/engine_verdicts.py", "rows": [\n' + lines + "\n]}\n")
    print(len(rows), "rows")


if __name__ == "__main__":
    main()
