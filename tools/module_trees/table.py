#!/usr/bin/env python3
"""docs/module_trees.md: every class whose real module tree lies in tests/module_trees, and whether ours is equal.

    python3 tools/module_trees/table.py

The test ModuleTrees.AreTheRealOnes compares them; exceptions.txt lists what it does not find equal, and fails when a row is no longer needed.
"""
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "tests/module_trees"


def numbers(name):
    total = 1
    while "{" in name:
        inner, name = name[name.index("{") + 1:].split("}", 1)
        total *= sum(int(b or a) - int(a) + 1 for a, _, b in (run.partition("-") for run in inner.split(",")))
    return total


def main():
    reasons = dict(line.split(" ", 1) for line in (FOLDER / "exceptions.txt").read_text().splitlines() if line and line[0] != "#")
    classes = {}
    for path in sorted(FOLDER.glob("*.json")):
        tree = json.loads(path.read_text())
        kind = path.stem.rsplit(".", 1)[1]
        entry = classes.setdefault((tree["model_type"] if path.stem.startswith(tree["model_type"] + ".") else path.stem.split(".")[0], tree["class"]), {})
        entry[kind] = (tree["transformers"], sum(numbers(row[0]) for row in tree["modules"]), reasons.get(path.stem))
    equal = sum(all(r is None for _, _, r in e.values()) for e in classes.values())
    lines = ["# Module trees", "",
             "A base that is a config.json alone is described from `data/module_trees.json`: for each class of transformers every module with the",
             "formulas of its sizes and the condition under which it is there. The rows are read off the real classes by `tools/module_trees`",
             "(`fit.py`), which builds each from many configs on the meta device. `dump.py` writes the trees of the real classes to",
             "`tests/module_trees`: at small sizes, and at the sizes of the config class (`default`). The test `ModuleTrees.AreTheRealOnes` compares names,",
             "classes, kinds and shapes of all modules with ours, in both directions. A class that is not equal is described by the names in the",
             "adapter and by `data/families.json`, as far as these say something for certain. Classes with other heads, and models without one, have the",
             "body of a class below where `bodies.py` found it equal; their heads are not described.", "",
             f"{len({t for t, _ in classes})} types, {len(classes)} classes, {sum(len(e) for e in classes.values())} trees; "
             f"{equal} classes are equal in all their trees, {len(reasons)} trees are exceptions. A row has a tree of transformers 4 only where it "
             "differs from that of 5.", "",
             "| type | class | transformers | modules (small, default) | equal |", "|---|---|---|---|---|"]
    for (model_type, class_name), entry in sorted(classes.items()):
        versions = ", ".join(sorted({v for v, _, _ in entry.values()}))
        counts = ", ".join(str(entry[k][1]) for k in ("v5", "v5-default") if k in entry) or str(entry["v4"][1])
        wrong = [f"{k}: {r}" for k, (_, _, r) in entry.items() if r]
        lines.append(f"| {model_type} | {class_name} | {versions} | {counts} | {'yes' if not wrong else '; '.join(wrong)} |")
    (ROOT / "docs/module_trees.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
