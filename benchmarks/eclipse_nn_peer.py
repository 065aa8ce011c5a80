"""Runs eclipse-nn on one network and prints its answers as JSON lines; see :mod:`benchmarks.eclipse_nn`.

    PEER_PYTHON eclipse_nn_peer.py NETWORK.npz ACTIVATION METHOD...

It runs in eclipse-nn's own environment and so imports nothing of lipbridge. The model is built as that package's
documentation has it: a ``torch.nn.Sequential`` of ``Linear`` layers, whose weights it reads.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time

import numpy as np
import torch
from eclipse_nn.LipConstEstimator import LipConstEstimator
from torch import nn


class Abs(nn.Module):
    """|x|."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.abs(x)


MODULES = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "abs": Abs,
}


def main() -> None:
    torch.set_num_threads(1)
    path, activation, *methods = sys.argv[1:]
    with np.load(path, allow_pickle=False) as file:
        weights = [torch.tensor(file[f"W{index}"]) for index in range(len(file.files))]
    layers: list[nn.Module] = []
    for W in weights:
        layer = nn.Linear(W.shape[1], W.shape[0], dtype=torch.float64)  # it reads `bias`, and fails without one
        with torch.no_grad():
            layer.weight.copy_(W)
        layers += [layer, MODULES[activation]()]
    estimator = LipConstEstimator(model=nn.Sequential(*layers[:-1]))
    for method in methods:
        said = io.StringIO()
        start = time.perf_counter()
        try:
            with contextlib.redirect_stdout(said):
                value = float(estimator.estimate(method))
            error = ""
        except Exception as failure:  # the peer's failure is a row of the table
            value, error = float("nan"), f"{type(failure).__name__}: {failure}"
        row = {"method": method, "value": value, "seconds": time.perf_counter() - start, "error": error}
        row["fell_back"] = "Falling back" in said.getvalue()
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
