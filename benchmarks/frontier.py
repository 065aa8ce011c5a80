"""The accuracy / bound / tightness frontier of our recipes: ``python -m benchmarks.frontier SETTING... [--seeds 5]``.

Trains each setting with seeds 0, 1, ..., proves the trivial bound, searches the witness from test points, and counts
certified accuracy. One JSON line a run, a table at the end. Data is read by the project's own loader
(``$LIPBRIDGE_DATA``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace

import lipbridge
from lipbridge.data import load_dataset
from lipbridge.machine import machine_facts
from lipbridge.training.recipes import recipe

#: name -> (dataset, norm, changes to the recipe, changes to its settings)
SETTINGS = {
    "mnist": ("mnist", 2, {}, {}),
    "mnist-long": ("mnist", 2, {}, {"epochs": 150, "penalty": 0.06}),
    "mnist-plain": ("mnist", 2, {}, {"penalty": 0.0}),
    "mnist-sincos": ("mnist", 2, {"activation": "sincos"}, {}),
    "mnist-crelu": ("mnist", 2, {"activation": "crelu"}, {}),
    "mnist-relu": ("mnist", 2, {"activation": "relu", "bias": True}, {}),
    "mnist-l1": ("mnist", 1, {}, {}),
    "mnist-l1-sin2": ("mnist", 1, {"activation": "sin2_pair"}, {}),
    "mnist-linf": ("mnist", "inf", {}, {}),
    "mnist-linf-identity-abs": ("mnist", "inf", {"activation": "identity_abs"}, {}),
    "digits": ("digits", 2, {}, {}),
    "iris": ("iris", 2, {}, {}),
    "iris-sincos": ("iris", 2, {"activation": "sincos", "bias": False}, {}),
}
RADII = {2: [0.5, 1.0, 1.58], 1: [0.5, 1.0, 2.0], "inf": [0.01, 0.02, 0.05]}


def run(setting: str, seed: int, search_seconds: float) -> dict[str, object]:
    name, norm, changes, settings = SETTINGS[setting]
    data = load_dataset(name)
    default = recipe(data, norm)
    plan = replace(default, **changes, config=replace(default.config, **settings, seed=seed))
    start = time.perf_counter()
    result = lipbridge.fit(plan.build(data), data, plan.config)
    trained = time.perf_counter() - start
    graph = lipbridge.capture(result.module)
    images = data.test_inputs[:2000].double()
    lower = lipbridge.search_lower_bound(
        lipbridge.Problem(graph, lipbridge.Question.everywhere(norm)), images, seconds=search_seconds
    )
    certified = lipbridge.certified_accuracy(graph, data.test_inputs, data.test_labels, RADII[norm], norm)
    return {
        "setting": setting,
        "seed": seed,
        "accuracy": result.accuracy,
        "bound": result.bound.value,
        "proved": result.bound.proved,
        "lower": lower.value,
        "tightness": result.bound.value / lower.value,
        "certified": {str(row.radius): row.certified_accuracy for row in certified},
        "train_seconds": round(trained, 1),
        "search_seconds": round(lower.seconds, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--search", type=float, default=30.0, help="seconds of the witness search")
    options = parser.parse_args()
    print(json.dumps(machine_facts()), flush=True)
    for setting in options.settings:
        rows = []
        for seed in range(options.seeds):
            rows.append(run(setting, seed, options.search))
            print(json.dumps(rows[-1]), flush=True)
        for figure in ("accuracy", "bound", "tightness", "train_seconds"):
            values = [float(row[figure]) for row in rows]
            spread = f"median {statistics.median(values):.4f}, from {min(values):.4f} to {max(values):.4f}"
            print(f"{setting:24s} {figure:14s} {spread}", flush=True)


if __name__ == "__main__":
    main()
