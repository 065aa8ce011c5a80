"""Norms of convolutions side by side: values, upper bounds for training, the proved bound, and the peers'.

    python -m benchmarks.convolutions [--peer PATH/lip4conv] [--kernels 1 3] [--channels 16 64] [--sizes 8 32 224]
    python -m benchmarks.convolutions --issue        (64 channels, 3x3, 32x32, and the SVD of the matrix)

Random kernels, as many channels out as in, stride one, zero padding that keeps the size. All columns are relative to
the exact norm of the zero-padded operator, or, where that takes too long (its column says so), to the exact norm of
the torus that holds it. A value below one is no upper bound.

- *torus*: the exact norm of the circular convolution that holds the operator; *Gram*: after 6 iterations, in float32
  (the training precision); *Toeplitz*; *proved*; *power*: 100 steps of power iteration on the operator.
- *spectral_norm*: 1 / (the norm that torch.nn.utils.parametrizations.spectral_norm divides by, which is that of the
  reshaped kernel): the true norm of a layer that it has normalised to "one".
- *lip4conv*: the peer's Gram iteration (2023, circular on the image's own size), its bound for zero padding (2024) and
  its Toeplitz bound, with 6, 4 and 50 iterations (samples), run from a copy of github.com/blaisedelattre/lip4conv given
  by --peer, by --peer-python; it asks for a GPU in fixed places, which the peer's process answers with the CPU.

Work above --operations (floating-point, estimated) is left out, and said so. One thread; only ratios of times mean
much.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipbridge.machine import machine_facts
from lipbridge.norms import initial_vector
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.convolution import circular_norm, conv_operator_norm
from lipbridge.norms.gram_convolution import gram_bound
from lipbridge.norms.toeplitz import toeplitz_bound
from lipbridge.norms.torus import torus
from lipbridge.rigor.convolution import proved_conv_norm

PEER = Path(__file__).with_name("convolutions_peer.py")
#: Applications of the operator and its transpose that Lanczos iteration takes, about; operations of an SVD, per n^3.
APPLICATIONS, SVD = 600, 100


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """The value of one call, and its seconds."""
    start = time.perf_counter()
    value = float(work())
    return value, time.perf_counter() - start


def power_iteration(weight: Tensor, geometry: Convolution, steps: int = 100) -> float:
    """The estimate from below after some steps on the operator, in the weight's dtype."""
    v = initial_vector(math.prod(geometry.input_shape)).reshape(1, *geometry.input_shape)
    for _ in range(steps):
        u = geometry.apply(weight, v)
        v = geometry.adjoint(weight, u / u.norm())
        v = v / v.norm()
    return float(geometry.apply(weight, v).norm())


def reshaped_norm(weight: Tensor) -> float:
    """What ``torch.nn.utils.parametrizations.spectral_norm`` divides a kernel by, once its iteration has settled."""
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    layer = nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=1000)
    with torch.no_grad():
        return float(weight.norm() / layer.weight.norm())


def peer_values(options: argparse.Namespace, weight: Tensor, size: int) -> dict[str, float]:
    """lip4conv's values, or nothing if it was not given or fails; each of its methods apart."""
    if options.peer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.npz"
        np.savez(path, weight=weight.numpy(), size=size)
        command = [options.peer_python, str(PEER), str(options.peer), str(path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    if run.returncode:
        print(f"lip4conv failed: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    return json.loads(run.stdout)


def row(options: argparse.Namespace, kernel: int, channels: int, size: int) -> str:
    """One line of the table."""
    generator = torch.Generator().manual_seed(kernel * 1000 + channels)
    weight = torch.randn(channels, channels, kernel, kernel, generator=generator) / (kernel * math.sqrt(channels))
    pad = (kernel // 2, kernel // 2)
    geometry = Convolution((channels, size, size), padding=(pad, pad))
    blocks = torus(geometry, weight).frequency_count * channels**3
    one = 2.0 * (size * channels * kernel) ** 2

    def within(operations: float, work: Callable[[], Any]) -> tuple[float, float] | None:
        return timed(work) if operations <= options.operations else None

    exact = within(one * APPLICATIONS, lambda: conv_operator_norm(weight, geometry))
    circular = within(SVD * blocks, lambda: circular_norm(weight, geometry))
    proved = within(50 * blocks, lambda: proved_conv_norm(weight, geometry))
    reference = exact or circular or proved
    if reference is None:
        return f"| {kernel} | {channels} | {size} | above {options.operations:.0e} operations |" + " |" * 9
    found = {
        "torus": circular,
        "gram": within(56 * blocks, lambda: gram_bound(weight, geometry, 6)),
        "toeplitz": timed(lambda: toeplitz_bound(weight, geometry)),
        "proved": proved,
        "power": within(200 * one, lambda: power_iteration(weight, geometry)),
    }
    cells = [f"{value[0] / reference[0]:.4f} ({value[1]:.2f} s)" if value else "left out" for value in found.values()]
    cells.append(f"{reference[0] / reshaped_norm(weight):.3f}")
    peer = peer_values(options, weight, size) if 56 * blocks <= options.operations else {}
    cells += [
        f"{peer[name] / reference[0]:.4f}" if name in peer else "not run" for name in ("gram", "zero", "toeplitz")
    ]
    said = f"{exact[0]:.4f} ({exact[1]:.1f} s)" if exact else f"torus {reference[0]:.4f}"
    return f"| {kernel} | {channels} | {size} | {said} | " + " | ".join(cells) + " |"


def figures(mode: str) -> None:
    """64 channels, 3x3, 32x32: the gaps after each iteration."""
    geometry = Convolution((64, 32, 32), padding=((1, 1), (1, 1)), padding_mode=mode)
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0)) / 24
    exact, circular = (timed(partial(function, weight, geometry)) for function in (conv_operator_norm, circular_norm))
    print(f"\n{mode}: exact {exact[0]:.6f} ({exact[1]:.2f} s), torus {circular[0]:.6f} ({circular[1]:.2f} s)")
    for iterations in range(1, 8):
        value, seconds = timed(partial(gram_bound, weight, geometry, iterations))
        print(
            f"  Gram iteration {iterations}: {value / circular[0] - 1:+.2e} of the torus, "
            f"{value / exact[0] - 1:+.2e} of the exact norm, {seconds:.2f} s in float32"
        )
    value, seconds = timed(lambda: proved_conv_norm(weight, geometry))
    print(f"  proved: {value / circular[0] - 1:+.2e} of the torus, {seconds:.2f} s")


def against_the_matrix(channels: int, size: int) -> None:
    """How much longer the SVD of the matrix takes, where it can be had."""
    geometry = Convolution((channels, size, size), padding=((1, 1), (1, 1)))
    weight = torch.randn(channels, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    _, matrix = timed(lambda: torch.linalg.svdvals(geometry.matrix(weight.double()))[0])
    _, gram = timed(lambda: gram_bound(weight, geometry))
    _, proof = timed(lambda: proved_conv_norm(weight, geometry))
    print(
        f"\n{channels} channels, {size}x{size}: SVD of the matrix ({channels * size**2} rows) {matrix:.2f} s: "
        f"{matrix / gram:.0f} times Gram iteration's, {matrix / proof:.0f} times the proof's"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a copy of the lip4conv repository")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--kernels", type=int, nargs="+", default=[1, 3, 5, 7])
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 64, 512])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 224])
    parser.add_argument("--operations", type=float, default=1e12, help="limit of each cell")
    parser.add_argument("--issue", action="store_true", help="the figures at 64 channels, 3x3, 32x32 only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(machine_facts()), flush=True)
    if options.issue:
        for mode in ("circular", "zeros"):
            figures(mode)
        for channels, size in ((8, 16), (16, 16)):
            against_the_matrix(channels, size)
        return
    peer = "lip4conv Gram | lip4conv zero padding | lip4conv Toeplitz"
    print(f"\n| k | channels | image | exact | torus | Gram | Toeplitz | proved | power | spectral_norm | {peer} |")
    print("|---" * 13 + "|")
    for kernel in options.kernels:
        for channels in options.channels:
            for size in options.sizes:
                print(row(options, kernel, channels, size), flush=True)


if __name__ == "__main__":
    main()
