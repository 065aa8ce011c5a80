"""exact: networks of forty hidden units to the end, and trained ones at a limit: ``python -m benchmarks.exact``.

    python -m benchmarks.exact [small] [trained] [--limit 60] [--seeds 3]

``small`` (the default): torch's initialisation, ReLU and abs, l_1, l_2 and l_inf; seconds, regions and the gap.
``trained``: the recipes of Iris and digits, with and without penalty, and MNIST 784-50-10 (``$LIPBRIDGE_DATA``) the
same way; upper and lower bound at the limit beside ``lipsdp-fast`` in l_2. The first line holds the machine and its
load.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

import lipbridge
from lipbridge import Budget, Problem, Question, get_verifier
from lipbridge.data import load_dataset
from lipbridge.machine import machine_facts
from lipbridge.problem.bound import Bound
from lipbridge.training.recipes import recipe
from lipbridge.vocabulary import NORMS, Norm

SMALL = ([2, 20, 20, 2], [4, 40, 3], [8, 20, 20, 4])


class Abs(nn.Module):
    """The absolute value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Entry by entry."""
        return x.abs()


def network(widths: list[int], activation: str, seed: int) -> lipbridge.Graph:
    """A random chain."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU() if activation == "relu" else Abs()]
    return lipbridge.capture(nn.Sequential(*layers[:-1]))


def trained() -> Iterator[tuple[str, lipbridge.Graph]]:
    """Networks by name, bound-trained and plain."""
    for name, widths in (("iris", None), ("digits", None), ("mnist", (50,))):
        data = load_dataset(name)
        for penalty in (None, 0.0):
            known = recipe(data, 2)
            config = known.config if penalty is None else replace(known.config, penalty=penalty)
            config = replace(config, epochs=10) if name == "mnist" else config
            chosen = replace(known, config=config) if widths is None else replace(known, config=config, widths=widths)
            module = lipbridge.fit(chosen.build(data), data, chosen.config).module
            label = "plain" if penalty == 0.0 else "bound-trained"
            yield f"{name} {label}", lipbridge.capture(module)


def solved(graph: lipbridge.Graph, norm: Norm, limit: float, verifier: str = "exact") -> Bound:
    """The bound everywhere."""
    return get_verifier(verifier).prepare(Problem(graph, Question.everywhere(norm))).bound(Budget(seconds=limit))


def told(name: str, norm: Norm, bound: Bound) -> None:
    """A line of the table."""
    facts = bound.extra
    print(
        f"{name:32} l{norm!s:4} {bound.side.value:6} {bound.value:.9g} >= {facts['lower']:.9g}  gap {facts['gap']:.1e}"
        f"  {bound.seconds:7.1f} s  {facts['regions']} regions, {facts['infeasible']} empty, "
        f"{facts['unproved']} unproved",
        flush=True,
    )


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["small"], choices=["small", "trained"])
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(machine_facts())
    if "small" in options.parts:
        for widths in SMALL:
            for activation in ("relu", "abs"):
                for seed in range(options.seeds):
                    graph = network(widths, activation, seed)
                    name = f"{'-'.join(map(str, widths))} {activation} seed {seed}"
                    for norm in NORMS:
                        told(name, norm, solved(graph, norm, options.limit))
    if "trained" in options.parts:
        for name, graph in trained():
            print(f"{name:32} lipsdp-fast in l2: {solved(graph, 2, options.limit, 'lipsdp-fast').value:.9g}")
            for norm in NORMS:
                told(name, norm, solved(graph, norm, options.limit))


if __name__ == "__main__":
    main()
