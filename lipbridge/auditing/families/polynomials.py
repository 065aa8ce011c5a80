"""Networks that are polynomials at the dyadic points: x^2 by sums of sawtooths, whose slopes are known one by one.

With the tent g(x) = 2 relu(x) - 4 relu(x - 1/2) + 2 relu(x - 1) and g_s = g(g(...)), s times, the network
f_m(x) = x - sum g_s(x) / 4^s, s <= m, is x^2 at the points k / 2^m of [0, 1], straight between them, and x outside
(Yarotsky 2017). Its slope before (k + 1) / 2^m is (2 k + 1) / 2^m, so that the largest is 2 - 2^-m.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lipbridge.auditing.exactly import Matrix, numbers
from lipbridge.auditing.instance import Instance, PropertyInstance, Steep
from lipbridge.auditing.networks import Layer, chain, matrix
from lipbridge.graph.graph import Graph
from lipbridge.problem.property import Case, Property, Verdict

TENT = [2.0, -4.0, 2.0]
SHIFTS = [0.0, -0.5, -1.0]


def _square_layers(m: int, inputs: int, weights: list[float]) -> list[Layer]:
    """Layers of ``sum of weight * f_m(x_i)``: for each input three units of the tent, two of the sum so far."""
    place = torch.eye(inputs, dtype=torch.float64)

    def each(part: list[list[float]]) -> Tensor:
        return torch.kron(place, matrix(part))

    first = [[1.0], [1.0], [1.0], [1.0], [-1.0]]
    layers: list[Layer] = [(each(first), [*SHIFTS, 0.0, 0.0] * inputs), "relu"]
    for s in range(1, m):
        total = [-t / 4**s for t in TENT] + [1.0, -1.0]
        part = [[*TENT, 0.0, 0.0]] * 3 + [total, [-t for t in total]]
        layers += [(each(part), [*SHIFTS, 0.0, 0.0] * inputs), "relu"]
    last = [-t / 4**m for t in TENT] + [1.0, -1.0]
    layers.append((torch.kron(matrix([weights]), matrix([last])), None))
    return layers


def square(m: int, inputs: int = 1) -> Graph:
    """The sum of the squares of the inputs, at dyadic points of [0, 1]."""
    return chain(*_square_layers(m, inputs, [1.0] * inputs))


def sawtooth(m: int) -> Graph:
    """``g_m``: 2^(m - 1) teeth on [0, 1]."""
    layers: list[Layer] = []
    for s in range(m):
        weight = [[1.0]] * 3 if s == 0 else [TENT] * 3
        layers += [(weight, SHIFTS), "relu"]
    return chain(*layers, ([TENT], None))


def polynomials(seed: int) -> Iterator[Instance | PropertyInstance]:
    """Squares, sums of them, and sawtooths of slope 2^m."""
    family = "polynomials"
    for m in (1, 3, 5):
        base, reach = 1.0 - 0.5**m / 2, 0.5**m / 4
        yield from Steep(family, f"square-{m}", square(m), matrix([base]), reach).instances()
    for m, n in ((2, 2), (3, 3)):
        base, reach = 1.0 - 0.5**m / 2, 0.5**m / 4
        yield from Steep(family, f"squares-{m}-{n}", square(m, n), matrix([base] * n), reach).instances()
    for m in (2, 4):
        reach = 0.5**m / 4
        graph = sawtooth(m)
        law: Matrix = [[numbers(matrix([2.0**m]))[0]]]
        yield from Steep(family, f"sawtooth-{m}", graph, matrix([0.5**m / 2]), reach, [law]).instances()
    # x - f_m(x) is at most 1/4, and so large at 1/2.
    for word, level, x in (("below", 0.25 + 2.0**-12, None), ("equal", 0.25, 0.5), ("above", 0.25 - 2.0**-12, 0.5)):
        graph = _gap(3, level)
        case = Case(matrix([0.0]), matrix([1.0]), matrix([[1.0, -1.0]]), matrix([0.0]))
        verdict = Verdict.VERIFIED if x is None else Verdict.FALSIFIED
        known = None if x is None else matrix([x])
        yield PropertyInstance(f"gap-{word}", family, graph, Property((case,)), verdict, known)


def _gap(m: int, level: float) -> Graph:
    """Outputs ``(level, x - f_m(x))``: x goes through a further unit of each layer, since it is not negative."""
    found: list[Layer] = []
    for place, layer in enumerate(_square_layers(m, 1, [1.0])):
        if isinstance(layer, str):
            found.append(layer)
            continue
        W, b = matrix(layer[0]), layer[1]
        if place:
            W = torch.cat([W, torch.zeros(len(W), 1, dtype=torch.float64)], 1)
        carried = torch.zeros(1, W.shape[1], dtype=torch.float64)
        carried[0, -1] = 1.0
        if b is None:
            found.append((torch.cat([torch.zeros_like(carried), carried - W]), [level, 0.0]))
        else:
            found.append((torch.cat([W, carried]), torch.cat([matrix(b), matrix([0.0])])))
    return chain(*found)


__all__ = ["polynomials", "sawtooth", "square"]
