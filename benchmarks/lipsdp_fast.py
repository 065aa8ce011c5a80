"""lipsdp-fast: against cvxpy + SCS, on large and trained networks, and batched: ``python -m benchmarks.lipsdp_fast``.

    python -m benchmarks.lipsdp_fast [small] [trained] [large] [batch] [--threads 1] [--epochs 3]

``small`` (the default): random ReLU networks (torch's initialisation, seed 0), input 10, output 5. SCS runs at falling
tolerances until its proved bound is within 0.1 % of the bound found here; at that tolerance both run in turn in the
same process, and the medians are compared. "above" is the gap to the optimum that our own dual bound measures; "not
known" where descent took Newton's place. ``large`` and ``trained`` give each network a process of its own, whose peak
memory is read at its end. ``trained`` needs MNIST (``$LIPBRIDGE_DATA``). ``batch`` compares :func:`lipsdp_bounds` with
a loop of one network at a time, same steps. The first line holds the machine, its load and the threads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

import lipbridge
from benchmarks.ratios import compare
from lipbridge.data import load_dataset
from lipbridge.errors import LipbridgeError
from lipbridge.lipsdp.multipliers import closed_form_bound
from lipbridge.lipsdp.solve.batch import lipsdp_bounds
from lipbridge.machine import machine_facts
from lipbridge.training.recipes import Recipe, recipe
from lipbridge.verifiers import Budget, get_verifier

NETWORKS = {"2 x 50": [50] * 2, "4 x 50": [50] * 4, "2 x 200": [200] * 2, "4 x 100": [100] * 4}
LARGE = {
    "784-256-256-10": [784, 256, 256, 10],
    "10-16x256-5": [10, *[256] * 16, 5],
    "784-4x1024-10": [784, *[1024] * 4, 10],
}
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
QUALITY = 1.001
#: Runs of both in turn, of which the medians count; fewer where they take longer than so many seconds.
PAIRS, PAIR_SECONDS = 9, 30.0
LIMIT = Budget(seconds=110, memory=4 * 2**30)


def network(widths: list[int], seed: int = 0) -> lipbridge.Graph:
    """A random ReLU chain."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return lipbridge.capture(nn.Sequential(*layers[:-1]))


def trained(activation: str, penalty: float, epochs: int) -> tuple[lipbridge.Graph, float]:
    """784-256-256-10 after a few epochs on MNIST, and its accuracy."""
    data = load_dataset("mnist")
    config = replace(recipe(data, 2).config, epochs=epochs, penalty=penalty)
    plan = Recipe((256, 256), activation=activation, bias=activation == "relu", config=config)
    result = lipbridge.fit(plan.build(data), data, plan.config)
    return lipbridge.capture(result.module), result.accuracy


def small() -> None:
    ours, theirs = get_verifier("lipsdp-fast"), get_verifier("lipsdp")
    print("\n| network | closed form | lipsdp-fast | above | s | SCS to the same quality | eps | s | ratio | pairs |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, hidden in NETWORKS.items():
        graph = network([10, *hidden, 5])
        problem = lipbridge.Problem(graph, lipbridge.Question.everywhere(2))
        ours.prepare(lipbridge.Problem(network([4, 4, 4, 2]), lipbridge.Question.everywhere(2))).bound(
            Budget()
        )  # imports and first calls are not timed
        found = ours.prepare(problem).bound(Budget())
        for eps in TOLERANCES:
            budget = Budget(seconds=300, options={"eps": eps})
            reference = theirs.prepare(problem).bound(budget)
            if reference.value <= found.value * QUALITY or reference.status != "ok":
                break
        pairs = [(ours.prepare(problem).bound(Budget()).seconds, reference.seconds)]
        while len(pairs) < PAIRS and sum(map(sum, pairs)) < PAIR_SECONDS:
            pairs.append((ours.prepare(problem).bound(Budget()).seconds, theirs.prepare(problem).bound(budget).seconds))
        own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(scs / fast for fast, scs in pairs)
        print(
            f"| {name} | {closed_form_bound(graph).value:.5f} | {found.value:.5f} | {found.extra['gap']:.2%} "
            f"| {own:.3f} | {reference.value:.5f} ({reference.status}) | {eps:g} | {other:.2f} "
            f"| {ratio:.0f} | {len(pairs)} |",
            flush=True,
        )


def row(name: str, graph: lipbridge.Graph) -> str:
    """A network's row: its bounds, the time, and the peak memory of this process."""
    get_verifier("lipsdp-fast").prepare(
        lipbridge.Problem(network([4, 4, 4, 2]), lipbridge.Question.everywhere(2))
    ).bound(Budget())
    found = get_verifier("lipsdp-fast").prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(LIMIT)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gap = found.extra.get("gap")
    return (
        f"| {name} | {lipbridge.trivial_bound(graph).value:.5f} | {closed_form_bound(graph).value:.5f} "
        f"| {found.value:.5f} | {f'{gap:.2%}' if isinstance(gap, float) else 'not known'} | {found.extra.get('steps')} "
        f"| {found.seconds:.2f} | {peak:.2f} | {found.status} | {os.getloadavg()[0]:.1f} |"
    )


def one(name: str, epochs: int) -> None:
    """What a child process does."""
    if name in LARGE:
        print(row(f"{name}, untrained", network(LARGE[name])))
        return
    activation, penalty = name.split()
    try:
        graph, accuracy = trained(activation, float(penalty), epochs)
    except LipbridgeError as error:
        print(f"| 784-256-256-10, {activation} | skipped: {error} | | | | | | | | |")
        return
    print(row(f"784-256-256-10, {activation}, penalty {penalty}, {epochs} epochs, accuracy {accuracy:.2%}", graph))


def in_children(names: list[str], threads: int, epochs: int) -> None:
    print("\n| network | trivial | closed form | lipsdp-fast | above | steps | s | peak GiB | status | load |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        options = ["--threads", str(threads), "--epochs", str(epochs), "--one", name]
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.lipsdp_fast", *options], capture_output=True, text=True, check=False
        )
        print(child.stdout.strip() or f"| {name} | failed: {child.stderr.strip().splitlines()[-1]} |", flush=True)


def batch() -> None:
    print("\nBatched against a loop, both proved, 100 steps (ours: `lipsdp_bounds` of all; theirs: one at a time)")
    for widths, count in (([10, 20, 20, 5], 64), ([10, 50, 50, 5], 32), ([784, 64, 64, 10], 8)):
        graphs = [network(widths, seed) for seed in range(count)]
        name = f"{count} x {'-'.join(map(str, widths))}"
        ratio = compare(
            name, lambda g=graphs: lipsdp_bounds(g, 100), lambda g=graphs: [lipsdp_bounds([x], 100) for x in g], runs=4
        )
        print(f"{ratio}; {count / ratio.ours:.1f} networks a second, {count / ratio.theirs:.1f} in the loop")
        verifier = get_verifier("lipsdp-fast")
        excess = [
            bound.value
            / verifier.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(Budget()).value
            - 1.0
            for graph, bound in zip(graphs[:8], lipsdp_bounds(graphs[:8], 300), strict=True)
        ]
        print(f"  above lipsdp-fast after 300 steps, 8 networks: mean {sum(excess) / 8:.2%}, worst {max(excess):.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="small, trained, large, batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        one(args.one, args.epochs)
        return
    print(json.dumps(machine_facts(args.threads)), flush=True)
    for part in args.parts or ["small"]:
        if part == "small":
            small()
        elif part == "large":
            in_children(list(LARGE), args.threads, args.epochs)
        elif part == "trained":
            in_children(["relu 0", "relu 0.05", "abs 0.05"], args.threads, args.epochs)
        elif part == "batch":
            batch()
        else:
            parser.error(f"unknown part {part}")


if __name__ == "__main__":
    main()
