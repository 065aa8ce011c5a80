"""Two copies of a network as one: a Lipschitz bound as a question of a pair, for verifiers of single networks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.activations.registry import activation
from lipbridge.errors import InvalidArgument, UnsupportedProblem
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.graph.nodes import Concat, Dense, Elementwise, Input, Node, Reshape
from lipbridge.vocabulary import Norm

#: Outputs at most for l_1: there is a number for each of their signs.
MOST_OUTPUTS = 8


def twin(graph: Graph, constant: float, norm: Norm) -> Graph:
    """The network of a pair ``(x, d)``, flattened and joined, with ``g = f(x + d) - f(x)``.

    * norm inf: outputs ``(g, -g, L d, -L d)``: the bound L is broken where an entry of the first half is above all of
      the second half.
    * norm 1: ``s . g - L |d|_1`` for all signs s, the first one of the last output varying slowest: L is broken where
      one is above zero.

    Nothing is rounded: the weights that are added hold zero, one, minus one and L.

    Args:
        graph: f, with inputs of n numbers and m outputs.
        constant: L, above 0 and finite.
        norm: inf or 1.

    Raises:
        InvalidArgument: for another norm.
        UnsupportedProblem: in l_1 for more than eight outputs.
    """
    if norm == 2:
        raise InvalidArgument("norm", "be 1 or inf: l_2 is not piecewise linear", norm)
    graph = with_axes(graph)
    n, m = math.prod(graph.input_shape), math.prod(graph.output_shape)
    if norm == 1 and m > MOST_OUTPUTS:
        raise UnsupportedProblem(f"A pair in l_1 needs 2^{m} outputs: at most {MOST_OUTPUTS} are taken.")
    one, none = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    nodes: list[Node] = [Input("pair", (), (2 * n,))]

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    def copied(name: str, weight: Tensor) -> int:
        """A copy of f at a linear map of the pair."""
        start = add(Dense(name, (0,), (n,), weight.to(graph.device)))
        places = {0: add(Reshape(name, (start,), graph.input_shape))}
        for index, node in enumerate(graph.nodes[1:], start=1):
            places[index] = add(replace(node, inputs=tuple(places[i] for i in node.inputs)))
        return add(Reshape(name, (places[len(graph.nodes) - 1],), (m,)))

    both = [copied("f(x + d)", torch.cat([one, one], 1)), copied("f(x)", torch.cat([one, none], 1))]
    d = add(Dense("d", (0,), (n,), torch.cat([none, one], 1).to(graph.device)))
    if norm == 1:
        d = add(Elementwise("|d|", (d,), (n,), activation("abs")))
    joined = add(Concat("both", (*both, d), (2 * m + n,)))
    matrix = (_sides(n, m, constant) if norm == "inf" else _signs(n, m, constant)).to(graph.device)
    add(Dense("sides", (joined,), (len(matrix),), matrix))
    return Graph(tuple(nodes), f"pairs of {graph.name}")


def signs(m: int) -> list[tuple[float, ...]]:
    """All signs of m numbers, in the order of :func:`twin`'s outputs in l_1."""
    return list(itertools.product((1.0, -1.0), repeat=m))


def _sides(n: int, m: int, constant: float) -> Tensor:
    g = torch.cat([torch.eye(m), -torch.eye(m), torch.zeros(m, n)], 1)
    d = torch.cat([torch.zeros(n, 2 * m), torch.eye(n)], 1).double() * constant
    return torch.cat([g.double(), -g.double(), d, -d])


def _signs(n: int, m: int, constant: float) -> Tensor:
    rows = torch.tensor(signs(m), dtype=torch.float64)
    return torch.cat([rows, -rows, torch.full((len(rows), n), -constant, dtype=torch.float64)], 1)


__all__ = ["signs", "twin"]
