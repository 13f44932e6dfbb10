#!/usr/bin/env python3
"""Joins what fit.py found for both generations into data/module_trees.json.

    python3 tools/module_trees/join.py /tmp/v5 /tmp/v4 [/tmp/bodies5.json /tmp/bodies4.json]

Only classes that came out right in every config are taken; the others are listed, and stay unknown. The last two are of bodies.py.
"""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KNOWN_KINDS = {"Linear": "linear", "Conv1D": "conv1d", "Embedding": "embedding", "Conv1d": "conv", "Conv2d": "conv", "Conv3d": "conv"}

# What a config class does with older keys that fit.py cannot vary by itself, read in its source.
OLDER_KEYS = {
    "nemotron_h": {"layers_block_type": {
        "length": "len(hybrid_override_pattern)",
        "values": [["linear_attention", ["hybrid_override_pattern[i] == 'M'"]], ["moe", ["hybrid_override_pattern[i] == 'E'"]],
                   ["full_attention", ["hybrid_override_pattern[i] == '*'"]], ["mlp", ["hybrid_override_pattern[i] == '-'"]]]}},
    "gemma4_text": {"global_head_dim": {"by_layer": "head_dim"}, "num_global_key_value_heads": {"by_layer": "num_key_value_heads"}},
    "gemma4": {"text_config.global_head_dim": {"by_layer": "head_dim"},
               "text_config.num_global_key_value_heads": {"by_layer": "num_key_value_heads"}},
    "diffusion_gemma": {"text_config.global_head_dim": {"by_layer": "head_dim"},
                        "text_config.num_global_key_value_heads": {"by_layer": "num_key_value_heads"}},
    "ernie4_5_moe": {"moe_layer_end_index": "num_hidden_layers - 1"},  # also where the file says -1
}


def exceptions():
    """Classes whose golden trees do not come out equal: they are not in the table."""
    path = ROOT / "tests/module_trees/exceptions.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split(" ", 1) for line in lines if line and line[0] != "#"]
    return {(name.rsplit(".", 1)[0], name.rsplit(".", 1)[1][:2]) for name, why in rows if not why.startswith("only")}


EXCEPTIONS = exceptions()


def row_of(row):
    path, class_name, kind, dims, when = row
    if KNOWN_KINDS.get(class_name, "other") != kind:
        class_name += f":{kind}"
    sizes = dims["weight"] if list(dims) == ["weight"] else dims
    return [path, class_name, sizes, *([when] if when else [])]


def read(folder, generation):
    found, left_out = {}, {}
    for path in sorted(Path(folder).glob("*.json")):
        model_type, class_name = path.stem.rsplit(".", 1)
        if (f"{model_type}.{class_name}", generation) in EXCEPTIONS:
            continue
        result = json.loads(path.read_text())
        problems = [p for p in result["problems"] if not p.startswith("derived ")]  # a key that has to be in the file
        if result["wrong"] or problems:
            why = str(problems[0]) if problems else f"{len(result['wrong'])} configs come out wrong"
            left_out[f"{model_type} {class_name}"] = why[:200]
            continue
        keys = {k: dict(sorted(result[k].items())) for k in ("defaults", "aliases", "derived")}
        for problem in result["problems"]:  # "derived KEY": nothing found of how the class makes it, so a file has to have it
            keys["derived"][problem.split()[1].rstrip(":")] = {"length": "unknown", "values": []}
        keys["derived"] |= OLDER_KEYS.get(model_type, {})
        for path, made in OLDER_KEYS.get(model_type, {}).items():
            if "by_layer" not in made:
                keys["defaults"].pop(path, None)
        for path, made in list(keys["derived"].items()):  # numbers of layers are no kinds of layers
            if isinstance(made, dict) and len(made.get("values", [])) > 2 and not isinstance(made["values"][0][0], str):
                keys["derived"][path] = {"length": "unknown", "values": []}
        if model_type == "nemotron_h":
            keys["defaults"]["layers_block_type"] = ["linear_attention", "moe", "full_attention", "mlp"]
        tree = result["tree"]
        found.setdefault(model_type, {})[class_name] = (keys, {
            "input": tree["input"], "output": tree["output"], "counts": dict(sorted(tree["loops"].items())),
            "modules": [row_of(r) for r in tree["modules"]]})
    return found, left_out


def order_of(model_type, order):
    return order.index(model_type) if model_type in order else len(order)


def read_bodies(files):
    """Those that are the same in each generation that has the class."""
    found = {}
    for file in files:
        for model_type, classes in json.loads(Path(file).read_text()).items():
            for class_name, body in classes.items():
                found.setdefault(model_type, {}).setdefault(class_name, []).append(body)
    return {t: {c: b[0] for c, b in sorted(classes.items()) if b[0] and all(other == b[0] for other in b)} for t, classes in found.items()}


def main():
    bodies = read_bodies(sys.argv[3:])
    v5, left5 = read(sys.argv[1], "v5")
    v4, left4 = read(sys.argv[2], "v4")
    for model_type, classes in v4.items():  # a file of transformers 5 describes the modules of 4, too
        for class_name, (own, _) in classes.items():
            newer = v5.get(model_type, {}).get(class_name)
            for path, names in (newer[0]["aliases"] if newer else {}).items():
                own["aliases"].setdefault(path, names)
    table = {}
    for model_type in sorted(v5.keys() | v4.keys()):
        keys, classes = [], {}
        for generation, source in (("v5", v5), ("v4", v4)):
            for class_name, (own, tree) in source.get(model_type, {}).items():
                if own not in keys:
                    keys.append(own)
                tree = tree | {"keys": keys.index(own)}
                row = classes.setdefault(class_name, {})
                row[generation] = "v5" if generation == "v4" and row.get("v5") == tree else tree
        # The usual class first: the decoder of an encoder-decoder and an encoder that writes text are rarer than they.
        rank = {"ForConditionalGeneration": 0, "ForMaskedLM": 1, "ForCausalLM": 2, "LMHeadModel": 3}
        names = sorted(classes, key=lambda n: (next((r for end, r in rank.items() if n.endswith(end)), 4 if "For" in n else 5), n))
        table[model_type] = {"keys": keys, "classes": {n: classes[n] for n in names}}
    lines = []
    for model_type, entry in table.items():
        parts = [f'  "keys": [\n   ' + ",\n   ".join(json.dumps(k, separators=(",", ":")) for k in entry["keys"]) + "]"]
        texts = []
        for name, generations in entry["classes"].items():
            inner = []
            for generation, tree in generations.items():
                if isinstance(tree, str):
                    inner.append(f'"{generation}": "{tree}"')
                    continue
                head = json.dumps({k: v for k, v in tree.items() if k != "modules"}, separators=(",", ":"))[:-1]
                rows = ",\n    ".join(json.dumps(r, separators=(",", ":")) for r in tree["modules"])
                inner.append(f'"{generation}": {head},"modules":[\n    {rows}]}}')
            texts.append(f'   "{name}": {{' + ",\n   ".join(inner) + "}")
        parts.append('  "classes": {\n' + ",\n".join(texts) + "}")
        here = {c: b for c, b in bodies.get(model_type, {}).items() if b[0] in entry["classes"]}
        if here:
            parts.append('  "bodies": ' + json.dumps(here, separators=(",", ":")))
        lines.append(f' "{model_type}": {{\n' + ",\n".join(parts) + "}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    json.loads(text)
    (ROOT / "data/module_trees.json").write_text(text)
    print(f"{len(table)} types, {sum(len(e['classes']) for e in table.values())} classes, {len(text)} bytes")
    for name, left in (("v5", left5), ("v4", left4)):
        for key, why in left.items():
            print(f"left out {name} {key}: {why}")


if __name__ == "__main__":
    main()
