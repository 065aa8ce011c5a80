"""Analytic constructions: which units can be active together is known, and so is the constant.

Of units on one line a bound that forgets which of them exclude each other is loose; one that relates units in a wrong
way, or a search for the worst pattern that stops early, is unsound. Kinds of constructions as in VeriStressGT
(mutually exclusive patterns, corners, paired biases), derived anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from lipbridge.auditing.exactly import Matrix, length, numbers, rows, solved
from lipbridge.auditing.instance import Instance, Prediction, PropertyInstance, Steep, made
from lipbridge.auditing.networks import chain, matrix
from lipbridge.linalg import spectral_norm
from lipbridge.problem.property import Case, Property, Verdict
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import Norm, Quantity

#: A first and a last layer (whole numbers) on which a search from all units active, unit by unit, ends too low.
TRAPS: dict[str, tuple[list[list[float]], list[list[float]]]] = {
    "three": ([[-3.0, 0.0, 1.0], [4.0, 4.0, 0.0], [4.0, 0.0, 2.0]], [[2.0, -1.0, 3.0]]),
    "four": (
        [[-1.0, 3.0, 0.0, 3.0], [2.0, 0.0, 2.0, -3.0], [4.0, -2.0, 2.0, 4.0], [-2.0, 4.0, 3.0, 2.0]],
        [[3.0, 2.0, 0.0, -1.0]],
    ),
    "five": (
        [
            [0.0, -2.0, 4.0, -1.0, -1.0],
            [0.0, 4.0, -2.0, 1.0, 4.0],
            [-3.0, 2.0, 0.0, 4.0, 3.0],
            [4.0, 3.0, -4.0, 2.0, -2.0],
            [-3.0, 4.0, -3.0, 3.0, -4.0],
        ],
        [[3.0, -3.0, 3.0, 3.0, 2.0], [2.0, -2.0, -2.0, 1.0, -2.0]],
    ),
}


def exclusive_patterns(seed: int) -> Iterator[Instance]:
    """Sums of relus of which few are active at once, so that the slopes never add up."""
    family = "exclusive-patterns"
    # sum c_k relu(x - k) with c = 2, -4, 4, -4, ...: the slope is 0, 2, -2, 2, ...
    for count in (4, 9):
        weight, bias = [[1.0]] * count, [-float(k) for k in range(count)]
        out = [[2.0, *(4.0 * (-1) ** k for k in range(1, count))]]
        yield from Steep(
            family, f"tents-{count}", chain((weight, bias), "relu", (out, None)), _at(0.5), 0.25
        ).instances()
    # relu(x - 1) and relu(-x - 1) are never active together: 4 is the constant, not 5 or 7.
    graph = chain(([[1.0], [-1.0]], [-1.0, -1.0]), "relu", ([[3.0, 0.0], [0.0, 4.0]], None))
    yield from Steep(family, "never-together", graph, _at(-2.0), 0.5).instances()
    # The same of a hidden unit: relu(2 - |x|) is below 2 and relu(|x| - 3) is above 0 nowhere together.
    absolute = (([[1.0], [-1.0]], None), "relu", ([[-1.0, -1.0], [1.0, 1.0]], [2.0, -3.0]), "relu")
    yield from Steep(family, "inside-or-outside", chain(*absolute, ([[1.5, 1.0]], None)), _at(1.0), 0.5).instances()
    # Three directions, each with one of two patterns: 3 in one entry, 1 in the others.
    weight = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0) * matrix([1.0, -1.0] * 3)[:, None]
    out = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 1) * matrix([3.0, 1.0] * 3)
    graph = chain((weight, [-1.0] * 6), "relu", (out, None))
    yield from Steep(family, "three-directions", graph, matrix([3.0, 3.0, 3.0]), 1.0).instances()


def all_patterns(seed: int) -> Iterator[Instance]:
    """One hidden layer without bias and a first weight W with an inverse: every pattern s of active units is reached.

    The constant is the largest norm of ``V diag(s) W`` over all 2^h of them, found by looking at each. The numbers are
    such that changing one unit at a time, from all active, ends at a smaller one.
    """
    for name, (first, last) in TRAPS.items():
        W, V = matrix(first), matrix(last)
        patterns = matrix(list(product((0.0, 1.0), repeat=len(W))))
        norms: tuple[Norm, ...] = (2,) if len(V) > 1 else (2, "inf")
        for norm in norms:
            gains = torch.stack([_norm(V * s @ W, norm) for s in patterns])
            s = patterns[int(gains.argmax())]
            base = matrix([float(t) for t in solved(rows(W), numbers(2.0 * s - 1.0))])
            reach = float(0.5 / W.abs().sum(1).max())
            law: list[Matrix] = [rows(V * s @ W)]
            near = gains >= gains.max() * (1.0 - 1e-6)
            law += [rows(V * other @ W) for other in patterns[near]]
            graph = chain((W, None), "relu", (V, None))
            own = Steep("all-patterns", f"{name}-{norm}", graph, base, reach, law, (norm,), local=False)
            yield from own.instances()


def corners(seed: int) -> Iterator[Instance | Prediction | PropertyInstance]:
    """``relu(s.x - (n - e))`` is above 0 in one corner of the cube alone: what does not look there sees a constant."""
    family = "corners"
    for n, e in ((2, 0.25), (4, 0.125), (9, 0.0625)):
        s = matrix([(-1.0) ** (i * (i + 1) // 2) for i in range(n)])
        graph = chain((s[None], [e - n]), "relu", ([[1.0], [-1.0]], [0.0, e]))
        ball = Ball(torch.zeros(1, n, dtype=torch.float64), 1.0, "inf")
        inner = torch.stack([s, s * (1.0 - e / (2 * n))])
        far = torch.stack([torch.zeros_like(s), s])
        # Both outputs move alike, so in l_inf as much as one of them.
        slope, most = Question.on(ball), length(numbers(s), 1, up=True)
        yield made(family, f"corner-{n}-linf-ball", graph, slope, inner, most)
        question = Question.on(ball, quantity=Quantity.DEVIATION)
        yield made(family, f"corner-{n}-linf-ball-deviation", graph, question, far, numbers(matrix([e]))[0])
        yield made(family, f"corner-{n}-linf", graph, Question.everywhere("inf"), inner, most)
        yield from _asked_at_a_corner(family, f"corner-{n}", s, e)
    # In l_2 the ball's extreme point has entries 1/2.
    graph = chain(([[1.0] * 4], [0.0625 - 2.0]), "relu", ([[1.0]], None))
    half = torch.full((4,), 0.5, dtype=torch.float64)
    ball = Ball(torch.zeros(1, 4, dtype=torch.float64), 1.0, 2)
    yield made(family, "cap-l2-ball", graph, Question.on(ball), torch.stack([half, half * (1 - 1 / 128)]), Fraction(2))
    question, pair = Question.on(ball, quantity=Quantity.DEVIATION), torch.stack([torch.zeros_like(half), half])
    yield made(family, "cap-l2-ball-deviation", graph, question, pair, numbers(matrix([0.0625]))[0])
    classes = chain(([[1.0] * 4], [0.0625 - 2.0]), "relu", ([[0.0], [1.0]], [0.03125, 0.0]))
    yield Prediction("cap-l2-class", family, classes, torch.zeros_like(half), 0, 1.0, 2, False, half)
    classes = chain(([[1.0] * 4], [0.0625 - 2.0]), "relu", ([[0.0], [1.0]], [0.125, 0.0]))
    yield Prediction("cap-l2-class-held", family, classes, torch.zeros_like(half), 0, 1.0, 2, True)


def _asked_at_a_corner(family: str, name: str, s: Tensor, e: float) -> Iterator[Prediction | PropertyInstance]:
    """Class 0 has a constant, class 1 what is above zero in the corner."""
    zero = torch.zeros_like(s)
    for word, level, corner in (("lost", 0.5 * e, s), ("held", 2.0 * e, None)):
        graph = chain((s[None], [e - len(s)]), "relu", ([[0.0], [1.0]], [level, 0.0]))
        case = Case(-torch.ones_like(s), torch.ones_like(s), matrix([[1.0, -1.0]]), matrix([0.0]))
        verdict = Verdict.VERIFIED if corner is None else Verdict.FALSIFIED
        yield PropertyInstance(f"{name}-{word}", family, graph, Property((case,)), verdict, corner)
        yield Prediction(f"{name}-class-{word}", family, graph, zero, 0, 1.0, "inf", corner is None, corner)


def paired_biases(seed: int) -> Iterator[Instance | PropertyInstance]:
    """``relu(z + b) - relu(z - b)``: units with one argument and two biases, weighted against each other.

    Multipliers that relate different units, as the published mode "network" of LipSDP, are unsound on the first.
    """
    family = "paired-biases"
    one = ([[1.0], [1.0]], [1.0, -1.0]), "relu"
    yield from Steep(family, "pair", chain(*one, ([[1.0, -1.0]], None)), _at(0.0), 0.5).instances()
    n = 4
    weight, bias = [[1.0]] * (2 * n), [b for k in range(1, n + 1) for b in (float(k), -float(k))]
    graph = chain((weight, bias), "relu", ([[1.0, -1.0] * n], None))
    yield from Steep(family, "nested", graph, _at(0.0), 0.5).instances()
    eye = torch.eye(3, dtype=torch.float64)
    graph = chain((torch.cat([eye, eye]), [1.0] * 3 + [-1.0] * 3), "relu", (torch.cat([eye, -eye], 1), None))
    yield from Steep(family, "three-pairs", graph, torch.zeros(3, dtype=torch.float64), 0.5).instances()
    graph = chain(*one, ([[1.0, -1.0]], [-1.0]), "relu", ([[1.0]], None))
    yield from Steep(family, "pair-then-relu", graph, _at(0.5), 0.25).instances()
    # relu(x + 1) - relu(x - 1) <= 2, with equality from x = 1 on.
    for word, level, x in (("below", 2.0 + 2.0**-10, None), ("equal", 2.0, 3.0), ("above", 2.0 - 2.0**-10, 3.0)):
        graph = chain(*one, ([[0.0, 0.0], [1.0, -1.0]], [level, 0.0]))
        case = Case(_at(-4.0), _at(4.0), matrix([[1.0, -1.0]]), matrix([0.0]))
        verdict = Verdict.VERIFIED if x is None else Verdict.FALSIFIED
        known = None if x is None else _at(x)
        yield PropertyInstance(f"pair-{word}", family, graph, Property((case,)), verdict, known)


def _at(x: float) -> Tensor:
    return matrix([x])


def _norm(J: Tensor, norm: Norm) -> Tensor:
    return spectral_norm(J) if norm == 2 else J.abs().sum(1).max()


__all__ = ["all_patterns", "corners", "exclusive_patterns", "paired_biases"]
