#!/usr/bin/env python3.11
"""Random patterns: does peft.cpp answer as Python's `re` does?

    python3.11 tools/regex_differential.py build/release/golden_test [--patterns 20000] [--seed 1]

Writes rows in the form of golden/regex/python_re.jsonl and lets the test program check them.
Patterns are drawn from a grammar, then some are damaged, so that both meaning and errors are compared.
"""
import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import warnings

ATOMS = ["a", "b", "c", "_", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\.", "é", "K", "ı", "ſ", "😀", r"\x61", r"\u00e9", r"\101", r"\0", r"\n",
         r"\b", r"\B", "^", "$", r"\A", r"\Z", "[ab]", "[^a]", r"[\w.]", r"[^\d_]", "[a-c]", "[]a]", "[^]]", "[a-]", r"[\s\S]", "[k-ſ]", r"[^\W]", "proj", "q_proj"]
QUANTIFIERS = ["*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}", "{0}", "{,}", "*?", "+?", "??", "{1,2}?", "*+", "++", "?+", "{1,2}+", "{x}", "{1", "{}"]
GROUPS = ["(", "(", "(", "(?:", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?s:", "(?m:", "(?a:", "(?-i:", "(?i-s:", "(?x:", "(?P<n>", "(?P<m>"]
REFERENCES = [r"\1", r"\2", "(?P=n)", "(?(1)a|b)", "(?(n)a)", "(?(2)b)", "(?#c)"]
PREFIXES = ["", "", "", "", "", "(?i)", "(?s)", "(?m)", "(?a)", "(?x)", "(?ia)", "(?ims)"]
DAMAGE = list("()[]{}*+?|^$\\-&~,.:<>=!P#10n ") + ["(?", "(?P", "(?<", "[[", "--", "&&", "\\N{BULLET}", "\\N{X}", "(?L)", "(?-", "(?ix-", "\\x", "\\u12", "\\U0011", "\\8", "\\k", "(?P<1>"]
TEXTS = "abc_.1 \n" + "aaabbb" + "éKkſı😀Sa"


def piece(rng, depth):
    roll = rng.random()
    if depth > 0 and roll < 0.3:
        inner = "|".join(sequence(rng, depth - 1) for _ in range(rng.choice([1, 1, 2, 3])))
        text = rng.choice(GROUPS) + inner + ")"
    elif roll < 0.36:
        text = rng.choice(REFERENCES)
    else:
        text = rng.choice(ATOMS)
    return text + (rng.choice(QUANTIFIERS) if rng.random() < 0.25 else "")


def sequence(rng, depth):
    return "".join(piece(rng, depth) for _ in range(rng.randint(0, 3)))


def pattern(rng):
    text = rng.choice(PREFIXES) + "|".join(sequence(rng, 3) for _ in range(rng.choice([1, 1, 1, 2])))
    if rng.random() < 0.25:
        for _ in range(rng.randint(1, 2)):
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(DAMAGE) + text[at + rng.randint(0, 1):]
    return text


def subject(rng):
    return "".join(rng.choice(TEXTS) for _ in range(rng.randint(0, 8)))


def row(p, s):
    result = {"p": p, "s": s}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        re.purge()
        try:
            compiled = re.compile(p)
        except re.error as error:
            result["error"] = {"class": "re.error", "message": error.msg, "pos": error.pos, "text": str(error)}
        except OverflowError as error:
            result["error"] = {"class": "OverflowError", "text": str(error)}
    if caught:
        result["warnings"] = [[w.category.__name__, str(w.message)] for w in caught]
    if "error" in result:
        return result
    for how in ("fullmatch", "match", "search"):
        found = getattr(compiled, how)(s)
        result[how] = None if found is None else [
            None if found.span(i) == (-1, -1) else list(found.span(i)) for i in range(compiled.groups + 1)]
    if compiled.groupindex:
        result["names"] = dict(compiled.groupindex)
    return result


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("test_program")
    options.add_argument("--patterns", type=int, default=20000)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as root:
        rows = pathlib.Path(root, "regex", "python_re.jsonl")
        rows.parent.mkdir()
        with open(rows, "w") as file:
            for _ in range(given.patterns):
                p = pattern(rng)
                for _ in range(3):
                    file.write(json.dumps(row(p, subject(rng))) + "\n")
        done = subprocess.run([given.test_program, "regex"], env={**os.environ, "PEFT_GOLDEN": root},
                              capture_output=True, text=True)
    print(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
