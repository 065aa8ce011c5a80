"""The speed claims of training, proofs, capture and start-up, in one run: ``python -m benchmarks.spine``.

Run it alone on the machine. Prints each figure beside its limit, and the facts of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

import torch

import lipbridge
from benchmarks.ratios import compare, seconds_of
from lipbridge.machine import machine_facts
from lipbridge.training.config import TrainingConfig
from lipbridge.training.steps import make_optimizer, training_step

WIDTHS = [784, 256, 256, 10]

CAPTURE = """
import time, torch, lipbridge
torch.set_num_threads({threads})
module = lipbridge.mlp([784, 256, 256, 10], "abs")
from lipbridge.frontend.capture import capture
start = time.perf_counter()
graph = capture(module)
middle = time.perf_counter()
lipbridge.trivial_bound(graph)
first = time.perf_counter()
times = []
for _ in range(9):
    begin = time.perf_counter()
    lipbridge.trivial_bound(graph)
    times.append(time.perf_counter() - begin)
print(middle - start, first - middle, sorted(times)[4])
"""


def step_ratio(method: str, every: int | None, batch: int = 256, steps: int = 20):
    """A penalised training step over a plain one: whole steps with the optimiser, blocks of ``steps``."""
    config = TrainingConfig(method=method, every=every)
    x, y = torch.rand(batch, 784), torch.randint(0, 10, (batch,))

    def loop(weighted: bool):
        torch.manual_seed(0)
        module = lipbridge.mlp(WIDTHS, "abs", bias=False)
        penalty = lipbridge.TrivialBoundPenalty(module, method=method, every=every) if weighted else None
        optimizer = make_optimizer(module, config)

        def block() -> None:
            for _ in range(steps):
                training_step(module, penalty, optimizer, x, y, config)

        return block

    return compare(f"penalised / plain step, {method}, batch {batch}", loop(True), loop(False))


def proof_ratio():
    """The proved l_2 bound of the network over ``torch.linalg.svdvals`` of the same layers in float64."""
    graph = lipbridge.capture(lipbridge.mlp(WIDTHS, "abs"))
    weights = [node.weight for node in graph if hasattr(node, "weight")]
    return compare(
        "proved bound / svdvals",
        lambda: lipbridge.trivial_bound(graph),
        lambda: [torch.linalg.svdvals(W) for W in weights],
    )


def fresh(code: str) -> list[float]:
    """The numbers that a fresh Python process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def help_seconds() -> float:
    command = [sys.executable, "-m", "lipbridge", "--help"]
    return seconds_of(lambda: subprocess.run(command, capture_output=True, check=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    print(json.dumps(machine_facts(threads)))
    print(step_ratio("gram", None), "| limit 1.15")
    print(step_ratio("power", None))
    print(step_ratio("gram", None, batch=512))
    print(proof_ratio(), "| limit 2")
    runs = [fresh(CAPTURE.format(threads=threads)) for _ in range(5)]
    captured, first, later = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"capture in a fresh process: {captured:.3f} s | limit 2 s")
    print(f"proved trivial bound, once captured: first {first * 1e3:.1f} ms, later {later * 1e3:.1f} ms | limit 20 ms")
    help_seconds()
    print(f"lipbridge --help: {statistics.median(help_seconds() for _ in range(7)):.3f} s | limit 0.5 s")
    print(f"load at the end: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
