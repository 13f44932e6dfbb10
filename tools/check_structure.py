#!/usr/bin/env python3
"""Checks the structure of src/ and include/.

    tools/check_structure.py [--stages NAME,...] [ROOT]   exit 1 and one line for each problem
    tools/check_structure.py --report [ROOT]              counts only
    tools/check_structure.py --self-test

The rules
* order     a stage of src/ includes only itself and the stages before it; src/stages.txt is the order, which CMake reads too
* circle    no two units include each other, directly or by way of others; a unit is a header with its source
* pair      a source has a header of its own name beside it, or implements a public header of its stage, which several sources may do;
            a class of any other header is implemented in the source of that name
* size      a file has at most 600 lines, a function 60; a header below 30 lines has a source that makes 100 lines with it
* folder    a folder shows at most 12 files; a subfolder counts as one, tests do not count

--stages checks the rules other than `order` in these stages alone ("none": in no stage). `order` holds everywhere. The test names
all stages; what is left, as --report counts it, are the public headers.
"""
import argparse
import pathlib
import re
import statistics
import sys

MAX_LINES, MAX_FUNCTION, MIN_HEADER, MIN_UNIT, MAX_FOLDER = 600, 60, 30, 100, 12

# The first stage that may include a public header. peft.h is for users and is included by no stage.
PUBLIC = {
    "error.h": "base", "error_codes.inc": "base", "tensor.h": "base", "safetensors.h": "safetensors",
    "config.h": "config", "model.h": "model", "adapter.h": "adapter", "layout.h": "layout", "engine.h": "engines", "plan.h": "plan", "weights.h": "weights", "execute.h": "execute",
    "verbs.h": "verbs", "train/options.h": "train", "train/data.h": "train", "train/batches.h": "train", "train/metrics.h": "train", "version.h": "base", "c.h": "c_api",
    "nn/model.h": "nn", "nn/peft_model.h": "nn", "nn/optimizer.h": "nn", "nn/trainer.h": "nn", "nn/process_group.h": "nn", "nn/memory.h": "nn", "peft.h": None,
}

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
# A definition outside of its class: "Type Class<T>::method(" at the start of a line.
MEMBER = re.compile(r"^(?!return\b|using\b|template\b)[\w:][\w:<>,&* ]*?\b([A-Z]\w*)(?:<\w+>)?::(?:~?\w+|operator\S+)\([^;\n]*$|^([A-Z]\w*)::~?\w+\([^;\n]*$", re.MULTILINE)
CLASS = re.compile(r"^(?:class|struct)\s+(\w+)\s*(?:final\s*)?(?::[^;{]*)?\{", re.MULTILINE)


class Tree:
    def __init__(self, root):
        self.root = root
        self.stages = (root / "src" / "stages.txt").read_text().split()
        self.files = {}  # path relative to src/ or include/ -> text
        for top in ("src", "include"):
            for path in sorted((root / top).rglob("*")):
                if path.suffix in {".h", ".cpp", ".inc"}:
                    self.files[str(path.relative_to(root / top))] = path.read_text()
        self.sources = {name for name in self.files if not is_test(name)}

    def stage_of(self, include):
        """The stage a quoted include belongs to; None for headers of tests and other libraries."""
        folder, _, rest = include.partition("/")
        if folder == "peft":
            return PUBLIC.get(rest, "unknown") or "for users only"
        return folder if folder in self.stages else None

    def unit_of(self, name):
        """A header and its source. A public header stands alone: it declares what several sources share."""
        return name if name.startswith("peft/") else re.sub(r"(-inl)?\.(h|cpp|inc)$", "", name)

    def public_headers(self, name):
        """The public headers that a source without a header of its own may implement: those of its stage that it includes."""
        if str(pathlib.PurePath(name).with_suffix(".h")) in self.sources:
            return set()
        stage = name.partition("/")[0]
        return {pathlib.PurePath(include).stem for include in INCLUDE.findall(self.files[name])
                if include.startswith("peft/") and self.stage_of(include) == stage}

    def lines(self, name):
        return self.files[name].count("\n")


def is_test(name):
    return name.endswith("_test.cpp")


def order_problems(tree):
    for name in sorted(tree.files):
        if name.startswith("peft/"):
            stage = tree.stage_of(name)
            if stage == "for users only":
                continue
        else:
            stage = name.partition("/")[0]
        if stage not in tree.stages:
            yield f"order: {name}: belongs to no stage of src/stages.txt"
            continue
        for include in INCLUDE.findall(tree.files[name]):
            other = tree.stage_of(include)
            if other in ("unknown", "for users only"):
                yield f'order: {name}: "{include}" is not a header that a stage may include'
            elif other is not None and tree.stages.index(other) > tree.stages.index(stage):
                yield f'order: {name}: "{include}" belongs to {other}, which comes after {stage}'


def circle_problems(tree, names):
    graph = {}
    for name in names:
        unit = tree.unit_of(name)
        graph.setdefault(unit, set())
        for include in INCLUDE.findall(tree.files[name]):
            if include in tree.sources and tree.unit_of(include) != unit:
                graph[unit].add(tree.unit_of(include))
    # Depth-first search; a unit that is met while it is still open closes a circle.
    state, path = {}, []

    def visit(unit):
        state[unit] = "open"
        path.append(unit)
        for other in sorted(graph.get(unit, ())):
            if state.get(other) == "open":
                yield "circle: " + " -> ".join(path[path.index(other):] + [other])
            elif other not in state:
                yield from visit(other)
        path.pop()
        state[unit] = "done"

    for unit in sorted(graph):
        if unit not in state:
            yield from visit(unit)


def pair_problems(tree, names):
    home = {}  # class -> units that declare it
    for name in tree.sources:
        if name.endswith(".h"):
            for cls in CLASS.findall(tree.files[name]):
                home.setdefault(cls, set()).add(tree.unit_of(name) if not name.startswith("peft/") else pathlib.PurePath(name).stem)
    for name in names:
        if not name.endswith(".cpp"):
            continue
        path = pathlib.PurePath(name)
        if str(path.with_suffix(".h")) not in tree.sources and not tree.public_headers(name) and path.stem != "main":
            yield f"pair: {name}: no header of its name"
        own = set(CLASS.findall(tree.files[name]))
        for cls in sorted({a or b for a, b in MEMBER.findall(tree.files[name])} - own):
            if cls in home and not home[cls] & ({tree.unit_of(name), path.stem} | tree.public_headers(name)):
                yield f"pair: {name}: implements {cls}, which is declared in {' and '.join(sorted(home[cls]))}"


def functions(text):
    """(name, lines) of the function bodies of formatted code: from a line that ends with ") {" or the like to its brace."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        match = re.match(r"^(\s*)\S.*(\)|const|override|noexcept|>|\w) \{$", line)
        if not match or line.lstrip().startswith(":") or re.match(r"^\s*(namespace|class|struct|enum|union|extern|if|for|while|switch|do|else|try|}|//|case)\b", line) or line.strip().startswith("}"):
            continue
        end = next((k for k in range(i + 1, len(lines)) if lines[k].startswith(match.group(1) + "}")), None)
        if end is not None and "(" in "".join(lines[max(0, i - 6):i + 1]):
            yield line.strip(), end - i + 1


def size_problems(tree, names):
    for name in names:
        if name.endswith(".inc"):
            continue
        count = tree.lines(name)
        if count > MAX_LINES:
            yield f"size: {name}: {count} lines, at most {MAX_LINES}"
        source = name[:-2] + ".cpp"
        unit = count + (tree.lines(source) if source in tree.sources else 0)
        if name.endswith(".h") and count < MIN_HEADER and unit < MIN_UNIT:
            yield f"size: {name}: a header of {count} lines, {unit} with its source: a fragment of its neighbour"
        for head, length in functions(tree.files[name]):
            if length > MAX_FUNCTION:
                yield f"size: {name}: a function of {length} lines, at most {MAX_FUNCTION}: {head}"


def folder_problems(tree, names):
    shown = {}
    for name in names:
        parts = pathlib.PurePath(name).parts
        for depth in range(1, len(parts)):
            shown.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    for folder, entries in sorted(shown.items()):
        if len(entries) > MAX_FOLDER:
            yield f"folder: {folder} shows {len(entries)} files and folders, at most {MAX_FOLDER}"


def problems_of(tree, stages):
    names = sorted(n for n in tree.sources if stages is None or n.partition("/")[0] in stages)
    yield from order_problems(tree)
    for rule in (circle_problems, pair_problems, size_problems, folder_problems):
        yield from rule(tree, names)


def report(tree):
    counts = sorted(tree.lines(n) for n in tree.sources)
    found = list(problems_of(tree, None))
    print(f"source files outside tests   {len(counts)}")
    print(f"median lines                 {statistics.median(counts):g}")
    print(f"lines                        {sum(counts)}")
    print(f"files below {MIN_HEADER} lines         {sum(c < MIN_HEADER for c in counts)}")
    for rule in ("order", "circle", "pair", "size", "folder"):
        print(f"problems of rule {rule:<11} {sum(p.startswith(rule + ':') for p in found)}")


def self_test():
    assert list(functions("void f() {\n" + "  x;\n" * 70 + "}\n"))[0][1] == 72
    text = "void Cutter::run() {\nstd::int64_t Tiles<T>::take_rows(int x) {\n  Foo::bar();\nA::A() : x_(1) {}\n"
    assert [a or b for a, b in MEMBER.findall(text)] == ["Cutter", "Tiles", "A"]
    assert CLASS.findall("class A {\nstruct B : C {\nclass D;\n") == ["A", "B"]

    class Fake(Tree):
        def __init__(self, files):
            self.files, self.sources, self.stages = files, set(files), ["base", "plan"]

    def found(rule, files):
        tree = Fake(files)
        return list(rule(tree) if rule is order_problems else rule(tree, sorted(files)))

    assert found(order_problems, {"base/x.cpp": '#include "base/x.h"\n#include <vector>\n', "base/x.h": ""}) == []
    assert len(found(order_problems, {"base/x.cpp": '  #  include "plan/y.h"\n'})) == 1
    assert len(found(order_problems, {"plan/x.cpp": '#include "peft/peft.h"\n'})) == 1
    assert len(found(circle_problems, {"base/a.h": '#include "base/b.h"\n', "base/b.cpp": '#include "base/a.h"\n', "base/b.h": ""})) == 1
    assert found(circle_problems, {"base/a.h": '#include "base/b.h"\n', "base/b.cpp": '#include "base/b.h"\n', "base/b.h": ""}) == []
    assert len(found(pair_problems, {"base/a.cpp": ""})) == 1
    assert len(found(pair_problems, {"base/a.h": "class A {\n", "base/b.h": "", "base/b.cpp": "void A::f() {\n"})) == 1
    assert len(found(size_problems, {"base/a.h": "\n" * 29})) == 1
    assert len(found(folder_problems, {f"base/{i}.h": "" for i in range(13)})) == 1
    assert found(folder_problems, {f"base/{i % 3}/{i}.h": "" for i in range(13)}) == []
    print("self-test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--stages", type=lambda text: text.split(","))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    tree = Tree(options.root.resolve())
    if options.report:
        return report(tree)
    problems = list(problems_of(tree, options.stages))
    print("\n".join(problems) if problems else f"{len(tree.sources)} files: no problem")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
