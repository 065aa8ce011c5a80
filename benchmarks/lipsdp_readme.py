"""Reproduces the figure of LipSDP's README (36.482) from its file of weights, with a proved bound.

    python benchmarks/lipsdp_readme.py PATH/random_weights.mat

The file is `LipSDP/examples/saved_weights/random_weights.mat` of the LipSDP repository: ReLU, widths 2-10-30-20-2.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import torch

from lipbridge.activations import activation
from lipbridge.bounds import Problem, trivial_bound
from lipbridge.graph import Dense, Elementwise, Graph, Input, Node
from lipbridge.verifiers import Budget
from lipbridge.verifiers.lmi import closed_form_bound
from lipbridge_adapters.lipsdp import LipSDPVerifier

PUBLISHED = 36.482


def read(path: str) -> Graph:
    """The ReLU network, without biases, whose weights the cell array ``weights`` of a .mat file holds."""
    loadmat: Any = import_module("scipy.io").loadmat
    weights = [torch.tensor(W, dtype=torch.float64) for W in loadmat(path)["weights"].ravel()]
    nodes: list[Node] = [Input("x", (), (weights[0].shape[1],))]
    for index, W in enumerate(weights):
        if index:
            nodes.append(Elementwise(f"relu{index}", (len(nodes) - 1,), nodes[-1].shape, activation("relu")))
        nodes.append(Dense(f"dense{index}", (len(nodes) - 1,), (W.shape[0],), W))
    return Graph(tuple(nodes), "LipSDP README")


def main() -> None:
    torch.set_num_threads(1)
    graph = read(sys.argv[1])
    options = {"eps": float(sys.argv[2])} if len(sys.argv) > 2 else {"eps": 1e-7}
    bounds = {
        "trivial": trivial_bound(graph),
        "closed form": closed_form_bound(graph),
        "lipsdp": LipSDPVerifier().bound(Problem(graph), Budget(options=options)),
    }
    print(f"{'published':12s} {PUBLISHED:10.3f}  (LipSDP README, MOSEK's objective)")
    for name, bound in bounds.items():
        print(f"{name:12s} {bound.value:10.5f}  {bound.seconds:6.2f} s, {'proved' if bound.proved else 'NOT proved'}")


if __name__ == "__main__":
    main()
