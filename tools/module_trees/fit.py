#!/usr/bin/env python3
"""Rows of data/module_trees.json, read off the real classes.

    /path/to/venv5/bin/python tools/module_trees/fit.py --part /tmp/v5 [TYPE ...]
    /path/to/venv4/bin/python tools/module_trees/fit.py --part /tmp/v4 [TYPE ...]
    python3 tools/module_trees/join.py /tmp/v5 /tmp/v4

A class is built from a small config and from many that differ from it in one key. The formulas of shapes come from Symbols; in which
layers a module is, and under which keys, is the simplest condition over the config that holds in all of them. Some more configs, with
several keys changed at once, are not used for that: they must come out right.
"""
import argparse
import itertools
import json
import random
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import models
from models import PretrainedConfig, ROOT, Symbol, build, classes_of, find_small, make_config, modules_of, plain

torch = models.torch
NAME = re.compile(r"(?<![\w.'])[A-Za-z_][\w.]*")
QUOTED_OR_NAME = re.compile(r"'[^']*'|[A-Za-z_][\w.]*|[\d.]+")
# Keys that shape no module.
NO_SHAPE = re.compile(r"token|position|window|seed|version|dropout|_eps|epsilon|theta|factor|range|_coef|alpha|beta|scale|cache|"
                      r"pad_|bos_|eos_|chunk_size|_act$|activation|time_step|^output_|problem_type|topk_group|n_group$|loss|jitter|"
                      r"pretraining|num_logits|capacity|temperature|image_size|sampling|fps|max_|min_|initializer|clamp|limit")

# Keys that numbers of layers are compared with.
LAYER_KEY = re.compile(r"layer|dense|sparse|moe|attn|attention|interval|period|offset|freq|step|idx|index|pattern|shared|skip|every|first|"
                       r"start|end|stack|block|global|cross")
OPTIONAL_KEY = re.compile(r"rank|shared|lora|latent|expert|per_layer|compress|index")
SIZE_KEY = re.compile(r"head|dim|size|rank|experts$|groups?$|channels|hidden|width")


class Names(dict):
    """Values by path; what is below a part that is not there is None."""
    def __missing__(self, key):
        raise KeyError(key)


FUNCTIONS = {"int", "ceil", "max", "min", "len", "round"}


def compiled(text):
    words = {"and", "or", "not", "in", "None", "True", "False", "if", "else"} | FUNCTIONS

    def name(match):
        word = match[0]
        return word if word in words or word[0] in "'0123456789." else f"V[{word!r}]"
    code = compile(QUOTED_OR_NAME.sub(name, text), text, "eval")
    import math
    scope = {"ceil": math.ceil, "__builtins__": {"int": int, "max": max, "min": min, "len": len, "round": round}}

    def run(values):
        try:
            return eval(code, scope, {"V": values})
        except (KeyError, TypeError, IndexError, ZeroDivisionError):
            return None
    return run


def read(section, key):
    try:
        return getattr(section, key, None)
    except Exception:  # a key that differs by layer: the config's own
        return section.__dict__.get(key)


def section_of(config, path):
    for part in path.split(".")[:-1]:
        config = getattr(config, part)
    return config


# ---- observations ----------------------------------------------------------------------------------------------------

class Seen:
    """One model that was built: the values of its config, and its modules as templates with numbers."""

    def __init__(self, class_name, schema, point):
        self.point = point
        config = make_config(schema, point)
        self.derived = {}
        for part in schema.all():
            section = section_of(config, part.path) if part.path else config
            self.resymbolise(part, section)
        self.values = Names()
        for part in schema.all():
            section = section_of(config, part.path) if part.path else config
            for key in [*part.fields, *[k[len(part.path):] for k in point if k.startswith(part.path)]]:
                if key not in part.children and "." not in key:
                    value = read(section, key)
                    stated = point.get(part.path + key)  # a class may change it, as bailing_hybrid does with head_dim
                    self.values[part.path + key] = plain(stated if value is None or type(stated) is int and stated >= 0 else value)
        model = build(class_name, config)
        self.input, self.output = models.embedding_names(model)
        lists = {n for n, m in model.named_modules() if isinstance(m, (torch.nn.ModuleList, torch.nn.ModuleDict))}
        self.rows, self.counts = [], defaultdict(dict)
        for name in lists:
            children = [int(k) for k in model.get_submodule(name)._modules if k.isdigit()]
            if children or not model.get_submodule(name)._modules:
                template, numbers = self.template(name, lists)
                self.counts[template][numbers] = max(children, default=-1) + 1
        for name, class_of, kind, shapes, formulas in modules_of(model):
            template, numbers = self.template(name, lists)
            if any(0 in shape for shape in shapes.values()):
                raise ValueError("a weight without elements tells no formula")
            parameters = tuple((n, tuple(shapes[n]), tuple(f) if f else None) for n, f in formulas.items())
            self.rows.append((template, numbers, class_of, kind, parameters))

    def resymbolise(self, part, section):
        """What the class computed for a key that was left out counts as that key; how it came about is kept."""
        for key, default in part.fields.items():
            path = part.path + key
            value = read(section, key)
            automatic = self.point.get(path) == "auto" and isinstance(value, int)
            if path in self.point and self.point[path] is not None and not automatic or key in part.children:
                continue
            if isinstance(value, int) and not isinstance(value, bool):
                self.derived[path] = (getattr(value, "text", None), plain(value))
                new = Symbol(int.__add__(value, 0), path)
            elif isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, str)) for v in value):
                self.derived[path] = (None, plain(list(value)))
                new = [v if isinstance(v, (bool, str)) else Symbol(int.__add__(v, 0), f"{path}[{i}]") for i, v in enumerate(value)]
            else:
                continue
            try:
                setattr(section, key, new)
            except Exception:
                section.__dict__[key] = new

    @staticmethod
    def template(name, lists):
        parts, numbers = name.split("."), []
        for at, part in enumerate(parts):
            if part.isdigit() and ".".join(name.split(".")[:at]) in lists:
                numbers.append(int(part))
                parts[at] = "{" + "ijk"[len(numbers) - 1] + "}"
        return ".".join(parts), tuple(numbers)


def variants(schema, base):
    """Points that differ from the base in one key."""
    for part in schema.all():
        for key, default in part.fields.items():
            path = part.path + key
            if key in part.children or NO_SHAPE.search(key) or key == "is_encoder_decoder":
                continue
            value = base.get(path)
            computed = part.computed.get(key)
            for new in other_values(key, value, computed, part, base):
                if new != value or type(new) is not type(value):
                    yield path, new


def other_values(key, value, computed, part, base):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        # Sizes are known by their Symbols; whether a part is there at all depends on 0 and None.
        if SIZE_KEY.search(key) and not OPTIONAL_KEY.search(key):
            return [value + 2] if re.search(r"^(hidden_size|vocab_size|intermediate_size|head_dim|num_attention_heads)$", key) else []
        return [0, 3, 1, value + 2] if LAYER_KEY.search(key) else [0, None]
    if isinstance(value, list) and value and not isinstance(value[0], (list, dict)):
        kinds = list(dict.fromkeys(value))
        new = [value[::-1], value[1:] + value[:1]] + [[k] * len(value) for k in kinds[:4]]
        if len(value) < 4 and all(type(v) is int for v in value):
            new = [[v + 2 for v in value], []]
        return new
    if value == []:
        return [[1, 4], [0, 2, 3]]
    if value is None:
        return guesses(key, computed, part, base)
    if value == "auto":
        return [14, 16]
    if isinstance(value, str):
        return [None]
    return []


def layer_count(part, point_values=None):
    values = point_values or {}
    return next((values.get(part.path + k, v) for k, v in models.LAYERS.items() if k in part.fields), 12)


def guesses(key, computed, part, base):
    count = layer_count(part, base)
    if isinstance(computed, bool):
        return [True, False]
    if isinstance(computed, int):
        return [models.TINY.get(key, 14), models.TINY.get(key, 14) + 2]
    if isinstance(computed, list) and computed and all(isinstance(v, (str, int)) for v in computed):
        kinds = models.cycled(models.KINDS.get((part.model_type, key), computed), count)
        rng = random.Random(key)
        mixed = [kinds[:] for _ in range(3)]
        for m in mixed:
            rng.shuffle(m)
        return [kinds, *mixed, *[[k] * count for k in dict.fromkeys(kinds)]]
    if re.search(r"layers$|idx|indexes|indices", key):
        return [[1, 4], 3, [0, 2, 3]]
    if re.match(r"use_|is_|enable|has_|with_|tie_", key):
        return [True, False]
    return [models.TINY.get(key, 14), *([] if SIZE_KEY.search(key) else [True, "default"])]


def observe(class_name, schema, base):
    training = []
    training.append(Seen(class_name, schema, base))
    good = []
    for path, value in variants(schema, base):
        point = dict(base)
        point[path] = value
        try:
            training.append(Seen(class_name, schema, point))
            good.append((path, value))
        except Exception:
            continue
    training += [s for s in pairs(class_name, schema, base) if shape_of(s) not in {shape_of(t) for t in training}]
    some = mixed(class_name, schema, base, good, seed=7)
    return training + some[::4], [s for at, s in enumerate(some) if at % 4], good


def shape_of(seen):
    return hash(tuple(seen.rows))


def pairs(class_name, schema, base):
    """A switch that matters, together with each key that is not set."""
    plain_shape = shape_of(Seen(class_name, schema, base))
    switches, unset = [], []
    for path, value in variants(schema, base):
        if isinstance(base.get(path), bool):
            try:
                if shape_of(Seen(class_name, schema, base | {path: value})) == plain_shape:
                    continue
            except Exception:
                pass
            switches.append((path, value))
        elif base.get(path) is None and type(value) is int and path not in [p for p, _ in unset]:
            unset.append((path, value))
    lists = [(path, value) for path, value in variants(schema, base) if isinstance(value, list) and len(value) > 4]
    for switch, other in itertools.product(switches[:6], unset[:10]):
        for more in [[], *[[x] for x in lists[1:2]]]:
            try:
                yield Seen(class_name, schema, base | dict([switch, other, *more]))
            except Exception:
                break


def mixed(class_name, schema, base, good, seed):
    """Several keys at once."""
    rng, result = random.Random(seed), []
    for _ in range(14):
        point = dict(base)
        for path, value in rng.sample(good, min(len(good), 4)):
            point[path] = value
        try:
            result.append(Seen(class_name, schema, point))
        except Exception:
            continue
    return result


# ---- conditions ------------------------------------------------------------------------------------------------------

def popcount(x):
    return bin(x).count("1")


class Conditions:
    """Finds the simplest condition over config and numbers that is true exactly where it shall be."""

    def __init__(self, seen, loops):
        self.points = []  # (values with i, j, k)
        for s, numbers in loops:
            values = Names(s.values)
            for letter, n in zip("ijk", numbers):
                values[letter] = n
            self.points.append(values)
        self.all = (1 << len(self.points)) - 1
        self.atoms = {}
        self.depth = len(loops[0][1]) if loops else 0

    def add(self, text, cost):
        run = compiled(text)
        mask = 0
        for at, values in enumerate(self.points):
            if run(values) is True:
                mask |= 1 << at
        if mask in (0, self.all):
            return
        old = self.atoms.get(mask)
        if old is None or (cost, len(text), text) < old[:3]:
            self.atoms[mask] = (cost, len(text), text)

    def make_atoms(self, extra):
        changing = {}
        for path in {k for v in self.points for k in v}:
            found = []
            for v in self.points:
                x = v.get(path)
                if x not in found or type(x) not in [type(f) for f in found]:
                    found.append(x)
            if len(found) > 1 or path in "ijk" or isinstance(found[0], list) or type(found[0]) is int and LAYER_KEY.search(path):
                changing[path] = found
        letters = "ijk"[:self.depth]
        for path, found in changing.items():
            if path in ("i", "j", "k"):
                for c in (0, 1, 2):
                    self.add(f"{path} == {c}", 3)
                self.add(f"{path} > 0", 3)
                for c in range(2, 9):
                    self.add(f"({path} + 1) % {c} == 0", 3)
                    self.add(f"({path} + 1) % {c} != 0", 3)
                    self.add(f"{path} % {c} == 0", 3)
                continue
            if NO_SHAPE.search(path.rsplit(".", 1)[-1]):
                continue
            self.about(path, found, letters)
        base = self.points[0]
        for one, found in changing.items():  # a projection between two widths (opt)
            if len(found) < 2 or not re.search(r"_dim$", one):
                continue
            for other in base:
                if other != one and re.search(r"hidden_size$", other) and type(base[other]) is int and base[other] == base.get(one):
                    self.add(f"{one} != {other}", 3)
        for text in extra:
            self.add(text, 1)

    def about(self, path, found, letters):
        lists = [v for v in found if isinstance(v, list)]
        ints = [v for v in found if type(v) is int]
        if None in found and len(found) > 1:
            self.add(f"{path} == None", 1)
            self.add(f"{path} != None", 1)
        if any(isinstance(v, bool) for v in found):
            self.add(f"{path} == True", 1)
            self.add(f"{path} == False", 1)
            self.add(f"{path} != True", 2)
        for v in found:
            if isinstance(v, str) and re.fullmatch(r"[\w-]+", v):
                self.add(f"{path} == '{v}'", 2)
                self.add(f"{path} != '{v}'", 2)
        if ints:
            self.add(f"{path} > 0", 1)
            self.add(f"{path} == 0", 2)
            self.add(f"{path} > 1", 2)
            about_layers = LAYER_KEY.search(path.rsplit(".", 1)[-1]) and not SIZE_KEY.search(path.rsplit(".", 1)[-1])
            for a in letters if about_layers else "":
                self.add(f"{a} >= {path}", 1)
                self.add(f"{a} < {path}", 1)
                self.add(f"({a} + 1) % {path} == 0", 1)
                self.add(f"({a} + 1) % {path} != 0", 1)
                self.add(f"{a} % {path} == 0", 1)
                self.add(f"{a} % {path} != 0", 1)
                self.add(f"{a} % {path} == 1", 2)
                if path.endswith("period"):
                    offset = path[:-6] + "offset"
                    self.add(f"{a} % {path} == {offset}", 1)
                    self.add(f"{a} % {path} != {offset}", 1)
                for n in ("num_hidden_layers", "num_layers"):
                    prefix = path.rpartition(".")[0]
                    total = f"{prefix}.{n}" if prefix else n
                    self.add(f"{a} >= {total} - {path}", 1)
                    self.add(f"{a} < {total} - {path}", 1)
                    self.add(f"{a} == {total} - 1", 2)
        for v in lists:
            for a in letters:
                if v and all(type(x) is int for x in v) or not v:
                    self.add(f"{a} in {path}", 1)
                    self.add(f"{a} not in {path}", 1)
                kinds = {x if not isinstance(x, str) else f"'{x}'" for x in v if isinstance(x, (int, str))}
                if len(kinds) <= 8:
                    for kind in kinds:
                        self.add(f"{path}[{a}] == {kind}", 1)
                        self.add(f"{path}[{a}] != {kind}", 2)
                if v and all(type(x) is int for x in v):
                    self.add(f"{path}[{a}] > 0", 1)

    def find(self, target):
        self.mask_of = {c[2]: m for m, c in self.atoms.items()}
        return self.search(target)

    def search(self, target, inverse=False):
        """A list of alternatives; [] where it is always so; None where none is found."""
        if target == self.all:
            return []
        if target in self.atoms:
            return [self.atoms[target][2]]
        ranked = sorted(((c, m) for m, c in self.atoms.items()), key=lambda x: x[0])
        above = [(c, m) for c, m in ranked if m & target == target]
        both = self.pair(above, target)
        if both:
            return [both]
        below = [(c, m) for c, m in ranked if m & ~target == 0]
        either = self.either(below, target)
        if either:
            return either
        found = self.within(above, ranked, target)
        if not inverse and (not found or len(found) > 1):
            other = self.search(self.all & ~target, inverse=True)
            if other and len(other) == 1 and (not found or len(other[0]) < len(" or ".join(found))):
                return [f"not ({other[0]})"]
        return found or (None if inverse else self.alternatives(ranked, target))

    def pair(self, above, target):
        best = None
        for (c1, m1), (c2, m2) in itertools.combinations(above[:300], 2):
            if m1 & m2 == target and (best is None or (c1[0] + c2[0], c1[1] + c2[1]) < best[0]):
                best = (c1[0] + c2[0], c1[1] + c2[1]), f"{c1[2]} and {c2[2]}"
        return best and best[1]

    def either(self, below, target):
        best = None
        for (c1, m1), (c2, m2) in itertools.combinations(below[:300], 2):
            if m1 | m2 == target and (best is None or (c1[0] + c2[0], c1[1] + c2[1]) < best[0]):
                best = (c1[0] + c2[0], c1[1] + c2[1]), [c1[2], c2[2]]
        return best and best[1]

    def within(self, above, ranked, target):
        """A conjunction; where it is true elsewhere too, each of a few alternatives is added to it."""
        mask, parts = self.all, []
        while mask != target:
            best = min(above, key=lambda a: (popcount(mask & a[1] & ~target), a[0]), default=None)
            if best is None or mask & best[1] == mask:
                break
            mask &= best[1]
            parts.append(best[0][2])
        for at in range(len(parts)):  # a rarer condition may have been taken where a simpler one does
            rest = self.all
            for other in range(len(parts)):
                if other != at:
                    rest &= self.mask_of[parts[other]]
            simple = min((c for c, m in above if m & rest == mask), default=None)
            if simple:
                parts[at] = simple[2]
        context = " and ".join(parts)
        if mask == target:
            return [context]
        inside = {}
        for c, m in ranked:
            m &= mask
            if m and m & ~target == 0 and (m not in inside or c < inside[m]):
                inside[m] = c
        pieces = [(c, m) for m, c in inside.items()]
        for count in (2, 3):
            for chosen in itertools.combinations(sorted(pieces)[:120 if count == 2 else 40], count):
                union = 0
                for _, m in chosen:
                    union |= m
                if union == target:
                    return [f"{context} and {c[2]}" if context else c[2] for c, _ in chosen]
        return None

    def alternatives(self, ranked, target):
        """A greedy cover by single atoms and pairs that are true nowhere else."""
        pieces = [(c[:2], m, c[2]) for c, m in ranked if m & ~target == 0]
        some = [(c, m) for c, m in ranked if m & target][:160]
        for (c1, m1), (c2, m2) in itertools.combinations(some, 2):
            m = m1 & m2
            if m and m & ~target == 0:
                pieces.append(((c1[0] + c2[0], c1[1] + c2[1]), m, f"{c1[2]} and {c2[2]}"))
        left, texts = target, []
        while left and len(texts) < 4:
            best = max(pieces, key=lambda p: (popcount(p[1] & left), -p[0][0], -p[0][1]), default=None)
            if best is None or not best[1] & left:
                return None
            left &= ~best[1]
            texts.append(best[2])
        return texts if not left else None


# ---- from observations to rows ---------------------------------------------------------------------------------------

def shifted(formula, numbers, letters="ijk"):
    """'sizes[3]' of number 3 -> 'sizes[i]'."""
    def index(match):
        k = int(match[1])
        for letter, n in zip(letters, numbers):
            if k == n:
                return f"[{letter}]"
        for letter, n in zip(letters, numbers):
            if k == n + 1:
                return f"[{letter} + 1]"
            if k == n - 1:
                return f"[{letter} - 1]"
        return match[0]
    return re.sub(r"\[(\d+)\]", index, formula)


class Fit:
    def __init__(self, training, extra_conditions=()):
        self.training = training
        self.extra = list(extra_conditions)
        self.problems = []
        self.cache = {}
        self.loops = self.fit_loops()

    # -- how many

    def fit_loops(self):
        loops = {}
        templates = {t for s in self.training for t in s.counts}
        for template in sorted(templates, key=lambda t: (t.count("{"), t)):
            wanted = [(s, numbers, count) for s in self.training for numbers, count in s.counts.get(template, {}).items()]
            formula = self.count_formula(wanted)
            if formula is None:
                self.problems.append(f"count of {template}: {sorted({c for _, _, c in wanted})}")
                formula = str(max(c for _, _, c in wanted))
            loops[template] = formula
        return loops

    def count_formula(self, wanted):
        if len({c for _, _, c in wanted}) == 1:
            constant = str(wanted[0][2])
        else:
            constant = None
        points = []
        for s, numbers, count in wanted:
            values = Names(s.values)
            values.update(zip("ijk", numbers))
            points.append((values, count))
        paths = sorted(points[0][0], key=lambda p: (len(p), p))
        ints = [p for p in paths if p not in "ijk" and not NO_SHAPE.search(p.rsplit(".", 1)[-1]) and type(points[0][0][p]) is int]
        lists = [p for p in paths if isinstance(points[0][0][p], list)]
        layer_like = [p for p in ints if re.search(r"layer|depth|expert|num_|n_|block|stage", p)]

        def candidates():
            yield from layer_like
            yield from ints
            for p in lists:
                yield f"len({p})"
                for letter in "ijk"[:len(wanted[0][1])]:
                    yield f"{p}[{letter}]"
            for p in layer_like:
                yield f"{p} - 1"
                yield f"{p} + 1"
            for p in lists:
                yield f"len({p}) - 1"
            for a, b in itertools.combinations(layer_like, 2) if not constant else ():
                yield f"{a} + {b}"
                yield f"{a} - {b}"
                yield f"{b} - {a}"
                yield f"{a} * {b}"
                yield f"{a} // {b}"
                yield f"{b} // {a}"
        names = {p: [v.get(p) for v, _ in points] for p in ints + lists}
        for text in candidates():
            run = compiled(text)
            if all(run(v) == c for v, c in points):
                # A constant that a key has by chance in all of them.
                if constant and not any(len(set(map(str, names[p]))) > 1 for p in names if re.search(rf"(?<![\w.]){re.escape(p)}(?![\w.])", text)):
                    if not re.search(r"layers|depth|experts", text):
                        continue
                return text
        return constant

    def places(self, template):
        """Every (observation, numbers) that a template can stand at."""
        containers, at = [], 0
        for letter in "ijk":
            mark = "{" + letter + "}"
            if mark not in template:
                break
            containers.append(template[:template.index(mark) - 1])
        for s in self.training:
            yield from ((s, numbers) for numbers in self.numbers(s.values, containers))

    def numbers(self, values, containers):
        return numbers_of(values, containers, self.loops)

    # -- which, and how large

    def fit_rows(self):
        found = defaultdict(dict)
        for s in self.training:
            for template, numbers, class_of, kind, parameters in s.rows:
                found[template, class_of, kind][(id(s), numbers)] = parameters
        rows = []
        for key in self.in_order():
            rows.extend(self.rows_of(key, found[key]))
        return rows

    def in_order(self):
        """Rows in registration order: what one layer has of them gives their order among each other."""
        result, sequences = [], []
        for s in self.training:
            items = defaultdict(list)
            for template, numbers, class_of, kind, _ in s.rows:
                head = template.partition("{")[0] if numbers else ""
                key = (template, class_of, kind)
                if key not in items[head, numbers[:1]]:
                    items[head, numbers[:1]].append(key)
                if numbers and (not items["", ()] or items["", ()][-1] != head):
                    items["", ()].append(head)
            sequences += [items.pop(("", ()))] + [i for _, i in sorted(items.items(), key=lambda x: -len(x[1]))]
        for sequence in sequences:
            previous = None
            for key in sequence:
                if key not in result:
                    result.insert(result.index(previous) + 1 if previous is not None else 0, key)
                previous = key
        heads = {k for k in result if isinstance(k, str)}
        inside = defaultdict(list)
        for key in result:
            if not isinstance(key, str) and "{" in key[0]:
                inside[key[0].partition("{")[0]].append(key)
        flat = []
        for key in result:
            if isinstance(key, str):
                flat += inside.pop(key, [])
            elif "{" not in key[0]:
                flat.append(key)
        return flat

    def rows_of(self, key, found):
        template, class_of, kind = key
        places = list(self.places(template))
        by_id = {id(s): s for s in self.training}
        known = {(id(s), numbers) for s, numbers in places}
        if any(place not in known for place in found):
            self.problems.append(f"{template}: stands outside of its counts")
        groups = defaultdict(set)
        for (sid, numbers), parameters in found.items():
            dims = []
            for name, shape, formulas in parameters:
                texts = []
                for at, size in enumerate(shape):
                    text = formulas[at] if formulas else None
                    if text is None or "?" in text:
                        text = "?"
                    texts.append(shifted(text, numbers) if "{" in template else text)
                dims.append((name, tuple(texts)))
            groups[tuple(dims)].add((sid, numbers))
        groups = self.fill_unknown(groups, found, by_id)
        groups = self.merge(groups, found, by_id)
        rows = []
        for dims, where in groups.items():
            condition = self.condition(template, places, where)
            if condition is None:
                self.problems.append(f"{template} {class_of} {dict(dims)}: no condition found ({len(where)} of {len(places)})")
                continue
            rows.append([template, class_of, kind, {n: list(d) for n, d in dims}, condition])
        return rows

    def value(self, text, sid, numbers, by_id):
        values = Names(by_id[sid].values)
        values.update(zip("ijk", numbers))
        return compiled_once(text)(values)

    def holds(self, dims, place, found, by_id):
        sid, numbers = place
        shapes = {n: s for n, s, _ in found[place]}
        return set(shapes) == {n for n, _ in dims} and all(
            len(shapes[n]) == len(texts) and all(self.value(t, sid, numbers, by_id) == size for t, size in zip(texts, shapes[n]))
            for n, texts in dims)

    def merge(self, groups, found, by_id):
        """Formulas that also hold where another was found make one row of both."""
        result = {}
        for dims, where in sorted(groups.items(), key=lambda g: (-len(g[1]), sum(len(t) for _, ts in g[0] for t in ts))):
            for other in result:
                if all(self.holds(other, place, found, by_id) for place in where):
                    result[other] |= where
                    break
            else:
                bad = [p for p in where if not self.holds(dims, p, found, by_id)]
                if bad:
                    self.problems.append(f"formulas do not hold: {dims} {found[bad[0]]}")
                result[dims] = set(where)
        return result

    def fill_unknown(self, groups, found, by_id):
        """A dimension that was not made of Symbols: a formula seen elsewhere, a key, or a number."""
        result = defaultdict(set)
        for dims, where in groups.items():
            if not any("?" in texts for _, texts in dims):
                result[dims] |= where
                continue
            filled = []
            for n, (name, texts) in enumerate(dims):
                new = []
                for at, text in enumerate(texts):
                    if text == "?":
                        text = self.guess(where, lambda place: {p[0]: p[1] for p in found[place]}[name][at], by_id) or "?"
                    new.append(text)
                filled.append((name, tuple(new)))
            result[tuple(filled)] |= where
        return result

    def guess(self, where, size, by_id):
        wanted = [(sid, numbers, size((sid, numbers))) for sid, numbers in where]
        if not hasattr(self, "known_formulas"):
            texts = {}
            for s in self.training[:1] + self.training[-3:]:
                for _, _, _, _, parameters in s.rows:
                    for _, _, formulas in parameters:
                        for f in formulas or ():
                            if not re.search(r"\[\d", f):
                                texts[f] = None
            self.known_formulas = sorted(texts, key=lambda t: (len(NAME.findall(t)), len(t)))
            some = self.training[0].values
            self.known_formulas += [p for p, v in some.items() if type(v) is int and v > 0]
            short = [t for t in self.known_formulas if len(NAME.findall(t)) == 1 and not re.search(r"vision|audio", t)][:40]
            self.products = [f"({a}) {op} ({b})" for a, b in itertools.permutations(short, 2) for op in ("*", "//", "+", "-") if op in "//-" or a < b]
        sizes = {w[2] for w in wanted}
        if len(sizes) == 1:
            constant = str(sizes.pop())
        else:
            constant = None
        letters = [f"{p}[i]" for p, v in self.training[0].values.items() if isinstance(v, list)] if wanted[0][1] else []
        for text in (self.known_formulas + letters):
            if text.isdigit():
                continue
            if all(self.value(text, sid, numbers, by_id) == c for sid, numbers, c in wanted):
                if constant and len(wanted) < 3:
                    continue
                return text
        if constant:
            return constant
        for text in self.products:
            if all(self.value(text, sid, numbers, by_id) == c for sid, numbers, c in wanted):
                return text
        return None

    def condition(self, template, places, where):
        containers = tuple(template[:m.start() - 1] for m in re.finditer(r"\{[ijk]\}", template))
        target = 0
        for at, (s, numbers) in enumerate(places):
            if (id(s), numbers) in where:
                target |= 1 << at
        if containers not in self.cache:
            finder = Conditions(self.training, places)
            finder.make_atoms(self.extra)
            self.cache[containers] = (finder, {})
        finder, known = self.cache[containers]
        if target not in known:
            known[target] = finder.find(target)
        return known[target]


_compiled = {}


def compiled_once(text):
    if text not in _compiled:
        _compiled[text] = (lambda values: None) if "?" in text else compiled(text)
    return _compiled[text]


def numbers_of(values, containers, loops):
    result = [()]
    for container in containers:
        longer = []
        for numbers in result:
            env = Names(values)
            env.update(zip("ijk", numbers))
            count = compiled_once(loops[container])(env)
            longer += [numbers + (n,) for n in range(count if isinstance(count, int) else 0)]
        result = longer
    return result


def predicted(tree, values):
    """{name: (class, kind, {parameter: shape})} by the rows."""
    result = {}
    for template, class_of, kind, dims, condition in tree["modules"]:
        containers = [template[:m.start() - 1] for m in re.finditer(r"\{[ijk]\}", template)]
        for numbers in numbers_of(values, containers, tree["loops"]):
            env = Names(values)
            env.update(zip("ijk", numbers))
            if condition and not any(compiled_once(c)(env) is True for c in condition):
                continue
            name = template
            for letter, n in zip("ijk", numbers):
                name = name.replace("{" + letter + "}", str(n))
            result[name] = (class_of, kind, {n: [compiled_once(t)(env) for t in texts] for n, texts in dims.items()})
    return result


def real(s):
    result = {}
    for template, numbers, class_of, kind, parameters in s.rows:
        name = template
        for letter, n in zip("ijk", numbers):
            name = name.replace("{" + letter + "}", str(n))
        result[name] = (class_of, kind, {n: list(shape) for n, shape, _ in parameters})
    return result


def fit_derived(schema, training, extra):
    """What the class computes for keys that are left out: {path: formula} and {path: {value: condition}}."""
    scalars, lists = defaultdict(set), {}
    problems = []
    for path in sorted({p for s in training for p in s.derived}):
        cases = [s for s in training if path in s.derived]
        if isinstance(cases[0].derived[path][1], list):
            entry = fit_list(path, cases, extra)
            if entry is None:
                problems.append(f"derived {path}")
            else:
                lists[path] = entry
            continue
        for s in cases:
            scalars[path].add(s.derived[path][0])
        for text in sorted(scalars[path], key=str):
            if text is not None and all(compiled_once(text)(s.values) == s.derived[path][1] for s in cases):
                lists[path] = text
                break
        else:
            values = {s.derived[path][1] for s in cases}
            if len(values) == 1:
                lists[path] = values.pop()
            else:
                problems.append(f"derived {path}: {scalars[path]} {sorted(values)[:5]}")
    return lists, problems


def fit_list(path, cases, extra):
    loops = {}
    fit = Fit.__new__(Fit)
    wanted = [(s, (), len(s.derived[path][1])) for s in cases]
    for s in cases:  # the list itself says nothing about the list
        s.values = Names({k: v for k, v in s.values.items() if k != path} | {"": None})
        s.values.pop("")
    length = fit.count_formula(wanted)
    places = [(s, (i,)) for s in cases for i in range(len(s.derived[path][1]))]
    result = None
    values = {v for s in cases for v in s.derived[path][1]}
    if length is not None and (len(values) <= 2 or all(isinstance(v, str) for v in values)):  # not a list of numbers of layers
        finder = Conditions(cases, places)
        finder.make_atoms(extra)
        kinds = list(dict.fromkeys(v for s in cases for v in s.derived[path][1]))
        alternatives = []
        for kind in kinds:
            target = 0
            for at, (s, (i,)) in enumerate(places):
                if s.derived[path][1][i] == kind:
                    target |= 1 << at
            alternatives.append([kind, finder.find(target)])
        if all(a is not None for _, a in alternatives):
            result = {"length": length, "values": alternatives}
        elif sum(a is None for _, a in alternatives) == 1:  # whatever is left
            alternatives.sort(key=lambda a: a[1] is None)
            result = {"length": length, "values": [[k, a or []] for k, a in alternatives]}
    for s in cases:
        s.values[path] = s.derived[path][1]
    return result


def used_paths(tree, derived):
    texts = list(tree["loops"].values())
    for _, _, _, dims, condition in tree["modules"]:
        texts += [t for d in dims.values() for t in d] + (condition or [])
    for value in derived.values():
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            texts += [value["length"]] + [c for _, cs in value["values"] for c in cs]
    return {n for t in texts for n in NAME.findall(re.sub(r"'[^']*'", "", t))} - {"and", "or", "in", "not", "None", "True", "False", "i", "j", "k"} - FUNCTIONS


def facts_of(schema, used, derived):
    """What keys are when they are left out, as the whole config has them, and their other names."""
    defaults, aliases = {}, {}
    for part in schema.all():
        for alias, key in (getattr(part.type, "attribute_map", None) or {}).items():
            for one, other in ((alias, key), (key, alias)):  # a file may have either
                if part.path + one in used:
                    aliases.setdefault(part.path + one, []).append(part.path + other)
        names = {key: key for key in part.fields} | {a: k for a, k in (getattr(part.type, "attribute_map", None) or {}).items()}
        for name, key in names.items():
            stated = part.fields.get(key)
            value = read(part.config, key)
            value = stated if value is None else value
            if stated is None and value == []:
                stated = value
            if part.path + name in used and part.path + name not in derived and stated is not None and stated != "auto":
                if isinstance(value, (bool, int, str, list, tuple, float)):
                    defaults[part.path + name] = plain(list(value) if isinstance(value, tuple) else value)
    return defaults, aliases


def fit_class(model_type, class_name, rules):
    schema, base, level = find_small(model_type, class_name)
    training, held_out, good = observe(class_name, schema, base)
    for attempt in range(3):
        derived, problems = fit_derived(schema, training, rules)
        fit = Fit(training, rules)
        tree = {"input": training[0].input, "output": training[0].output, "loops": fit.loops, "modules": fit.fit_rows()}
        surprises = [s for s in held_out if predicted(tree, s.values) != real(s)]
        if not surprises:
            break
        training = training + surprises[:6]  # what they teach must hold for others
        held_out = mixed(class_name, schema, base, good, seed=attempt + 8)
    wrong = []
    for s in training + held_out:
        ours, theirs = predicted(tree, s.values), real(s)
        if ours != theirs:
            names = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
            changed = {k: v for k, v in s.point.items() if base.get(k, "-") != v}
            wrong.append((s in held_out, changed, sorted(names)[:2], [(ours.get(n), theirs.get(n)) for n in sorted(names)[:1]]))
    used = used_paths(tree, derived)
    defaults, aliases = facts_of(schema, used, derived)
    derived = {k: v for k, v in derived.items() if k in used}
    return {"tree": tree, "defaults": defaults, "aliases": aliases, "derived": derived, "level": level,
            "problems": fit.problems + [p for p in problems if p.split()[1].rstrip(":") in used],
            "observations": len(training), "held_out": len(held_out), "wrong": wrong}


def rules_of(model_type):
    rules = set()
    families = json.loads((ROOT / "data/families.json").read_text())["families"]
    for generation in ("v4", "v5"):
        for row in (families.get(model_type, {}).get(generation) or {}).get("experts", []):
            prefix = row.get("config", "")
            for rule in row.get("moe_layers", []):
                if rule != "all":
                    def name(m):
                        return m[0] if m[0] in ("and", "or", "in", "not", "i", "None") else f"{prefix}.{m[0]}" if prefix else m[0]
                    text = re.sub(r"'[^']*'|(?<![\w.'])[A-Za-z_][\w.]*", lambda m: m[0] if m[0][0] == "'" else name(m), rule)
                    rules.add(text)
    return sorted(rules)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", type=Path, required=True)
    parser.add_argument("types", nargs="*")
    options = parser.parse_args()
    options.part.mkdir(parents=True, exist_ok=True)
    types = options.types or models.all_types()
    for model_type in types:
        if model_type not in models.CONFIG_MAPPING_NAMES:
            continue
        for class_name in classes_of(model_type):
            start = time.time()
            try:
                result = fit_class(model_type, class_name, rules_of(model_type))
            except Exception as error:
                print(f"{model_type} {class_name} FAILED {type(error).__name__}: {str(error)[:500]}", flush=True)
                continue
            (options.part / f"{model_type}.{class_name}.json").write_text(json.dumps(result, default=str))
            print(f"{model_type} {class_name}: {len(result['tree']['modules'])} rows, {result['observations']} + {result['held_out']} "
                  f"configs, {len(result['wrong'])} wrong, {len(result['problems'])} problems, {time.time() - start:.1f}s", flush=True)
            for problem in result["problems"][:6]:
                print("   ", str(problem)[:300])
            for wrong in result["wrong"][:3]:
                print("    wrong:", str(wrong)[:600])


if __name__ == "__main__":
    sys.exit(main())
