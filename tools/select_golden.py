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

LIMIT = 20 * 2**20
TARGET = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
KEPT = ("README.md", "MANIFEST")  # written by hand, written last

# Group: which paths below it are left out, as patterns of pathlib.PurePath.match.
GROUPS = {
    "config": [],
    "regex": [],
    "shapes": [],
    "convert": ["logits_*", "messages_*"],  # answers of models that a converter does not run
    "native": ["*logits.safetensors"],
    "consumers": ["*logits*.safetensors", "ids.json"],
}
CONSUMER_LAYOUTS = ("llama_cpp", "mlx_lm", "tinker", "vllm")  # layouts that are not PEFT's or Unsloth's
MODEL_FILES = ("config.json", "facts.json")  # no weights: names and shapes are enough
# ... but for these: whether attention has one query projection or two, only the checkpoint shows.
MODELS_WITH_WEIGHTS = ("deepseek_v2-v4", "deepseek_v3-v4")


def selected(source):
    """The files of the selection, relative to the source, sorted."""
    files = []
    models = set()
    for group, left_out in GROUPS.items():
        for path in (source / group).rglob("*"):
            relative = path.relative_to(source)
            if not path.is_file() or any(relative.match(pattern) for pattern in left_out):
                continue
            if group == "consumers" and relative.parts[1] in CONSUMER_LAYOUTS:
                continue
            files.append(relative)
            if path.name == "case.json" and group in ("convert", "native", "consumers"):
                models.add(json.loads(path.read_text())["model"])
    for model in models:
        files += [pathlib.PurePath("models", model, name) for name in MODEL_FILES]
        if model in MODELS_WITH_WEIGHTS:
            files += [path.relative_to(source) for path in (source / "models" / model).glob("model*.safetensors*")]
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
