"""lipsdp-fast against cvxpy + SCS to the same quality, in one run: `python -m benchmarks.lipsdp_fast [--large]`.

Random ReLU networks (torch's initialisation, seed 0), input 10, output 5. SCS runs at falling tolerances until its
proved bound is within 0.1 % of the bound found here; that run's time is the one compared. "above" is the gap to
the optimum that our own dual bound measures.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import torch
from torch import nn

import lipbridge
from lipbridge.verifiers import Budget, get_verifier
from lipbridge.verifiers.lmi import closed_form_bound

NETWORKS = {"2 x 50": [50] * 2, "4 x 50": [50] * 4, "2 x 200": [200] * 2, "4 x 100": [100] * 4}
LARGE = {
    "784-256-256-10": [784, 256, 256, 10],
    "10-16x256-5": [10, *[256] * 16, 5],
    "784-4x1024-10": [784, *[1024] * 4, 10],
}
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
QUALITY = 1.001


def network(widths: list[int]) -> lipbridge.Graph:
    """A random ReLU chain."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return lipbridge.capture(nn.Sequential(*layers[:-1]))


def small() -> None:
    ours, theirs = get_verifier("lipsdp-fast"), get_verifier("lipsdp")
    print("| network | closed form | lipsdp-fast | above | s | SCS to the same quality | eps | s | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, hidden in NETWORKS.items():
        graph = network([10, *hidden, 5])
        problem = lipbridge.Problem(graph)
        ours.bound(lipbridge.Problem(network([4, 4, 4, 2])), Budget())  # imports and first calls are not timed
        found = ours.bound(problem, Budget())
        for eps in TOLERANCES:
            reference = theirs.bound(problem, Budget(seconds=300, options={"eps": eps}))
            if reference.value <= found.value * QUALITY or reference.status != "ok":
                break
        print(
            f"| {name} | {closed_form_bound(graph).value:.5f} | {found.value:.5f} | {found.extra['gap']:.2%} "
            f"| {found.seconds:.2f} | {reference.value:.5f} ({reference.status}) | {eps:g} | {reference.seconds:.1f} "
            f"| {reference.seconds / found.seconds:.0f} |",
            flush=True,
        )


def large() -> None:
    print("\n| network | closed form | lipsdp-fast | above | s | status |\n|---|---|---|---|---|---|")
    for name, widths in LARGE.items():
        graph = network(widths)
        found = get_verifier("lipsdp-fast").bound(lipbridge.Problem(graph), Budget(seconds=110, memory=4 * 2**30))
        gap = found.extra.get("gap")
        print(
            f"| {name} | {closed_form_bound(graph).value:.5f} | {found.value:.5f} "
            f"| {f'{gap:.2%}' if isinstance(gap, float) else 'not known'} | {found.seconds:.1f} | {found.status} |",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    small()
    if "--large" in sys.argv:
        large()
