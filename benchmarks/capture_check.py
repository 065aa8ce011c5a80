"""What the check of a capture costs: ``python -m benchmarks.capture_check [--against CHECKOUT]``.

Run it alone on the machine. The first table times captures with the check and without it in turn, in one process: the
check may take a fifth of the whole. With ``--against`` (a folder that holds another version of lipbridge) captures,
trivial bounds and penalised steps of both versions are timed in turn, each in fresh processes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from benchmarks.ratios import compare
from benchmarks.resnet import resnet18
from lipbridge.frontend.capture import read_module
from lipbridge.machine import machine_facts

#: The share of a capture that its check may take.
LIMIT = 0.2

#: Measures one version: seconds of a capture, a trivial bound and a penalised step, medians.
ONE_VERSION = """
import json, statistics, sys, time
sys.path.insert(0, {path!r})
import torch, lipbridge
assert lipbridge.__file__.startswith({path!r}), lipbridge.__file__
torch.set_num_threads({threads})
from torch import nn
from benchmarks.resnet import resnet18
{networks}
def median(work, runs):
    start = time.perf_counter()
    work()
    times, end = [], start + 6.0  # long work is timed at least three times
    while len(times) < 3 or (len(times) < runs and time.perf_counter() < end):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
found = {{}}
for name, (module, shape) in networks().items():
    graph = lipbridge.capture(module, shape)
    penalty = lipbridge.TrivialBoundPenalty(module, input_shape=shape)
    found[name] = [
        median(lambda: lipbridge.capture(module, shape), {runs}),
        median(lambda: lipbridge.trivial_bound(graph), {runs}),
        median(lambda: penalty().backward(), 3 * {runs}),
    ]
print(json.dumps(found))
"""


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """784-256-256-10, the small convolutional network of the recipes, and a ResNet-18; random weights."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    small = nn.Sequential(
        *(nn.Conv2d(1, 48, 5, 2, 2), nn.ReLU(), nn.Conv2d(48, 96, 5, 2, 2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(96 * 49, 256), nn.ReLU(), nn.Linear(256, 10)),
    )
    return {
        "784-256-256-10": (dense.eval(), (784,)),
        "conv-small": (small.eval(), (1, 28, 28)),
        "ResNet-18": (resnet18().eval(), (3, 32, 32)),
    }


def shares(runs: int) -> list[dict[str, object]]:
    """The check's share of each capture."""
    rows: list[dict[str, object]] = []
    for name, (module, shape) in networks().items():
        ratio = compare(
            f"capture of {name} with its check, against without",
            lambda module=module, shape=shape: read_module(module, shape),
            lambda module=module, shape=shape: read_module(module, shape, checked=False),
            runs,
        )
        share = 1.0 - 1.0 / ratio.ratio
        print(f"{ratio}; share of the check {share:.3f} (at most {LIMIT})", flush=True)
        rows.append({"network": name, "seconds": ratio.ours, "share": share, "limit": LIMIT})
    return rows


def against(folder: Path, rounds: int, runs: int, threads: int) -> list[dict[str, object]]:
    """Both versions in turn; the ratios are those of neighbouring processes."""
    here = Path(__file__).resolve().parents[1]
    pairs: list[tuple[dict[str, list[float]], dict[str, list[float]]]] = []
    for turn in range(rounds):
        made = {}
        for path in (here, folder) if turn % 2 == 0 else (folder, here):
            code = ONE_VERSION.format(path=str(path), networks=inspect.getsource(networks), threads=threads, runs=runs)
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
            made[path] = json.loads(out.stdout.strip().splitlines()[-1])
        pairs.append((made[here], made[folder]))
    rows: list[dict[str, object]] = []
    for name in networks():
        for place, what in enumerate(("capture", "trivial bound", "penalised step")):
            ours = statistics.median(pair[0][name][place] for pair in pairs)
            theirs = statistics.median(pair[1][name][place] for pair in pairs)
            ratio = statistics.median(pair[0][name][place] / pair[1][name][place] for pair in pairs)
            print(f"{name}: {what} {ours * 1e3:.2f} ms, there {theirs * 1e3:.2f} ms, ratio {ratio:.2f}", flush=True)
            rows.append({"network": name, "what": what, "ours": ours, "theirs": theirs, "ratio": ratio})
    return rows


def main() -> None:
    """Print the tables, and the facts of the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = shares(options.runs)
    if options.against is not None:
        rows += against(options.against.resolve(), options.rounds, options.runs, options.threads)
    print(json.dumps({"rows": rows, "load": os.getloadavg()[0], "machine": machine_facts()}, default=str))


if __name__ == "__main__":
    main()
