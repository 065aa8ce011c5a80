"""Proved bounds against exact rational arithmetic, at tolerance zero: families x claimants x asked x violations.

    python -m benchmarks.attack [--networks 5000] [--kernels 5000] [--points 1000] [--modules 500] [--seed 0]
        [--seconds 3600] [--findings FILE] [--claimants "jacobian" "jacobian on balls"]

Networks are drawn by ``tests.support.attack.networks``; each claim of each verifier that is drawn for it is compared
with the norms of its exact Jacobians: all there are for networks of one input, all on some lines for others. Modules
are networks that the package reads itself, compared with what they are. Kernels are compared with their exact matrices,
certified radii with exact margins. Exits with 1 at a violation or a crash.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.support.attack import kernels, modules, networks
from tests.support.attack.claims import all_claimants
from tests.support.attack.judge import KINDS, Outcome, judge
from tests.support.attack.points import classifier, judge_points

Table = dict[str, dict[str, Counter[str]]]


def outcomes(
    what: str, count: int, first: int, families: list[str], judged: Callable[[str, int], list[Outcome]], until: float
) -> Iterator[Outcome]:
    """Of ``count`` seeds, the families in turn, until a time of ``time.perf_counter``."""
    start = time.perf_counter()
    for number in range(count):
        if time.perf_counter() > until:
            print(f"Time is over: {number} of {count} {what}.", flush=True)
            return
        if number % 200 == 0:
            print(f"{what} {number} of {count}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        yield from judged(families[number % len(families)], first + number // len(families))


def tabulated(found: Iterator[Outcome], findings: Path | None) -> Table:
    """Counts by family and claimant; what is wrong is printed (and written down) at once."""
    table: Table = {}
    for outcome in found:
        table.setdefault(outcome.family, {}).setdefault(outcome.name, Counter())[outcome.kind] += 1
        if outcome.kind in ("violated", "crashed"):
            line = f"{outcome.kind} ({outcome.name}): {outcome.text}"
            print(line, flush=True)
            if findings:
                with findings.open("a") as file:
                    file.write(line + "\n")
    return table


def printed(title: str, table: Table) -> int:
    """The table; the number of violations and crashes."""
    names = sorted({name for row in table.values() for name in row})
    print(f"\n{title}: proved claims, of them violated (refused; crashed)")
    for name in names:
        print(f"  {name}")
        total: Counter[str] = Counter()
        for family, row in table.items():
            counts = row.get(name, Counter())
            total += counts
            if counts:
                print(f"    {family:22s}{_told(counts)}")
        print(f"    {'all':22s}{_told(total)}")
    everything = sum((counts for row in table.values() for counts in row.values()), Counter())
    print(f"  {'in all':24s}{_told(everything)}")
    return everything["violated"] + everything["crashed"]


def _told(counts: Counter[str]) -> str:
    held, refused, violated, crashed = (counts[kind] for kind in KINDS)
    return f"{held + violated:8d}, {violated} ({refused}; {crashed})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=5000)
    parser.add_argument("--kernels", type=int, default=5000)
    parser.add_argument("--points", type=int, default=1000, help="networks whose certified radii are attacked")
    parser.add_argument("--modules", type=int, default=500, help="that the package reads itself")
    parser.add_argument("--seed", type=int, default=0, help="the first of each family")
    parser.add_argument("--families", nargs="*", default=list(networks.FAMILIES), choices=list(networks.FAMILIES))
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop then, and print what was found")
    parser.add_argument("--findings", type=Path, help="append violations and crashes to this file, as they are found")
    parser.add_argument("--claimants", nargs="*", choices=all_claimants(), help="only these are asked about networks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def _network(family: str, seed: int) -> list[Outcome]:
        return judge(networks.draw(family, seed), arguments.claimants)

    seed, families, until = arguments.seed, arguments.families, time.perf_counter() + arguments.seconds
    parts = [
        ("kernels", arguments.kernels, list(kernels.FAMILIES), _kernel),
        ("certified points", arguments.points, families, _points),
        ("modules", arguments.modules, list(modules.FAMILIES), _module),
        ("networks", arguments.networks, families, _network),
    ]
    wrong = 0
    for title, count, those, judged in parts:
        if count:
            table = tabulated(outcomes(title, count, seed, those, judged, until), arguments.findings)
            wrong += printed(f"{count} {title}, seeds from {seed}", table)
    sys.exit(1 if wrong else 0)


def _kernel(family: str, seed: int) -> list[Outcome]:
    return kernels.judge_kernel(kernels.draw_kernel(family, seed))


def _points(family: str, seed: int) -> list[Outcome]:
    return judge_points(classifier(networks.draw(family, seed)))


def _module(family: str, seed: int) -> list[Outcome]:
    return modules.judge_module(modules.draw_module(family, seed))


if __name__ == "__main__":
    main()
