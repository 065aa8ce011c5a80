"""Margins of a classifier on l_inf balls: our linear bounds, all points at once, beside auto_LiRPA's CROWN.

    python -m benchmarks.margins [--models FOLDER] [--points 100] [--radii 0.02,0.05] [--repeat 5] [--threads 1]

The network is 784-256-256-10 (relu, bias), trained plainly for five epochs into FOLDER/plain if it is not there;
``$LIPBRIDGE_DATA`` names MNIST. Asked are the margins of the label over all nine others, on balls around the first test
images that are classified correctly. auto_LiRPA is the one that is installed (0.3 is PyPI's newest), mended to run
beside a current torch; it is asked as its own examples do, with the margins as its specification, point by point and
then all points at once. Both in float64; ours are proved after rounding. Medians of ``--repeat`` turns, in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lipbridge
from benchmarks.plain_mlp import dense_alone, network
from lipbridge.data import load_dataset
from lipbridge.machine import machine_facts
from lipbridge.propagation.bounds import layer_norms
from lipbridge.propagation.forms import least_of_forms
from lipbridge_adapters.lirpa import shim
from lipbridge_adapters.lirpa.runner import SOUND_OPTIONS


def timed(work: Callable[[], Tensor], repeat: int) -> tuple[Tensor, float]:
    """What a call gives, and the median of its seconds a point; a first call is not counted."""
    found = work()
    spent: list[float] = []
    for _ in range(repeat):
        start = time.perf_counter()
        found = work()
        spent.append((time.perf_counter() - start) / len(found))
    return found, statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="folder of the network; a temporary one if not given")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--radii", default="0.02,0.05")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_dataset("mnist")
    with tempfile.TemporaryDirectory() as temporary:
        module = network(Path(options.models or temporary), "plain", (256, 256))
    graph = lipbridge.capture(module)
    images = data.test_inputs[: 2 * options.points + 20].double().reshape(-1, *graph.input_shape)
    labels = data.test_labels[: len(images)]
    right = (graph(images).argmax(1) == labels).nonzero().flatten()[: options.points]
    x, labels = images[right], labels[right]
    eye = torch.eye(10, dtype=torch.float64)
    rows = torch.stack([(eye[y] - eye)[torch.arange(10) != y] for y in map(int, labels)])
    dense = dense_alone(module, graph, x)
    tool: Any = shim.load()
    print(json.dumps(machine_facts(options.threads) | {"auto_LiRPA": shim.version(tool), "points": len(x)}))
    norms = layer_norms(graph, "inf")
    for radius in map(float, options.radii.split(",")):
        ball = lipbridge.Ball(x, radius, "inf")
        ours, our_seconds = timed(lambda ball=ball: least_of_forms(graph, ball, rows, norms), options.repeat)
        print(f"l_inf {radius:g}")
        print(f"  {'ours, all at once':32} {1e3 * our_seconds:9.3f} ms a point, certified {_share(ours)}")
        for together in (False, True):
            with shim.session():
                step = len(x) if together else 1
                start = x[:step].flatten(1)
                bounded = tool.BoundedModule(dense, start, bound_opts=dict(SOUND_OPTIONS), device="cpu")

                def its(step: int = step, bounded: Any = bounded, radius: float = radius) -> Tensor:
                    found: list[Tensor] = []
                    for i in range(0, len(x), step):
                        region = tool.PerturbationLpNorm(norm=torch.inf, eps=radius)
                        point = tool.BoundedTensor(x[i : i + step].flatten(1), region)
                        low, _ = bounded.compute_bounds(
                            x=(point,), C=rows[i : i + step], method="CROWN", bound_upper=False
                        )
                        found.append(low.detach())
                    return torch.cat(found)

                theirs, seconds = timed(its, options.repeat)
            name = "auto_LiRPA CROWN, " + ("all at once" if together else "point by point")
            gap = float((theirs - ours).max())
            print(
                f"  {name:32} {1e3 * seconds:9.3f} ms a point, certified {_share(theirs)}; "
                f"{seconds / our_seconds:.1f} times ours; its margins are above ours by {gap:.1e} at most",
                flush=True,
            )


def _share(margins: Tensor) -> str:
    return f"{100.0 * float((margins > 0).all(1).double().mean()):.1f} %"


if __name__ == "__main__":
    main()
