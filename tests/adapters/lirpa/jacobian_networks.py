"""Random small networks for the tool's Jacobian, and the norms that theirs have at points of a ball."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from lipbridge import activation
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Dense, Elementwise, GroupSort, Input, MaxPool, Node, Reshape
from lipbridge.norms.matrix import operator_norm
from lipbridge.vocabulary import Norm
from tests.support.chains import act, chain, conv, flattened, normal

#: Activations whose networks the tool differentiates, once they are lowered.
TAKEN = ("relu", "abs", "crelu", "tanh", "silu", "sigmoid", "elu", "selu", "leaky_relu", "hardsigmoid")
TAKEN += ("identity_abs", "identity_abs_l2")
KINDS = ("chain", "residual", "joined", "convolutions", "pooled", "sorted")


def network(kind: str, name: str, seed: int) -> Graph:
    """A network of the kind with the activation; 3 outputs."""
    g, gain = activation(name), random.Random(seed).choice((0.5, 1.0, 2.0))
    k = g.width

    def dense(out: int, n: int, source: int, place: int) -> Dense:
        weight = gain * normal(97 * seed + place, out, n) / n**0.5
        return Dense(f"dense{place}", (source,), (out,), weight, 0.5 * normal(97 * seed + place + 50, out))

    if kind in ("chain", "residual", "joined"):
        nodes: list[Node] = [Input("x", (), (4,)), dense(6, 4, 0, 1), Elementwise("g1", (1,), (6 * k,), g)]
        if kind == "chain":
            nodes += [dense(5, 6 * k, 2, 2), Elementwise("g2", (3,), (5 * k,), g), dense(3, 5 * k, 4, 3)]
        elif kind == "residual":
            nodes += [dense(4, 6 * k, 2, 2), Add("skip", (0, 3), (4,)), Elementwise("g2", (4,), (4 * k,), g)]
            nodes += [dense(4, 4 * k, 5, 3), Add("skip", (4, 6), (4,)), dense(3, 4, 7, 4)]
        else:
            nodes += [Concat("join", (2, 0), (6 * k + 4,)), dense(5, 6 * k + 4, 3, 2)]
            nodes += [Elementwise("g2", (4,), (5 * k,), g), Concat("join", (5, 3), (5 * k + 6 * k + 4,))]
            nodes += [dense(3, 11 * k + 4, 6, 3)]
        return Graph(tuple(nodes))
    middle: dict[str, list[Node]] = {
        "convolutions": [conv(seed + 2, 2, 3 * k, stride=(2, 1)), act(name)],
        "pooled": [MaxPool("pool", (), (), (2, 2), (1, 2), (0, 0), (1, 1))],
        "sorted": [conv(seed + 2, 4, 3 * k, (1, 1), padding=((0, 0),) * 2), GroupSort("sort", (), (), 2)],
    }
    layers = [conv(seed, 3, 1), act(name), *middle[kind]]
    flat = flattened(chain((1, 3, 3), *layers))
    assert isinstance(flat, Reshape)
    return chain((1, 3, 3), *layers, flat, dense(3, flat.shape[0], 0, 7))


def steepest(graph: Graph, center: Tensor, radius: float, norm: Norm, p: Norm, q: Norm, count: int, seed: int) -> float:
    """The largest norm of the Jacobians at random points of the ball, half of them on its surface or at corners."""
    step = normal(seed, count, *graph.input_shape)
    if norm == "inf":
        step[: count // 2] = step[: count // 2].sign()
        step = radius * step.clamp(-1.0, 1.0)
    else:
        length = step.flatten(1).norm(dim=1).view(-1, *[1] * len(graph.input_shape))
        shrink = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        shrink[: count // 2] = 1.0
        step = radius * step / length * shrink.view(length.shape)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: graph(z[None])[0]))
    return float(operator_norm(jacobian(center + step).flatten(2), p, q).max())
