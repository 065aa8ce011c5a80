"""The ladder of l_2 bounds on trained networks, with times: ``python -m benchmarks.ladder SETTING... [--seconds 300]``.

    trivial >= rescaled >= eclipse-fast >= lipsdp-fast >= lipsdp >= witness

Every bound is proved. Each network is trained by its setting of ``benchmarks.frontier`` (on fewer epochs with
``--epochs``), then all verifiers read the same Graph, one after the other in one process. A step that goes up by more
than the solvers' tolerance (0.1 %) is marked. ``lipsdp`` runs SCS at 1e-5 within ``--seconds``; where it does not
finish, its row says so.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from itertools import pairwise

import torch

import lipbridge
from benchmarks.frontier import SETTINGS
from lipbridge.data import Dataset, load_dataset
from lipbridge.machine import machine_facts
from lipbridge.problem.bound import Bound
from lipbridge.training.recipes import recipe
from lipbridge.verifiers import Budget, get_verifier

TOLERANCE = 1e-3


def trained(setting: str, epochs: int | None, widths: tuple[int, ...] | None) -> tuple[torch.nn.Module, Dataset, float]:
    """The network of a setting, its data, and its accuracy."""
    name, norm, changes, settings = SETTINGS[setting]
    data = load_dataset(name)
    default = recipe(data, norm)
    config = replace(default.config, **settings)
    if epochs is not None:
        config = replace(config, epochs=epochs)
    plan = replace(default, **changes, config=config)
    plan = plan if widths is None else replace(plan, widths=widths)
    result = lipbridge.fit(plan.build(data), data, plan.config)
    return result.module, data, result.accuracy


def ladder(module: torch.nn.Module, data: Dataset, seconds: float) -> list[tuple[str, Bound]]:
    """The bounds, from the cheapest down to the witness."""
    graph = lipbridge.capture(module)
    problem = lipbridge.Problem(graph, lipbridge.Question.everywhere(2))
    rungs = [("trivial", lipbridge.trivial_bound(graph)), ("rescaled", lipbridge.rescale(module).after)]
    for name in ("eclipse-fast", "lipsdp-fast", "lipsdp"):
        rungs.append((name, get_verifier(name).prepare(problem).bound(Budget(seconds=seconds, memory=12 * 2**30))))
    starts = data.test_inputs[:2000].double()
    return [*rungs, ("witness", lipbridge.search_lower_bound(problem, starts, seconds=30))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", choices=[name for name, (_, norm, *_) in SETTINGS.items() if norm == 2])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--widths", type=lambda text: tuple(int(width) for width in text.split(",")))
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of each verifier")
    options = parser.parse_args()
    print(json.dumps(machine_facts()), flush=True)
    for setting in options.settings:
        module, data, accuracy = trained(setting, options.epochs, options.widths)
        rungs = ladder(module, data, options.seconds)
        widths = options.widths or "of the recipe"
        print(f"\n{setting}, widths {widths}: {accuracy:.2%} accuracy, load {os.getloadavg()[0]:.2f}\n")
        print("| | bound | over the witness | s | status |\n|---|---|---|---|---|")
        for name, bound in rungs:
            ratio, proved = bound.value / rungs[-1][1].value, "proved" if bound.proved else "not proved"
            print(f"| {name} | {bound.value:.5f} | {ratio:.4f} | {bound.seconds:.2f} | {proved}, {bound.status} |")
        for (above, larger), (below, smaller) in pairwise(rungs):
            if smaller.value > larger.value * (1.0 + TOLERANCE):
                print(f"{below} is above {above} by {smaller.value / larger.value - 1:.2%}")
        print(flush=True)


if __name__ == "__main__":
    main()
