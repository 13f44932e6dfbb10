#!/usr/bin/env python3
"""Every field of LoraConfig, its base classes too, with its default, in each PEFT version: tests/config/lora_config_fields.json.

    tools/real_peft/lora_config_fields.py [--wheels DIR] [VERSION...]

Downloads the wheels (pip download --no-deps) and reads the classes' source, so that neither torch nor an import of PEFT
is needed. A test compares the list with the table in src/config/peft_keys.cpp: a field of a new PEFT is added there or
the test fails. Without versions: those of the list below. Fields with the default "..." have one that is not a literal.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSIONS = ["0.17.0", "0.17.1", "0.18.0", "0.18.1", "0.19.0", "0.19.1", "0.20.0", "0.21.0", "0.21.1", "0.21.2"]
# Where the dataclasses are, from the innermost base class to LoraConfig.
CLASSES = [("peft/config.py", "PeftConfigMixin"), ("peft/config.py", "PeftConfig"),
           ("peft/tuners/lora/config.py", "LoraConfig")]
OUT = Path(__file__).resolve().parents[2] / "tests" / "config" / "lora_config_fields.json"
NO_LITERAL = "..."


def literal(node):
    """The value of an expression; factories are called where they are plain types."""
    if isinstance(node, ast.Name) and node.id in ("dict", "list"):
        return {"dict": {}, "list": []}[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return NO_LITERAL


def default_of(node):
    if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "field"):
        return literal(node)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    return literal(given.get("default", given.get("default_factory", ast.Name(NO_LITERAL))))


def fields_of(source, class_name):
    """Annotated assignments in the body of a dataclass are its fields."""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == class_name]
    assert len(found) == 1, f"{len(found)} classes called {class_name}"
    return {node.target.id: default_of(node.value) for node in found[0].body
            if isinstance(node, ast.AnnAssign) and node.value is not None}


def fields_of_wheel(wheel):
    fields = {}
    with zipfile.ZipFile(wheel) as archive:
        for path, class_name in CLASSES:
            fields.update(fields_of(archive.read(path).decode(), class_name))
    return dict(sorted(fields.items()))


def wheel_of(version, folder):
    pattern = f"peft-{version}-*.whl"
    if not list(folder.glob(pattern)):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"peft=={version}"],
                       check=True)
    return next(folder.glob(pattern))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder to keep the wheels in")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.wheels or Path(temporary)
        versions = {version: fields_of_wheel(wheel_of(version, folder)) for version in arguments.versions}
    # One line a field keeps a change readable.
    text = json.dumps(versions, indent=1)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text + "\n")
    print(f"{OUT}: " + ", ".join(f"{version} {len(fields)}" for version, fields in versions.items()))


if __name__ == "__main__":
    main()
