"""Solvers of queries side by side: MNIST networks on l_inf balls, and Lipschitz claims of small ones as twin networks.

    python -m benchmarks.solvers mnist|twins --out FOLDER [--solver NAME ...] [--seconds 60] [--own-seconds 5]
        [--points 20] [--radii 0.02,0.05] [--threads 1] [--only bound-50-abs ...]

``mnist`` (``$LIPBRIDGE_DATA``): 784-50-10 with abs and 784-64-64-10 with relu, each trained for a small l_inf bound and
plainly, unless FOLDER has them; balls around the first test images of the radii. ``twins``: for 2-16-16-2 and 4-32-3
(relu, torch's initialisation) the claim ``|f(x) - f(y)| <= L |x - y|`` in l_inf with L 1.01 and 0.99 times the exact
constant on a ball, for pairs inside. The folders are those of ``lipbridge export --to vnncomp``; the rows, as those of
``lipbridge verify instances.csv --solver NAME``, are appended to a file ``rows.jsonl`` beside each list as they come,
and what is there is not asked again. A table is printed at the end: verdicts, seconds (start apart), what is unsound.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lipbridge
from benchmarks.plain_mlp import network
from lipbridge import Ball, Budget, Problem, Question, get_verifier
from lipbridge.cli.app import run
from lipbridge.files.queries import query_format_of
from lipbridge.files.solvers import get_solver
from lipbridge.machine import machine_facts
from lipbridge.study.verdicts import verdicts
from lipbridge.training.runs import train_run

NETWORKS = (("abs", (50,)), ("relu", (64, 64)))
#: Of the bound-trained ones.
EPOCHS = 15
#: Widths of the twins' networks.
TWINS = ((2, 16, 16, 2), (4, 32, 3))
#: Half the side of the box of x, and distances of the pairs.
BOX, NEAREST, FARTHEST = 0.1, 0.01, 0.03


def mnist(out: Path, points: int, radii: str, seconds: int, only: Sequence[str]) -> Iterator[Path]:
    """A folder of questions for each network, or of those that are named."""
    for activation, widths in NETWORKS:
        for kind in ("bound", "plain"):
            name = f"{kind}-{'-'.join(map(str, widths))}-{activation}"
            if only and name not in only:
                continue
            model, folder = out / f"{name}.run", out / name
            if kind == "plain":
                network(out, model.name, widths, activation=activation)
            elif not (model / "model.safetensors").exists():
                changes = {"widths": widths, "activation": activation, "bias": activation == "relu"}
                row = train_run("mnist", "inf", model, changes, {"epochs": EPOCHS})
                print(f"{name}: accuracy {row['accuracy']:.2%}, l_inf bound {row['bound']:.4g}", flush=True)
            if not (folder / "instances.csv").exists():
                words = ["--data", "mnist", "--points", str(points), "--radius", radii, "--timeout", str(seconds)]
                _exported(model, folder, words)
            yield folder


def twins(out: Path, seconds: int) -> Iterator[Path]:
    """A folder of questions for each network and claim."""
    for widths in TWINS:
        torch.manual_seed(0)
        layers = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU())][:-1]
        graph = lipbridge.capture(nn.Sequential(*layers))
        name = "-".join(map(str, widths))
        file = out / f"{name}.onnx"
        lipbridge.export_onnx(graph, file)
        ball = Ball(torch.zeros(1, widths[0]), BOX + FARTHEST, "inf")
        known = get_verifier("exact").prepare(Problem(graph, Question.on(ball))).bound(Budget(seconds=600))
        print(f"{name}: {known!r}", flush=True)
        for factor in (1.01, 0.99):
            folder = out / f"{name}-{factor}"
            if not (folder / "instances.csv").exists():
                words = ["--lipschitz", repr(factor * known.value), "--norm", "inf", f"--box=-{BOX},{BOX}"]
                words += ["--distance", f"{NEAREST},{FARTHEST}", "--timeout", str(seconds)]
                _exported(file, folder, words)
            yield folder


def _exported(model: Path, folder: Path, words: Sequence[str]) -> None:
    if run(["export", str(model), "--to", "vnncomp", "--out", str(folder), *words]):
        raise SystemExit(f"{folder} could not be written")


def asked(folder: Path, names: Sequence[str], seconds: int, own: int | None) -> list[dict[str, Any]]:
    """Rows of a folder, those that its file of rows has already and those that are added to it."""
    file = folder / "rows.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {row["query"] for row in rows}
    solvers = [get_solver(name) for name in names]
    kind, _ = query_format_of(folder / "instances.csv")
    for line in kind.listed(folder / "instances.csv"):
        if str(line.query) in done:
            continue
        keep = folder / "contradictions"
        network = {"": line.network}
        limits = {"seconds": seconds, "own_seconds": own}
        found = verdicts(kind, line, network, solvers=solvers, as_real=True, keep=keep, strict=False, **limits)
        with open(file, "a") as stream:
            for row in found:
                rows.append({**row.facts(), "folder": folder.name, "load": round(os.getloadavg()[0], 2)})
                stream.write(json.dumps(rows[-1]) + "\n")
    return rows


def table(rows: Sequence[dict[str, Any]], part: str) -> None:
    """A line for each folder, radius (or claim) and solver."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        about = f"radius {row['query'].rpartition('radius')[2].removesuffix('.vnnlib')}" if part == "mnist" else ""
        groups.setdefault((row["folder"], about, row["solver"]), []).append(row)
    head = (
        "network",
        "about",
        "solver",
        "unsat",
        "sat",
        "unkn.",
        "time",
        "error",
        "median s",
        "max s",
        "start s",
        "unsound",
    )
    print(" | ".join(head))
    for (folder, about, solver), group in groups.items():
        counts = [
            sum(row["result"] == name for row in group) for name in ("unsat", "sat", "unknown", "timed-out", "error")
        ]
        spent = [row["seconds"] for row in group]
        start = group[0]["startup"] or 0.0
        figures = [f"{statistics.median(spent):.2f}", f"{max(spent):.2f}", f"{start:.2f}"]
        wrong = sum(row["unsound"] for row in group)
        print(" | ".join([folder, about, solver, *map(str, counts), *figures, str(wrong)]))
    loads = sorted(row["load"] for row in rows)
    print(f"load of the machine: {loads[0]:.1f} to {loads[-1]:.1f}, median {statistics.median(loads):.1f}")
    verdicts_of: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["result"] in ("sat", "unsat"):
            verdicts_of.setdefault((row["network"], row["query"]), set()).add(row["result"])
    against = [query for query, said in verdicts_of.items() if len(said) > 1]
    print(f"{len(verdicts_of)} queries answered by somebody, {len(against)} contradictions {against or ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["mnist", "twins"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--solver", action="append", default=[])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--own-seconds", type=int, help="of ours, if not as many")
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--radii", default="0.02,0.05")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NETWORK", help="several times; all if not given"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = machine_facts(options.threads) | {"seconds": options.seconds, "solvers": options.solver}
    print(json.dumps(facts), flush=True)
    if options.part == "mnist":
        folders = list(mnist(options.out, options.points, options.radii, options.seconds, options.only))
    else:
        folders = [
            folder for folder in twins(options.out, options.seconds) if folder.name in (options.only or [folder.name])
        ]
    rows = [row for folder in folders for row in asked(folder, options.solver, options.seconds, options.own_seconds)]
    table(rows, options.part)


if __name__ == "__main__":
    main()
