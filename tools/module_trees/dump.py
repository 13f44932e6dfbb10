#!/usr/bin/env python3
"""Golden module trees: what the real classes of transformers look like, built on the meta device.

    /path/to/venv/bin/python tools/module_trees/dump.py --out tests/module_trees [TYPE ...]

With a venv of transformers 5 it writes TYPE.CLASS.v5.json (small sizes) and TYPE.CLASS.v5-default.json (the sizes of the config
class, which are those of the real checkpoint as a rule); with transformers 4, TYPE.CLASS.v4.json.
A file: {"model_type", "class", "transformers", "config", "input", "output", "modules": [[name, class, kind, {parameter: shape}]]}.
"{0-3,6}" in a name stands for one module per number; modules are in registration order within a layer.
Run it for transformers 5 first: a tree of transformers 4 is written only where it differs.
"""
import argparse
import json
import re
import sys
import time
from pathlib import Path

import models
from models import ROOT, build, classes_of, config_json, embedding_names, find_small, make_config, modules_of


def numbers_text(numbers):
    runs = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def grouped(rows):
    """Equal rows of several layers and experts as one."""
    groups = {}
    for name, class_name, kind, shapes, _ in rows:
        parts = name.split(".")
        key = (".".join("#" if p.isdigit() else p for p in parts), class_name, kind, json.dumps(shapes))
        groups.setdefault(key, []).append(tuple(int(p) for p in parts if p.isdigit()))
    result = []
    for (template, class_name, kind, shapes), places in groups.items():
        for sets in boxes(places):
            name = template
            for numbers in sets:
                name = name.replace("#", str(numbers[0]) if len(numbers) == 1 else numbers_text(numbers), 1)
            result.append([name, class_name, kind, json.loads(shapes)])
    return result


def boxes(places):
    """Tuples of numbers as products of sets."""
    if not places[0]:
        return [[]]
    by_first = {}
    for place in places:
        by_first.setdefault(place[0], []).append(place[1:])
    by_rest = {}
    for first, rest in by_first.items():
        by_rest.setdefault(tuple(sorted(rest)), []).append(first)
    return [[firsts, *rest] for rests, firsts in by_rest.items() for rest in boxes(list(rests))]


def tree_of(model_type, class_name, schema, point):
    config = make_config(schema, point, with_symbols=False)
    saved = config_json(config, class_name)
    # What the file says counts: a class that changes a key when it is made may make another model of its own file.
    model = build(class_name, schema.type.from_dict(dict(saved)))
    source, output = embedding_names(model)
    return {"model_type": model_type, "class": class_name, "transformers": models.VERSION, "config": saved,
            "input": source, "output": output, "modules": grouped(modules_of(model))}


def write(path, tree):
    lines = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in tree["modules"])
    head = json.dumps({k: v for k, v in tree.items() if k != "modules"})[:-1]
    path.write_text(head + ',\n "modules": [\n' + lines + "\n]}\n")


def same_as_v5(out, model_type, class_name, tree):
    path = out / f"{model_type}.{class_name}.v5.json"
    return path.exists() and json.loads(path.read_text())["modules"] == tree["modules"]


def dump(model_type, out):
    generation = "v5" if models.V5 else "v4"
    for class_name in classes_of(model_type):
        schema, point, level = find_small(model_type, class_name)
        tree = tree_of(model_type, class_name, schema, point)
        if generation == "v5" or not same_as_v5(out, model_type, class_name, tree):
            write(out / f"{model_type}.{class_name}.{generation}.json", tree)
        if generation == "v5":
            try:
                write(out / f"{model_type}.{class_name}.v5-default.json", tree_of(model_type, class_name, schema, {}))
            except Exception as error:
                print(f"  no default of {class_name}: {error}")
        yield class_name, level, len(tree["modules"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/module_trees")
    parser.add_argument("types", nargs="*")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    types = options.types or list(json.loads((ROOT / "data/families.json").read_text())["families"])
    for model_type in types:
        if model_type not in models.CONFIG_MAPPING_NAMES:
            print(model_type, "is not in this transformers")
            continue
        start = time.time()
        try:
            for class_name, level, rows in dump(model_type, options.out):
                print(f"{model_type} {class_name} level {level} rows {rows} {time.time() - start:.1f}s", flush=True)
        except Exception as error:
            print(f"{model_type} FAILED {type(error).__name__}: {str(error)[:600]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
