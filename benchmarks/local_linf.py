"""Local l_inf constants of MNIST MLPs: ours beside auto_LiRPA's Jacobian bounds, the trivial one and samples.

    python -m benchmarks.local_linf [--models FOLDER] [--points 20] [--depths 2,3,4,5] [--radii 1,2,4,8]
        [--auto-lirpa CHECKOUT] [--optimize]

Networks 784-128-..-10 of 2 to 5 dense layers (relu, bias), trained plainly for five epochs into FOLDER/mlpD if they are
not there (a run's folder, as ``lipbridge train`` writes it). ``$LIPBRIDGE_DATA`` names MNIST. Radii are in 1/255, the
balls are around the first test images, and a value is the largest over the ten outputs. Medians over the points are
shown, and seconds a point.

CHECKOUT is a user's own checkout of auto_LiRPA 0.7 or newer, whose imports (graphviz, appdirs, packaging, tqdm) are
there; without it its columns say so. The adapter asks it, one output at a time, as its own example does, and one point
at a time: 0.7.1 gives every point of a larger batch one and the same value, in two layers at radius 0 the sum of what
they have alone. Its values stand 1e-7 above what it says. ``--optimize`` adds its default, which optimises the
activations' bounds first and takes some ten times longer; beside it stands ours with optimised lines, and beside CROWN
ours without. All are on one thread and in float64.
A value of ours above its own by more than 1e-6 is marked ``ABOVE``; one of either below a sample would be ``UNSOUND``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import lipbridge
from benchmarks.plain_mlp import network
from lipbridge.data import load_dataset
from lipbridge.machine import machine_facts
from lipbridge.propagation.jacobian.local import STEPS, local_constants
from lipbridge_adapters.lirpa import shim
from lipbridge_adapters.lirpa.jacobian import JacobianRunner, network_of

#: How far above the peer's value, which is rounded and not proved, ours may be.
ROOM = 1e-6
SAMPLES = 200


@dataclass(frozen=True)
class Found:
    """A value a point, and seconds a point."""

    values: Tensor
    seconds: float


def timed(work: Callable[[], Tensor]) -> Found:
    """What a call gives, in one tensor ``(points,)``, and its seconds a point."""
    start = time.perf_counter()
    values = work()
    return Found(values, (time.perf_counter() - start) / len(values))


def sampled(graph: lipbridge.Graph, x: Tensor, radius: float) -> Tensor:
    """The largest row norm of the Jacobians at the centre, at corners and at random points of each ball."""
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: graph(z[None])[0]))
    found: list[Tensor] = []
    for center in x:
        moves = torch.rand(SAMPLES, *center.shape, generator=generator, dtype=torch.float64) * 2 - 1
        moves[0], moves[1 : SAMPLES // 2] = 0.0, moves[1 : SAMPLES // 2].sign()
        found.append(jacobian(center + radius * moves).flatten(2).abs().sum(2).max())
    return torch.stack(found)


class Peer:
    """auto_LiRPA from a checkout, by the adapter."""

    def __init__(self, checkout: str) -> None:
        sys.path.insert(0, str(Path(checkout).resolve()))
        self.version = ".".join(map(str, shim.version(shim.load())))
        if not shim.has_jacobian():
            raise SystemExit(f"{checkout} holds auto_LiRPA {self.version}, which is too old.")

    def bound(self, graph: lipbridge.Graph, x: Tensor, radius: float, optimize: bool) -> Found:
        """The largest row norm by point; the tool's module is built before the clock starts."""
        network = network_of(graph, "alpha-CROWN" if optimize else "CROWN")
        runner = JacobianRunner(network, "inf", "inf", 8 * 2**30, 20)
        return timed(lambda: torch.tensor([runner.value(center, radius, "inf") for center in x], dtype=torch.float64))


def cell(ours: Found, peer: Found | None, least: Tensor) -> list[str]:
    """The peer's median and seconds, the largest and the median of ours / its own, and how often faster we are."""
    if peer is None:
        return ["not run", "", "", "", ""]
    ratio = ours.values / peer.values
    mark = " **ABOVE**" if bool((ratio > 1 + ROOM).any()) else ""
    mark += " **UNSOUND**" if bool((peer.values < least * (1 - ROOM)).any()) else ""
    median = float(peer.values.median())
    faster = f"{peer.seconds / ours.seconds:.1f}"
    return [
        f"{median:.4f}{mark}",
        f"{peer.seconds:.3f}",
        f"{float(ratio.max()):.6f}",
        f"{float(ratio.median()):.6f}",
        faster,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="folder of the networks; a temporary one if not given")
    parser.add_argument("--auto-lirpa", help="a checkout of auto_LiRPA 0.7 or newer")
    parser.add_argument("--optimize", action="store_true", help="also with its default, optimised bounds")
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--depths", default="2,3,4,5")
    parser.add_argument("--radii", default="1,2,4,8", help="in 1/255")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peer = Peer(options.auto_lirpa) if options.auto_lirpa else None
    facts = machine_facts(1) | {"auto_LiRPA": peer.version if peer else "not run"}
    print(json.dumps(facts), flush=True)
    modes = ["CROWN", "optimised"] if options.optimize else ["CROWN"]
    heads = ["network", "radius", "sampled", "trivial"]
    for mode in modes:
        heads += [
            f"ours, {mode}",
            "s a point",
            f"auto_LiRPA, {mode}",
            "s a point",
            "ours / its, largest",
            "median",
            "times faster",
        ]
    print("| " + " | ".join([*heads, "load"]) + " |\n|" + "---|" * (len(heads) + 1), flush=True)
    images = load_dataset("mnist").test_inputs[: options.points].double()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.models or temporary)
        for depth in map(int, options.depths.split(",")):
            module = network(folder, f"mlp{depth}", (128,) * (depth - 1))
            graph = lipbridge.capture(module)
            x = images.reshape(len(images), *graph.input_shape)
            trivial = lipbridge.trivial_bound(graph, "inf").value
            local_constants(graph, lipbridge.Ball(x[:1], 1 / 255, "inf"), "inf", "inf")  # a first call is not timed
            for units in map(int, options.radii.split(",")):
                radius = units / 255
                ball = lipbridge.Ball(x, radius, "inf")
                least = sampled(graph, x, radius)
                cells = [f"mlp{depth}", f"{units}/255", f"{float(least.median()):.4f}", f"{trivial:.1f}"]
                for mode in modes:
                    steps = STEPS if mode == "optimised" else 0
                    ours = timed(
                        lambda graph=graph, ball=ball, steps=steps: local_constants(
                            graph, ball, "inf", "inf", steps=steps
                        )
                    )
                    mark = " **UNSOUND**" if bool((ours.values < least * (1 - 1e-12)).any()) else ""
                    cells += [f"{float(ours.values.median()):.4f}{mark}", f"{ours.seconds:.3f}"]
                    found = peer and peer.bound(graph, x.flatten(1), radius, mode == "optimised")
                    cells += cell(ours, found, least)
                print("| " + " | ".join([*cells, f"{os.getloadavg()[0]:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
