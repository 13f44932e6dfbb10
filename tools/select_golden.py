#!/usr/bin/env python3
"""Copies the committed selection of the golden data to tests/golden, or checks it against its MANIFEST.

    tools/select_golden.py ../shared/golden     replace tests/golden by a fresh selection
    tools/select_golden.py --check              every folder is what MANIFEST says

Run by hand when the golden data changes. Paths below tests/golden are those of the source, so that a test
finds its case under either root.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import sys

LIMIT = 20_000_000
TARGET = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
KEPT = ("README.md", "MANIFEST")  # written by hand, written last

# Group: which files of its cases are left out, as patterns of pathlib.PurePath.match.
GROUPS = {
    "config": [],
    "regex": [],
    "shapes": [],
    "convert": ["logits_*", "messages_*"],  # answers of models that a converter does not run
    "native": ["*logits.safetensors"],
    "consumers": ["*logits*.safetensors", "ids.json"],  # but for MODELS_THAT_RUN
    "merge": [],
    "quant": [],
    "tokenizer": [],
    "runtime": [],
    "generate": [],
    "parity": [],
    "train": [],
}
# Cases that show nothing the selection does not show without them: folders, and why. The whole set has them.
CASES_LEFT_OUT = {
    "the same bytes as another generation's case": [
        "native/*-p0200", "native/gpt_oss-HI-only_down-p0171", "native/gpt_oss-both-p0171", "native/llama4_text-both-p0171",
        "native/gpt_oss-HI-only_down-p0191", "native/llama4_text-both-p0191", "native/qwen3_5_moe-v5-*-p0191",
        "native/qwen3_moe-HI-v5-only_down-p0191", "native/qwen3_moe-v5-bf16_base-p0191", "native/qwen3_moe-v5-patterns-p0191",
        "native/gpt_oss-both-p0191",
    ],
    "a larger case of what smaller ones show": [
        "native/mixtral-E12-v5-both-p0212", "native/qwen3_5_moe-seed-v5-seed_script-p0190", "native/qwen3_5_moe-v5-both-p0190",
        "native/qwen3_5_moe-seed-v5-seed_script-p0212", "convert/mixtral-expert-missing",
    ],
    "the same variant on a second model": [
        "convert/qwen3_moe-regex", "convert/qwen3_moe-rslora", "convert/qwen3_moe-dropout", "convert/qwen3_moe-expert-missing",
        "convert/qwen3_moe-gate-up", "convert/qwen3_moe-router", "convert/qwen3_moe-alpha-down", "convert/mixtral-v5-native",
        "convert/phimoe-router", "convert/qwen2_moe-plain", "convert/deepseek_v2-plain", "convert/flex_olmo-plain",
        "convert/minimax-plain", "convert/dots1-plain", "convert/glm4_moe-plain", "convert/deepseek_v3-plain", "convert/olmoe-plain",
        "convert/qwen3_moe-down-only", "convert/qwen3_moe-gate-down", "convert/qwen3_moe-fp16",
        "native/llama4_text-both-p01*", "native/qwen3_vl_moe-v5-both-p01*", "native/qwen3_5_moe-v5-both-p0181t5",
        "native/mixtral-v5-both-*", "native/qwen3_5_moe_text-v5-both-*", "native/gpt_oss-bf16_base-*", "native/gpt_oss-rslora-*",
        "native/qwen3_moe-v5-experts_only-*", "native/llama-linear-p0171",
    ],
    "a variant next to another one": [
        "convert/mixtral-all-linear-literal", "convert/mixtral-peft0171", "convert/mixtral-shuffled",
        "convert/mixtral-alpha-by-layer", "convert/mixtral-one-tensor-missing", "convert/mixtral-extra-expert",
        "convert/mixtral-exclude-layer-random", "convert/mixtral-regex-numbers", "convert/mixtral-alpha-by-projection",
        "convert/mixtral-rank-down", "convert/mixtral-rank-by-layer",
    ],
    "what programs do with it is as for another model": [
        "consumers/qwen3_moe/perexpert-mixedrank", "consumers/qwen3_moe/perexpert-tied", "consumers/qwen3_moe/perexpert-router",
        "consumers/qwen3_moe/fused-*-only", "consumers/qwen3_moe/fused-2r", "consumers/qwen3_moe/fused-router",
        "consumers/qwen3_5_moe/fused-*-only", "consumers/qwen3_5_moe/fused-router", "consumers/gpt_oss/fused-experts-only",
    ],
}
CASES_LEFT_OUT["a model whose parts other models have too"] = [
    f"{group}/{model}" for group in ("runtime", "generate") for model in ("qwen3", "qwen3_moe-mixed", "qwen3_5_moe_text", "qwen2_moe")
]
CASES_LEFT_OUT["tied embeddings, which parity/tied-but-different shows"] = ["runtime/llama-tied", "generate/llama-tied"]
CASES_LEFT_OUT["the same at a larger size, or for a further model or dtype"] = ["quant/fp8-256x384-*", "merge/gpt_oss-fp32", "merge/llama4-bf16", "merge/qwen3_moe-fp32"]
# Of the training runs: experts with the routers' loss, DoRA, attention alone.
TRAIN_CASES = [f"train/{case}" for case in ("gpt_oss-aux", "llama-dora", "qwen3_moe-attention")]
# Of the files of other programs than PEFT and Unsloth: these. Between them they have every family's names, every kind of
# module and every form; the whole set has each of them for each family.
PROGRAMS = ("llama_cpp", "mlx_lm", "tinker", "vllm")
PROGRAM_CASES = [f"consumers/{case}" for case in (
    "llama_cpp/mixtral/fused", "llama_cpp/mixtral/perexpert-rslora", "llama_cpp/mixtral/perexpert-mixedrank",
    "llama_cpp/gpt_oss/fused-router", "llama_cpp/qwen3_5_moe/fused", "llama_cpp/mixtral/base.gguf", "llama_cpp/gpt_oss/base.gguf",
    "mlx_lm/qwen3_moe", "mlx_lm/mixtral/experts-attn", "mlx_lm/mixtral/router", "mlx_lm/mixtral/last-layer",
    "mlx_lm/gpt_oss/experts-attn-tied", "mlx_lm/gpt_oss/old-2d", "mlx_lm/gpt_oss/gateup-only", "mlx_lm/gpt_oss/down-only",
    "tinker/mixtral", "tinker/qwen3_moe/independent", "tinker/gpt_oss/shared",
)]
# llama.cpp's models have their weights: what they answer is selected too (tools/consumers).
MODELS_THAT_RUN = [f"consumers/{family}/{name}" for family in ("mixtral", "gpt_oss") for name in ("ids.json", "*logits*", "*/*/*logits*")]
MODEL_FILES = ("config.json", "facts.json")  # no weights: names and shapes are enough
# ... but for these: whether attention has one query projection or two, only the checkpoint shows.
MODELS_WITH_WEIGHTS = ("deepseek_v2-v4", "deepseek_v3-v4")
GROUPS_WITH_WEIGHTS = ("merge", "runtime", "generate", "parity", "train")  # what is merged or run
# The same weights as checkpoints spell them (one tensor per expert), and a wrong base for an adapter.
FURTHER_MODELS = ("rt-mixtral-v4", "qwen3_moe-disk", "mixtral-disk", "qwen3_moe-HI-v5")
# Models that no selected case needs, and a test of our own does.
FURTHER_CONFIGS = ("models/olmoe-v4/config.json",)


def lies_below(relative, patterns):
    folders = [relative, *relative.parents]
    return any(folder.match(pattern) for folder in folders for pattern in patterns if len(folder.parts) > 1)


def is_left_out(relative):
    if relative.parts[0] == "consumers" and relative.parts[1] in PROGRAMS:
        return not lies_below(relative, PROGRAM_CASES)
    if relative.parts[0] == "train":
        return not lies_below(relative, TRAIN_CASES)
    return lies_below(relative, [pattern for group in CASES_LEFT_OUT.values() for pattern in group])


def is_read(relative, case):
    """Files of a case that some test looks at."""
    name = relative.name
    if relative.parts[:2] == ("config", "migrate") and case["origin"] == "v4" and "expected" in relative.parts:
        return name in ("right.json", "targets_v4_0.18.1.json")  # what PEFT makes of it is shown by group convert
    if name == "converter.gguf":
        return not relative.parent.name.endswith(("-rslora", "-alphapat"))  # llama.cpp's converter is wrong there
    return True


def selected(source):
    """The files of the selection, relative to the source, sorted."""
    files = []
    models, heavy = set(FURTHER_MODELS), set(MODELS_WITH_WEIGHTS + FURTHER_MODELS)
    truths = set()  # (family, which) that a selected case is compared with
    cases = {path.parent: json.loads(path.read_text()) for path in source.glob("*/**/case.json")}
    for group, left_out in GROUPS.items():
        for path in (source / group).rglob("*"):
            relative = path.relative_to(source)
            answers = any(relative.match(pattern) for pattern in left_out) and not any(map(relative.match, MODELS_THAT_RUN))
            if not path.is_file() or is_left_out(relative) or answers:
                continue
            case = next((cases[folder] for folder in path.parents if folder in cases), {})
            if not is_read(relative, case):
                continue
            files.append(relative)
            if path.name == "case.json" and group in ("convert", "native", "consumers"):
                models.add(case["model"])
                truths.add((case["model"].removeprefix("consumer-"), case.get("truth")))
            if path.name == "case.json" and group in GROUPS_WITH_WEIGHTS:
                models.add(case["model"])
                heavy.add(case["model"])
    files = [file for file in files if not file.name.startswith("truth-")
             or (file.parent.name, file.stem.removeprefix("truth-")) in truths]
    for model in models:
        files += [path.relative_to(source) for name in MODEL_FILES for path in (source / "models" / model).glob(name)]
        files += [path.relative_to(source) for path in (source / "models" / model).glob("generation_config.json")]
        if model in heavy:
            files += [path.relative_to(source) for path in (source / "models" / model).glob("model*.safetensors*")]
    files += [pathlib.Path(name) for name in FURTHER_CONFIGS]
    return sorted(files)


def manifest(root):
    """One line per case: digest over the names and bytes of its files, their number, their bytes, the path."""
    cases = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and str(relative) not in KEPT:
            depth = 3 if relative.parts[0] in ("config", "consumers") else 2
            folder = relative.parent if len(relative.parts) <= depth else pathlib.PurePath(*relative.parts[:depth])
            cases.setdefault(str(folder), []).append(path)
    lines = []
    for folder, paths in sorted(cases.items()):
        digest = hashlib.sha256()
        for path in paths:
            data = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(data)}\n".encode() + data)
        size = sum(path.stat().st_size for path in paths)
        lines.append(f"{digest.hexdigest()[:32]} {len(paths):4} {size:8} {folder}\n")
    return "".join(lines)


def copy(source):
    files = selected(source)
    size = sum((source / name).stat().st_size for name in files)
    if size > LIMIT:
        sys.exit(f"selection is too large: expected at most {LIMIT} bytes, got {size}")
    for entry in TARGET.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    for name in files:
        (TARGET / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, TARGET / name)  # content only: the source may be read-only
    (TARGET / "MANIFEST").write_text(manifest(TARGET))
    print(f"{len(files)} files, {size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=pathlib.Path, help="root of the golden data")
    parser.add_argument("--check", action="store_true", help="compare tests/golden with its MANIFEST")
    options = parser.parse_args()
    if options.check == (options.source is not None):
        parser.error("give either a source or --check")
    if options.source:
        copy(options.source)
    elif manifest(TARGET) != (TARGET / "MANIFEST").read_text():
        sys.exit("tests/golden is not what MANIFEST says")


if __name__ == "__main__":
    main()
