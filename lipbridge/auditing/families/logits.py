"""Outputs that are equal, or nearly so, and biases of 1e8 that cancel: answers that hang on the last digits."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from lipbridge.auditing.instance import Instance, Prediction, PropertyInstance, Steep
from lipbridge.auditing.networks import chain, matrix, whole
from lipbridge.graph.graph import Graph
from lipbridge.problem.property import Case, Property, Verdict

#: The size of what tells two outputs apart.
HAIR = 2.0**-40


def _property(family: str, name: str, graph: Graph, low: Tensor, high: Tensor, x: Tensor | None) -> PropertyInstance:
    """That output 0 is above output 1 all over a box; x is where it is not."""
    rows = torch.zeros(1, graph.output_shape[0], dtype=torch.float64)
    rows[0, 0], rows[0, 1] = 1.0, -1.0
    verdict = Verdict.VERIFIED if x is None else Verdict.FALSIFIED
    return PropertyInstance(name, family, graph, Property((Case(low, high, rows, matrix([0.0])),)), verdict, x)


def tied_logits(seed: int) -> Iterator[Instance | Prediction | PropertyInstance]:
    """Outputs that are equal everywhere, or apart by 2^-40 one way or the other. A tie breaks a property."""
    family = "tied-logits"
    generator = random.Random(1000 * seed + 5)
    first, bias = whole(generator, 6, 3, 0, 4), whole(generator, 1, 6, 0, 2)[0]
    row = whole(generator, 1, 6, 1, 4)
    ones = torch.ones(3, dtype=torch.float64)
    graph = chain((first, bias), "relu", (torch.cat([row, row]), None))
    yield from Steep(family, "twins", graph, ones, 0.5).instances()
    yield _property(family, "twins-property", graph, -ones, ones, 0.5 * ones)
    # Both of two classes, and what only the second has: HAIR (relu(x_0) - 1/2).
    for word, level, x in (("lost", 0.5, matrix([0.75, 0.0, 0.0])), ("held", 1.5, None)):
        weight = torch.cat([first, matrix([[1.0, 0.0, 0.0]])])
        hair = matrix([[0.0], [HAIR]])
        last = torch.cat([torch.cat([row, row]), hair], 1)
        graph = chain((weight, torch.cat([bias, matrix([0.0])])), "relu", (last, [HAIR * level, 0.0]))
        zero = torch.zeros(3, dtype=torch.float64)
        yield Prediction(f"hair-{word}-class", family, graph, zero, 0, 1.0, "inf", x is None, x)
        yield Prediction(f"hair-{word}-class-l2", family, graph, zero, 0, 1.0, 2, x is None, x)
        yield _property(family, f"hair-{word}", graph, -ones, ones, x)
    # The tie is at one input alone: relu(x) + relu(-x) against zero.
    graph = chain(([[1.0], [-1.0]], None), "relu", ([[1.0, 1.0], [0.0, 0.0]], None))
    yield _property(family, "one-tie", graph, matrix([-1.0]), matrix([1.0]), matrix([0.0]))
    yield _property(family, "no-tie", graph, matrix([2.0**-20]), matrix([1.0]), None)


def cancelling_biases(seed: int) -> Iterator[Instance | Prediction | PropertyInstance]:
    """``relu(x + B) - B`` with B up to 2^53, which is x where it matters, and windows far out."""
    family = "cancelling-biases"
    for word, B in (("1e8", 1e8), ("2^27", 2.0**27), ("2^53", 2.0**53)):
        graph = chain(([[1.0, 1.0]], [B]), "relu", ([[1.0]], [-B]))
        yield from Steep(family, f"shift-{word}", graph, matrix([1.0, 1.0]), 0.5).instances()
        # Output 0 is x, output 1 is a half.
        classes = chain(([[1.0]], [B]), "relu", ([[1.0], [0.0]], [-B, 0.5]))
        one = matrix([1.0])
        yield Prediction(f"shift-{word}-class-held", family, classes, one, 0, 0.25, "inf", True)
        yield Prediction(f"shift-{word}-class-lost", family, classes, one, 0, 0.75, "inf", False, matrix([0.375]))
        held, lost = (matrix([0.75]), matrix([1.25])), (matrix([0.25]), matrix([1.75]))
        yield _property(family, f"shift-{word}-held", classes, *held, None)
        yield _property(family, f"shift-{word}-lost", classes, *lost, matrix([0.375]))
    for word, B in (("1e6", 1e6), ("2^27", 2.0**27)):
        graph = chain(([[1.0], [1.0]], [B + 1.0, B]), "relu", ([[3.0, -3.0]], None))
        yield from Steep(family, f"window-{word}", graph, matrix([-B - 0.5]), 0.25).instances()


__all__ = ["cancelling_biases", "tied_logits"]
