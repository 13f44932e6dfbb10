#!/usr/bin/env python3
"""Classes whose body is that of a class in data/module_trees.json: other heads, and models without one.

    build/venvs/new/bin/python tools/module_trees/bodies.py /tmp/bodies5.json
    build/venvs/old/bin/python tools/module_trees/bodies.py /tmp/bodies4.json

{type: {class: [class of the table, prefix of its body, prefix here]}}, null where no body is equal: LlamaForQuestionAnswering has under "transformer." what
LlamaForCausalLM has under "model.". Both are built at small sizes; names, classes and shapes of the bodies have to be equal.
"""
import json
import sys
from pathlib import Path

import models
from models import ROOT, build, find_small, make_config, modeling_auto, modules_of, transformers


def other_classes(model_type, known):
    names = set()
    for key, mapping in vars(modeling_auto).items():
        if key.startswith("MODEL_") and key.endswith("_MAPPING_NAMES"):
            found = mapping.get(model_type)
            names |= {found} if isinstance(found, str) else set(found or ())
    config_class = models.config_class_of(model_type)
    return sorted(n for n in names - set(known) if hasattr(transformers, n) and getattr(transformers, n).config_class is config_class)


def bodies_in(class_name, schema, point):
    """{prefix: the modules below it, without the prefix}: what may be the body."""
    model = build(class_name, make_config(schema, point, with_symbols=False))
    modules = [(name, *rest[:3]) for name, *rest in modules_of(model)]
    attributes = [p for p in (model.base_model_prefix, "model") if p and hasattr(model, p)]
    prefixes = [p + "." for p in attributes] + ([] if class_name_has_head(class_name) else [""])
    return {p: sorted((name[len(p):], *rest) for name, *rest in modules if name.startswith(p)) for p in prefixes}


def class_name_has_head(class_name):
    return "For" in class_name or "Head" in class_name


def same_body(references, own):
    for reference, bodies in references.items():
        for prefix, modules in bodies.items():
            for own_prefix, own_modules in own.items():
                if modules and modules == own_modules:
                    return [reference, prefix, own_prefix]
    return None


def bodies_of(model_type, known):
    """None for a class that has no such body."""
    others, references = other_classes(model_type, known), {}
    if not others or not known:
        return {}
    try:
        schema, point, _ = find_small(model_type, known[0])
        for reference in known:
            references[reference] = bodies_in(reference, schema, point)
    except Exception as error:
        print(f"{model_type}: {type(error).__name__} {str(error)[:100]}", flush=True)
        return dict.fromkeys(others)
    result = {}
    for class_name in others:
        try:
            result[class_name] = same_body(references, bodies_in(class_name, schema, point))
        except Exception as error:
            result[class_name] = None
            print(f"{model_type} {class_name}: {type(error).__name__} {str(error)[:100]}", flush=True)
            continue
        if result[class_name] is None:
            print(f"{model_type} {class_name}: no body of {', '.join(known)}", flush=True)
    return result


def main():
    table = json.loads((ROOT / "data/module_trees.json").read_text())
    generation = "v5" if models.V5 else "v4"
    found = {}
    for model_type, entry in table.items():
        known = [name for name, trees in entry["classes"].items() if generation in trees and hasattr(transformers, name)]
        if model_type in models.CONFIG_MAPPING_NAMES:
            found[model_type] = bodies_of(model_type, known)
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
