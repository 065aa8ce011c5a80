"""Margins of a classifier on l_inf balls: our linear bounds, all points at once, beside auto_LiRPA's CROWN.

    python -m benchmarks.margins [--models FOLDER] [--networks plain,penalty] [--points 100]
        [--radii 0.002,0.005,0.01,0.02,0.05] [--repeat 5] [--threads 1]

The networks are 784-256-256-10 (relu, bias), trained for five epochs, plainly and for a small l_inf bound, into
FOLDER/plain and FOLDER/penalty if they are not there; ``$LIPBRIDGE_DATA`` names MNIST. Asked are the margins of the
label over all nine others, on balls around the first test images that are classified correctly: ours as tight as they
come, ours until they are above zero, which is what ``certify --verifier jacobian`` asks for, and the certified radii by
the trivial bound, its norms included, which is what ``certify`` asks for. auto_LiRPA is the one that is installed
(0.3 is PyPI's newest), mended to run beside a current torch; it is asked as its own examples do, with the margins as
its specification, point by point and then all points at once. All in float64; ours are proved after rounding. Seconds
are medians of ``--repeat`` turns in one process, each of which asks all: the ratios are of what ran side by side.

Last comes what the machine gives for a product of matrices alone, and how many of its operations CROWN's linear forms
of all units take: for each point 2 x 256 of them, through 256 x 784 weights.
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
from torch import Tensor, nn

import lipbridge
from benchmarks.plain_mlp import dense_alone, network
from lipbridge.data import load_dataset
from lipbridge.machine import machine_facts
from lipbridge.propagation.bounds import layer_norms
from lipbridge.propagation.forms import least_of_forms
from lipbridge.verifiers.jacobian import differences
from lipbridge_adapters.lirpa import shim
from lipbridge_adapters.lirpa.runner import SOUND_OPTIONS

PENALTY = 0.02


def forms_alone() -> tuple[float, float]:
    """Seconds of the product that CROWN's forms of one point are, and its operations a second."""
    forms, weight = torch.randn(512, 256, dtype=torch.float64), torch.randn(256, 784, dtype=torch.float64)
    spent: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        forms @ weight
        spent.append(time.perf_counter() - start)
    seconds = statistics.median(spent)
    return seconds, 2.0 * 512 * 256 * 784 / seconds


def crown(tool: Any, dense: nn.Sequential, x: Tensor, rows: Tensor, radius: float, step: int) -> Callable[[], Tensor]:
    """auto_LiRPA's bounds, so many points at once."""
    bounded = tool.BoundedModule(dense, x[:step].flatten(1), bound_opts=dict(SOUND_OPTIONS), device="cpu")

    def work() -> Tensor:
        found: list[Tensor] = []
        for i in range(0, len(x), step):
            region = tool.PerturbationLpNorm(norm=torch.inf, eps=radius)
            point = tool.BoundedTensor(x[i : i + step].flatten(1), region)
            low, _ = bounded.compute_bounds(x=(point,), C=rows[i : i + step], method="CROWN", bound_upper=False)
            found.append(low.detach())
        return torch.cat(found)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="folder of the networks; a temporary one if not given")
    parser.add_argument("--networks", default="plain,penalty")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--radii", default="0.002,0.005,0.01,0.02,0.05")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_dataset("mnist")
    tool: Any = shim.load()
    print(json.dumps(machine_facts(options.threads) | {"auto_LiRPA": shim.version(tool)}))
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            norm, penalty = ("inf", PENALTY) if name == "penalty" else ("2", 0.0)
            module = network(Path(options.models or temporary), name, (256, 256), norm=norm, penalty=penalty)
        graph = lipbridge.capture(module)
        images = data.test_inputs[: 2 * options.points + 20].double().reshape(-1, *graph.input_shape)
        labels = data.test_labels[: len(images)]
        right = (graph(images).argmax(1) == labels).nonzero().flatten()[: options.points]
        x, y = images[right], labels[right]
        dense = dense_alone(module, graph, x)
        for radius in map(float, options.radii.split(",")):
            print(f"{name}, {len(x)} points, l_inf {radius:g}")
            compared(graph, dense, tool, x, y, radius, options.repeat)
    seconds, speed = forms_alone()
    print(f"CROWN's forms of a point alone: {1e3 * seconds:.2f} ms, at {speed / 1e9:.0f} GFLOP/s")


def compared(
    graph: lipbridge.Graph, dense: nn.Sequential, tool: Any, x: Tensor, y: Tensor, radius: float, repeat: int
) -> None:
    """Asks all ways in turn, and prints what they give and take."""
    rows = differences(y, 10)
    norms, ball = layer_norms(graph, "inf"), lipbridge.Ball(x, radius, "inf")
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: least_of_forms(graph, ball, rows, norms),
        "ours until above zero": lambda: least_of_forms(graph, ball, rows, norms, above=0.0),
        "ours, trivial bound": lambda: (lipbridge.certified_radii(graph, x, y, "inf") - radius)[:, None],
    }
    with shim.session():
        ways["auto_LiRPA CROWN, point by point"] = crown(tool, dense, x, rows, radius, 1)
        ways["auto_LiRPA CROWN, all at once"] = crown(tool, dense, x, rows, radius, len(x))
        found = {name: work() for name, work in ways.items()}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeat):
            for name, work in ways.items():
                start = time.perf_counter()
                work()
                spent[name].append((time.perf_counter() - start) / len(x))
    ours, theirs = found["ours"], spent["auto_LiRPA CROWN, point by point"]
    for name, margins in found.items():
        ratio = statistics.median(a / b for a, b in zip(theirs, spent[name], strict=True))
        line = f"  {name:34} {1e3 * statistics.median(spent[name]):8.3f} ms a point, "
        line += f"{ratio:5.1f} x as fast as CROWN point by point, certified {_share(margins)}"
        if name.startswith("auto_LiRPA"):
            line += f"; margins above ours by {float((margins - ours).max()):.1e} at most"
        print(line, flush=True)


def _share(margins: Tensor) -> str:
    return f"{100.0 * float((margins > 0).all(1).double().mean()):.1f} %"


if __name__ == "__main__":
    main()
