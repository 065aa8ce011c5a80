"""lipsdp-fast with one multiplier a channel beside the trivial bound, its best rescaling, and a multiplier a unit.

    python -m benchmarks.channels [small] [mnist] [cifar] [--threads 2] [--seconds 300] [--model RUN_OR_FILE ...]

- *small*: 2 x 8 x 8 images, where the dense matrices can be built as well, so that the price of one multiplier a
  channel shows: the column *units* is `lipsdp-fast` on the network that `lower_to_dense` writes.
- *mnist*: two 5x5 convolutions of stride two (32 and 64 channels), dense 128, as `train --arch conv-small`.
- *cifar*: four convolutions (32, 32, 64, 64; 3x3 and 4x4 of stride two), two hidden dense layers of 512.

Untrained networks of torch's own initial weights, with ReLU and abs, zero and circular padding. `--model` adds trained
ones. Every bound is proved; the witness is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time

import torch
from torch import nn

import lipbridge
from lipbridge.activations.registry import activation_module
from lipbridge.errors import LipbridgeError
from lipbridge.files.models import open_model
from lipbridge.graph.graph import Graph
from lipbridge.lipsdp.by_channel.multipliers import bound_by_channels
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.machine import machine_facts
from lipbridge.rescaling.channel_chain import channel_chain
from lipbridge.rescaling.channels import best_factors, proved_product
from lipbridge.verifiers import Budget, get_verifier

#: Channels, kernels, strides of the convolutions, hidden dense widths, and the input's shape.
NETWORKS = {
    "small": (((4, 3, 1), (6, 3, 2)), (8,), (2, 8, 8)),
    "mnist": (((32, 5, 2), (64, 5, 2)), (128,), (1, 28, 28)),
    "cifar": (((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)), (512, 512), (3, 32, 32)),
}


def network(name: str, activation: str, padding: str) -> Graph:
    """One of the networks, drawn with seed 0."""
    convolutions, hidden, shape = NETWORKS[name]
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels, size = shape[0], shape[1]
    for out, kernel, stride in convolutions:
        layers += [nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, padding_mode=padding)]
        layers += [activation_module(activation)]
        size = (size + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
        channels = out
    layers += [nn.Flatten()]
    n = channels * size * size
    for m in hidden:
        layers += [nn.Linear(n, m), activation_module(activation)]
        n = m
    return lipbridge.capture(nn.Sequential(*layers, nn.Linear(n, 10)), shape)


def row(label: str, graph: Graph, seconds: float, *, dense: bool) -> None:
    """Bound one network by everything and print a line."""
    problem = lipbridge.Problem(graph, lipbridge.Question.everywhere(2))
    trivial = lipbridge.trivial_bound(graph).value
    start = time.perf_counter()
    chain = channel_chain(graph)
    rescaled = min(trivial, proved_product(chain, best_factors(chain, start + seconds)))
    middle = time.perf_counter()
    found = bound_by_channels(problem, middle + seconds)
    end = time.perf_counter()
    each = math.nan
    if dense:
        lowered = lipbridge.Problem(lower_to_dense(graph).graph, lipbridge.Question.everywhere(2))
        each = get_verifier("lipsdp-fast").prepare(lowered).bound(Budget(seconds)).value
    witness = get_verifier("witness").prepare(problem).bound(Budget(seconds)).value
    print(
        f"| {label} | {trivial:.4f} | {rescaled:.4f} | {middle - start:.1f} | {found.value:.4f} ({found.status}) | "
        f"{end - middle:.1f} | {each:.4f} | {witness:.4f} | {found.value / witness:.3f} |",
        flush=True,
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), choices=[*NETWORKS, []])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--model", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(machine_facts()))
    print("| network | trivial | rescaled | s | lipsdp-fast, channels | s | units | witness | tightness |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.networks:
        for activation in ("relu", "abs"):
            for padding in ("zeros", "circular"):
                if padding == "circular" and name == "cifar":
                    continue  # a 4x4 kernel with padding 1 is no torus: runs would be cut there
                graph = network(name, activation, padding)
                row(f"{name}, {activation}, {padding}", graph, arguments.seconds, dense=name == "small")
    for path in arguments.model:
        try:
            row(path, open_model(path).graph, arguments.seconds, dense=False)
        except LipbridgeError as error:
            print(f"| {path} | {error} |")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
