"""eclipse-nn 0.1.7 beside lipsdp-fast and eclipse-fast on 21 networks, the same weights, one run.

    python -m venv /tmp/eclipse && /tmp/eclipse/bin/pip install torch==2.13.0 eclipse-nn==0.1.7
    python -m benchmarks.eclipse_nn --peer-python /tmp/eclipse/bin/python

eclipse-nn (PyPI, MIT) lives in an environment of its own, and each network in a process of its own
(:mod:`benchmarks.eclipse_nn_peer`). It takes the slopes of every activation but the sigmoid to be in [0, 1], whatever
the activation is, so that it is unsound where they are not: its value is compared with our witness, and a value below
it is marked `unsound`. Where the witness does not contradict it, a value for other slopes than the network has is
marked so: it is no bound of the network. A bound of ours above any other value by more than 1e-6 is marked `ABOVE`.

Times are of one call on one thread, after the imports; only their ratio within a run means anything.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lipbridge
from lipbridge.data import load_dataset
from lipbridge.lowering.chain import as_chain
from lipbridge.machine import machine_facts
from lipbridge.verifiers import Budget, get_verifier

PEER = Path(__file__).with_name("eclipse_nn_peer.py")
METHODS = ("ECLipsE_Fast", "ECLipsE")
#: How far above a sound value of the peer ours may be: the peer's own value is not proved, and is rounded.
ROOM = 1e-6

#: Name -> (widths, activation, dataset to train on or None, seed).
NETWORKS: dict[str, tuple[list[int], str, str | None, int]] = {
    "random 10-20-5": ([10, 20, 5], "relu", None, 0),
    "random 10-50-50-5": ([10, 50, 50, 5], "relu", None, 0),
    "random 10-50-50-5 (b)": ([10, 50, 50, 5], "relu", None, 1),
    "random 10-4x30-5": ([10, 30, 30, 30, 30, 5], "relu", None, 0),
    "random 10-8x20-5": ([10, *[20] * 8, 5], "relu", None, 0),
    "random 20-100-100-10": ([20, 100, 100, 10], "relu", None, 0),
    "random 4-10-30-20-2": ([4, 10, 30, 20, 2], "relu", None, 0),
    "random 30-10-30-10": ([30, 10, 30, 10], "relu", None, 0),
    "random 10-50-50-5 tanh": ([10, 50, 50, 5], "tanh", None, 0),
    "random 10-50-50-5 leaky": ([10, 50, 50, 5], "leaky_relu", None, 0),
    "random 10-50-50-5 sigmoid": ([10, 50, 50, 5], "sigmoid", None, 0),
    "random 10-50-50-5 silu": ([10, 50, 50, 5], "silu", None, 0),
    "random 3-30-2 silu": ([3, 30, 2], "silu", None, 0),
    "random 1-20-1 abs": ([1, 20, 1], "abs", None, 0),
    "1-2-1 abs pulse, unit weights": ([1, 2, 1], "abs", None, 0),
    "iris 4-16-3": ([4, 16, 3], "relu", "iris", 0),
    "iris 4-16-16-3 tanh": ([4, 16, 16, 3], "tanh", "iris", 0),
    "digits 64-32-10": ([64, 32, 10], "relu", "digits", 0),
    "digits 64-64-64-10": ([64, 64, 64, 10], "relu", "digits", 0),
    "digits 64-5x40-10": ([64, *[40] * 5, 10], "relu", "digits", 0),
    "1-1-1 silu, unit weights": ([1, 1, 1], "silu", None, 0),
}


def network(widths: list[int], activation: str, dataset: str | None, seed: int) -> nn.Sequential:
    """The network, with torch's initialisation and, on a dataset, 60 epochs of Adam."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), lipbridge.activation_module(activation)]
    module = nn.Sequential(*layers[:-1])
    if widths[0] == 1:  # unit weights; of two units, the difference of the one and the other moved by one
        with torch.no_grad():
            for layer in module:
                if isinstance(layer, nn.Linear):
                    layer.weight.fill_(1.0)
                    layer.bias.zero_()
            if widths[1] == 2:
                module[0].bias[1], module[2].weight[0, 1] = -1.0, -1.0
    if dataset is not None:
        data = load_dataset(dataset)
        optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
        inputs, labels = data.train_inputs.float().flatten(1), data.train_labels
        for _ in range(60):
            for batch in torch.randperm(len(inputs)).split(64):
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(module(inputs[batch]), labels[batch])
                loss.backward()
                optimiser.step()
    return module.requires_grad_(False)


def peer(python: str, graph: lipbridge.Graph, activation: str, seconds: float) -> dict[str, dict[str, Any]]:
    """What eclipse-nn says, by method; methods that did not finish in time are missing."""
    weights = {f"W{index}": layer.weight.numpy() for index, layer in enumerate(as_chain(graph).layers)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        with path.open("wb") as file:
            np.savez(file, **weights)
        # -P (Python 3.11): without it this folder comes first, and `import eclipse_nn` would find this very file.
        command = [python, "-P", str(PEER), str(path), activation, *METHODS]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        try:
            said, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, errors = process.communicate()
    if not said and process.returncode > 0:
        raise SystemExit(f"eclipse-nn did not run: {errors.strip().splitlines()[-1]}")
    rows = [json.loads(line) for line in said.splitlines()]
    return {row["method"]: row for row in rows}


def verdict(row: dict[str, Any] | None, ours: float, witness: float, in_its_slopes: bool) -> str:
    """The peer's value in a cell, marked where it is no bound or ours is above it."""
    if row is None:
        return "no answer in time"
    value = row["value"]
    if not math.isfinite(value):
        return row["error"] or "no number"
    mark = ""
    if value < witness:
        mark = " **unsound**"
    elif not in_its_slopes:
        mark = " (of other slopes)"
    elif ours > value * (1 + ROOM):
        mark = f" **ABOVE by {ours / value - 1:.2g}**"
    return f"{value:.5f}{mark}" + (" (fell back)" if row["fell_back"] else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the interpreter of eclipse-nn's environment")
    parser.add_argument("--seconds", type=float, default=120.0, help="limit of the peer on each network")
    parser.add_argument("--gap", type=float, default=1e-6, help="lipsdp-fast's distance to the optimum")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(machine_facts()))
    print("| network | witness | lipsdp-fast | eclipse-fast | ECLipsE_Fast | s / ours | ECLipsE | s / ours |")
    print("|---|---|---|---|---|---|---|---|")
    fast, closed = get_verifier("lipsdp-fast"), get_verifier("eclipse-fast")
    warm = lipbridge.capture(network([3, 3, 3], "relu", None, 0))
    fast.prepare(lipbridge.Problem(warm, lipbridge.Question.everywhere(2))).bound(
        Budget()
    )  # imports and first calls are not timed
    for name, setting in NETWORKS.items():
        graph = lipbridge.capture(network(*setting))
        problem = lipbridge.Problem(graph, lipbridge.Question.everywhere(2))
        ours, form = (
            fast.prepare(problem).bound(Budget(options={"gap": options.gap})),
            closed.prepare(problem).bound(Budget()),
        )
        witness = lipbridge.search_lower_bound(problem, seconds=10).value
        found = peer(options.peer_python, graph, setting[1], options.seconds)
        low, high = lipbridge.activation(setting[1]).slopes[0]
        cells = [name, f"{witness:.5f}", f"{ours.value:.5f}", f"{form.value:.5f}"]
        for method in METHODS:
            row = found.get(method)
            beside = form.seconds if method == "ECLipsE_Fast" else ours.seconds
            cells += [
                verdict(row, ours.value, witness, low >= 0.0 and high <= 1.0),
                "-" if row is None else f"{row['seconds'] / beside:.2g}",
            ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
