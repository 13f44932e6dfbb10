#!/usr/bin/env python3
"""Checks that includes point one way: a stage of src/ includes only itself and the stages before it.

    tools/check_layers.py [ROOT]     exit 1 and one line per wrong include
    tools/check_layers.py --self-test
"""
import pathlib
import re
import sys

STAGES = ["base", "safetensors", "config", "model", "adapter", "plan", "weights", "low_rank", "layout", "execute", "verbs", "cli", "nn",
          "tokenizer", "torch_cli"]

# The first stage that may include a public header. peft.h is for users and is included by no stage.
PUBLIC = {
    "error.h": "base", "error_codes.inc": "base", "tensor.h": "base", "safetensors.h": "safetensors",
    "config.h": "config", "model.h": "model", "targets.h": "model", "adapter.h": "adapter", "layout.h": "layout",
    "plan.h": "plan", "weights.h": "weights", "execute.h": "execute", "reference.h": "execute", "verbs.h": "verbs", "merge.h": "verbs",
    "low_rank.h": "verbs", "verify_merged.h": "verbs", "nn/model.h": "nn", "nn/peft_model.h": "nn",
}

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def stage_of(include):
    """The stage a quoted include belongs to; None for tests' helpers and other libraries."""
    folder, _, rest = include.partition("/")
    if folder == "peft":
        return PUBLIC.get(rest, "unknown")
    return folder if folder in STAGES else None


def wrong_includes(stage, text):
    for include in INCLUDE.findall(text):
        other = stage_of(include)
        if other == "unknown":
            yield f'"{include}" is not a header that a stage may include'
        elif other is not None and STAGES.index(other) > STAGES.index(stage):
            yield f'"{include}" belongs to {other}, which comes after {stage}'


def sources(root):
    """(path, stage) of all files that have a stage."""
    for stage in STAGES:
        for path in sorted((root / "src" / stage).rglob("*")):
            if path.suffix in {".h", ".cpp", ".inc"}:
                yield path, stage
    for header, stage in PUBLIC.items():
        yield root / "include" / "peft" / header, stage


def check(root):
    problems = []
    for path, stage in sources(root):
        for problem in wrong_includes(stage, path.read_text()):
            problems.append(f"{path.relative_to(root)}: {problem}")
    for folder in sorted((root / "src").iterdir()):
        if folder.is_dir() and folder.name not in STAGES:
            problems.append(f"src/{folder.name}: not in the list of stages")
    return problems


def self_test():
    assert list(wrong_includes("base", '#include "base/checked.h"\n#include <vector>\n')) == []
    assert list(wrong_includes("base", '#include "peft/error.h"\n#include "gtest/gtest.h"\n')) == []
    assert len(list(wrong_includes("adapter", '#include "peft/plan.h"\n'))) == 1
    assert len(list(wrong_includes("plan", '  #  include "execute/stream.h"\n'))) == 1
    assert len(list(wrong_includes("verbs", '#include "peft/peft.h"\n'))) == 1
    assert list(wrong_includes("cli", '#include "peft/verbs.h"\n')) == []
    print("self-test passed")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    problems = check(root)
    print("\n".join(problems) if problems else f"{sum(1 for _ in sources(root))} files: includes point one way")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
