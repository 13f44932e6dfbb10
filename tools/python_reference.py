#!/usr/bin/env python3
"""Writes docs/python_api.md from the docstrings of peft_cpp; the package must be importable.

    tools/python_reference.py [--check] [PAGE]     --check: exit 1 when the page is not what would be written

A public name without a docstring, or a parameter that no docstring explains, is an error.
"""
import inspect
import pathlib
import re
import sys

import peft_cpp
import peft_cpp.nn
import peft_cpp.testing

# Parameters that are explained once: "As for :func:`...`".
SECTIONS = ("Args", "Returns", "Raises")


def problems_of(name, value):
    doc = inspect.getdoc(value)
    if not doc:
        return [f"{name} has no docstring"]
    if not inspect.isfunction(value):
        return []
    explained = set()
    for names in re.findall(r"^    ((?:\*\*)?\w+(?:, (?:\*\*)?\w+)*):", doc, re.MULTILINE):
        explained |= set(names.replace("*", "").split(", "))
    missing = [parameter for parameter in inspect.signature(value).parameters if parameter not in explained]
    missing = [f"{name}: the parameter {parameter} is not explained" for parameter in missing]
    if inspect.signature(value).parameters and "Raises:" not in doc:
        missing.append(f"{name}: no errors are named")
    return missing


def signature_of(value):
    parts = []
    star = False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        text = ("**" if parameter.kind is parameter.VAR_KEYWORD else "") + parameter.name
        if parameter.default is not parameter.empty:
            text += f"={parameter.default!r}"
        parts.append(text)
    return ", ".join(parts)


def markdown(doc):
    """A docstring as Markdown: sections as bold words, entries as list items."""
    lines = []
    in_section = False
    for line in doc.split("\n"):
        line = re.sub(r":(?:func|class|mod|meth):`([^`]+)`", r"`\1`", line).replace("``", "`")
        section = line.rstrip(":")
        if line.endswith(":") and section in SECTIONS:
            in_section = True
            lines += [f"**{section}**", ""]
        elif in_section and (match := re.match(r"    ([\w*][\w*, ]*): (.*)", line)):
            lines.append(f"* `{match[1]}`: {match[2]}")
        elif not in_section:
            lines.append(line)  # indented lines are code
        else:
            lines.append(re.sub(r"^    +", "  " if line.startswith("        ") else "", line))
    return "\n".join(lines)


def fields_of(kind):
    rows = []
    for name, text in kind.__dict__.get("__annotations__", {}).items():
        if not name.startswith("_"):
            rows.append(f"* `{name}`: {getattr(text, '__forward_arg__', text)}")
    for name, value in kind.__dict__.items():
        if name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
            continue
        call = "" if isinstance(value, property) else f"({signature_of(value).replace('self, ', '').replace('self', '')})"
        rows.append(f"* `{name}{call}`: {' '.join((inspect.getdoc(value) or '').split())}")
    return rows


def page():
    problems, parts = [], []
    groups = [("Files", "files"), ("In memory", "state_dict"), ("Factors", "factors"), ("Tests", "testing"),
              ("Models that run", "nn"), ("Tables", "tables"), ("Results", "reports"), ("Errors", "errors")]
    for title, module_name in groups:
        module = __import__(f"peft_cpp.{module_name}", fromlist=["x"])
        parts += [f"## {title}", "", markdown(inspect.getdoc(module)).strip(), ""]
        for name in module.__all__:
            value = getattr(module, name)
            problems += problems_of(name, value)
            if inspect.isfunction(value):
                parts += [f"### {name}", "", f"    {name}({signature_of(value)})", "", markdown(inspect.getdoc(value)), ""]
                continue
            bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
            parts += [f"### {name}" + (f" ({bases})" if bases else ""), "", markdown(inspect.getdoc(value)), ""]
            rows = fields_of(value)
            parts += [*rows, ""] if rows else []
    known = {name for _, module in groups for name in __import__(f"peft_cpp.{module}", fromlist=["x"]).__all__}
    problems += [f"{name} is public and in no group" for name in peft_cpp.__all__
                 if name not in known | {"__version__", "nn", "testing"}]
    head = ["# Python reference", "", "Generated from the docstrings by `tools/python_reference.py`; [python.md](python.md) has recipes.", ""]
    return problems, "\n".join(head + parts).rstrip() + "\n"


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    path = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parent.parent / "docs" / "python_api.md")
    problems, text = page()
    for problem in problems:
        print(problem, file=sys.stderr)
    if "--check" not in sys.argv:
        path.write_text(text)
    elif path.read_text() != text:
        print(f"{path} is not what the docstrings say: run tools/python_reference.py", file=sys.stderr)
        problems.append(str(path))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
