"""Draws the storeys of the house from the contract that holds them: ``python docs/storeys.py`` writes the picture.

A test compares the file with what is drawn here, so that the picture cannot go stale.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "guide" / "storeys.svg"
WIDTH, HEIGHT, GAP, LEFT = 820, 34, 8, 20
#: What stands on a storey, for those who look at the picture alone.
WORDS = {
    "cli": "parses, calls, prints",
    "auditing": "families of networks whose truth is known",
    "study": "plans, cells, judge, rows",
    "training": "penalty, fit, recipes",
    "report": "the page and its plots",
    "plot": "figures for papers, from rows",
    "files": "modules, graphs, runs, formats",
    "verifiers": "the registry, one file a verifier",
    "lipsdp": "the matrix inequality, its proof and its solvers",
    "propagation": "bounds on balls",
    "rescaling": "factors of channels",
    "search": "lower bounds",
    "robustness": "radii",
    "constants": "each node's constant, the trivial bound",
    "problem": "Question, Problem, Bound, Task, Verifier",
    "frontend": "modules and programs become Graphs",
    "lowering": "dense, relu, chain",
    "rigor": "proved norms, running errors",
    "graph": "nodes, rules, fold",
    "layers": "modules",
    "activations": "functions and facts",
    "norms": "operator norms",
    "data": "datasets",
}


def storeys() -> list[list[str]]:
    """The folders and ground files of the core, top storey first, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "storeys")
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def adapters() -> list[str]:
    """The folders of the adapters."""
    folder = ROOT / "adapters" / "lipbridge_adapters"
    return sorted(path.parent.name for path in folder.glob("*/__init__.py"))


def drawing() -> str:
    """The SVG: one bar a storey, adapters beside, which may use all of the core and none of each other."""
    rows = storeys()
    height = (HEIGHT + GAP) * len(rows) + 2 * LEFT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 240} {height}" font-family="sans-serif" '
        'font-size="13" role="img">',
        "<title>The storeys of lipbridge: each folder imports only what stands below it</title>",
        f'<rect width="{WIDTH + 240}" height="{height}" fill="#ffffff"/>',
    ]
    for place, names in enumerate(rows):
        y = LEFT + place * (HEIGHT + GAP)
        wide = (WIDTH - 2 * LEFT - GAP * (len(names) - 1)) / len(names)
        for column, name in enumerate(names):
            x = LEFT + column * (wide + GAP)
            parts += _box(x, y, wide, name, WORDS.get(name, ""), "#e8eef7")
    for place, name in enumerate(adapters()):
        y = LEFT + place * (HEIGHT + GAP)
        parts += _box(WIDTH + 10, y, 200, f"adapters/{name}", "", "#f7efe2")
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _box(x: float, y: float, wide: float, name: str, words: str, colour: str) -> list[str]:
    fits = words and len(name) + len(words) < wide / 8.6
    text = f'<tspan font-weight="bold">{escape(name)}</tspan>' + (f" — {escape(words)}" if fits else "")
    return [
        f'<rect x="{x:.0f}" y="{y}" width="{wide:.0f}" height="{HEIGHT}" rx="4" fill="{colour}" stroke="#7a8aa0"/>',
        f'<text x="{x + wide / 2:.0f}" y="{y + 22}" text-anchor="middle" fill="#1b2430">{text}</text>',
    ]


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
