#!/usr/bin/env python3
"""Makes docs/benchmarks.md, and its charts, from bench/claims.json and bench/results/*.json.

    bench/report.py            writes the page and docs/benchmarks_CLAIM.svg
    bench/report.py --check    exit code 1 where they are not what it would write

A claim of claims.json: {"claim", "title", "text", "ratio": what the ratio is, "better": "higher" | "lower",
"goals": {row: number}, "command", "chart": true where a chart is drawn}.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Every row was measured side by side in one run: ours, and what it is compared with. Trust the ratios, not the times. No timing decides a test.
`bench/record.py COMMAND` measures rows again and keeps them in `bench/results`; `make bench-report` makes this page from them.
What was learnt on the way is in [notes/performance.md](notes/performance.md).
"""


def number(value):
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def with_unit(row, field):
    """"0.381 s"; "" where only the ratio is known."""
    return "" if row[field] is None else f"{number(row[field])} {row['unit']}"


def reached(claim, row):
    """True, False, or None where the row has no goal."""
    goal = claim["goals"].get(row["what"])
    if goal is None:
        return None
    return row["ratio"] >= goal if claim["better"] == "higher" else row["ratio"] <= goal


def ordered(claim, rows):
    """Rows with goals first, in the order of claims.json; the others follow by name."""
    order = list(claim["goals"])
    return sorted(rows, key=lambda row: (order.index(row["what"]) if row["what"] in order else len(order), row["what"]))


def table(claim, rows, machines):
    sign = "≥" if claim["better"] == "higher" else "≤"
    lines = ["| what | against | ours | theirs | ratio | goal | measured |", "|---|---|---:|---:|---:|---:|---|"]
    for row in ordered(claim, rows):
        goal = claim["goals"].get(row["what"])
        if row["machine"] not in machines:
            machines.append(row["machine"])
        letter = "ABCDEFGHIJ"[machines.index(row["machine"])]
        ratio = f"**{number(row['ratio'])}**" if reached(claim, row) is False else number(row["ratio"])
        lines.append(f"| {row['what']} | {row['against']} | {with_unit(row, 'ours')} | {with_unit(row, 'theirs')} | {ratio} | "
                     f"{'' if goal is None else f'{sign} {number(goal)}'} | {row['date']}, {row['commit']}, {letter} |")
    return lines


def chart(claim, rows):
    """Bars of the ratios, on a scale of powers where they span a factor of more than twenty; a mark at each goal."""
    import math
    rows = ordered(claim, rows)
    values = [row["ratio"] for row in rows] + list(claim["goals"].values())
    wide = max(values) / min(values) > 20
    scale = (lambda v: math.log10(v / (min(values) / 2))) if wide else (lambda v: v)
    width, left, step = 760, 320, 24
    top = max(scale(v) for v in values) * 1.12
    height = 50 + step * len(rows)
    x = lambda v: left + (width - left - 60) * scale(v) / top
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             f'<text x="10" y="20" font-weight="bold">{claim["title"]}: {claim["ratio"]}{" (log scale)" if wide else ""}</text>']
    for at, row in enumerate(rows):
        y = 36 + step * at
        color = "#d1242f" if reached(claim, row) is False else "#1f6feb"
        name = row["what"].replace("&", "&amp;").replace("<", "&lt;")
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{name}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{max(1, x(row["ratio"]) - left):.1f}" height="16" fill="{color}"/>')
        parts.append(f'<text x="{x(row["ratio"]) + 6:.1f}" y="{y + 13}">{number(row["ratio"])}</text>')
        goal = claim["goals"].get(row["what"])
        if goal is not None:
            parts.append(f'<path d="M{x(goal):.1f} {y - 2}v20" stroke="black" stroke-width="2"/>')
    return "\n".join(parts + [f'<text x="{left}" y="{height - 4}" fill="#57606a">black mark: goal; red: not reached</text>', "</svg>"]) + "\n"


def make():
    """-> {path: text} of the page and its charts."""
    files, machines, page = {}, [], [HEAD]
    for claim in json.loads((ROOT / "bench" / "claims.json").read_text()):
        path = ROOT / "bench" / "results" / f"{claim['claim']}.json"
        rows = json.loads(path.read_text()) if path.exists() else []
        page += [f"## {claim['title']}", "", claim["text"], "", f"Ratio: {claim['ratio']}."]
        # What gave the rows; where there are none, what would.
        commands = sorted({f"bench/record.py {row['command']}" for row in rows}) or [claim["command"]]
        page += ["Run: " + "; ".join(f"`{command}`" for command in commands), ""]
        if not rows:
            page += ["Not measured yet.", ""]
            continue
        if claim.get("chart"):
            picture = PAGE.parent / f"benchmarks_{claim['claim']}.svg"
            files[picture] = chart(claim, rows)
            page += [f"![{claim['title']}]({picture.name})", ""]
        page += table(claim, rows, machines) + [""]
        missed = [row["what"] for row in ordered(claim, rows) if reached(claim, row) is False]
        if missed:
            page += ["Goals that are not reached (bold): " + "; ".join(missed) + ".", ""]
    page += ["## Machines", ""] + [f"- {'ABCDEFGHIJ'[at]}: {name}" for at, name in enumerate(machines)]
    files[PAGE] = "\n".join(page) + "\n"
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = 0
    for path, text in make().items():
        if options.check:
            if not path.exists() or path.read_text() != text:
                print(f"{path.relative_to(ROOT)} is stale: make bench-report")
                stale = 1
        else:
            path.write_text(text)
    sys.exit(stale)


if __name__ == "__main__":
    main()
