"""What the audit asks: a problem with what is known of its answer, or a property with its verdict.

An :class:`Instance` knows a pair of inputs, and what it proves is computed in fractions; where the family's law gives
the constant itself, ``most`` is no less than it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipbridge.auditing.exactly import (
    Matrix,
    inside,
    jacobian,
    length,
    moved,
    norm_up,
    numbers,
    rows,
    values,
)
from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph
from lipbridge.linalg import eigenpairs, vector_norm
from lipbridge.problem.problem import Problem
from lipbridge.problem.property import Property, Verdict
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import NORMS, Norm, Quantity


@dataclass(frozen=True, eq=False)
class Instance:
    """A Problem whose answer is known.

    Attributes:
        name: tells it from the others.
        family: the family's name.
        problem: the network and the question.
        pair: ``(2, *input_shape)`` float64, two inputs; for the deviation the first is the ball's centre.
        least: what the pair proves, rounded down: the answer is at least so large.
        most: the answer is at most so large, by the family's law; None if that is not known.
    """

    name: str
    family: str
    problem: Problem
    pair: Tensor
    least: Fraction
    most: Fraction | None

    @property
    def asked(self) -> str:
        """The question in words."""
        return str(self.problem.question)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Whether a prediction holds all over a closed ball.

    Attributes:
        name, family: as of an Instance.
        graph: the network.
        center: ``(*input_shape)`` float64.
        label: the class of the centre.
        radius, norm: of the ball.
        holds: whether it does. If not, another output is the larger one at ``counterexample``, strictly.
        counterexample: ``(*input_shape)`` float64, in the ball.
    """

    name: str
    family: str
    graph: Graph
    center: Tensor
    label: int
    radius: float
    norm: Norm
    holds: bool
    counterexample: Tensor | None = None

    @property
    def asked(self) -> str:
        """The question in words."""
        return f"class {self.label}, l{self.norm} ball, radius {self.radius:g}"


@dataclass(frozen=True, eq=False)
class PropertyInstance:
    """A Property whose verdict is known.

    Attributes:
        name, family: as of an Instance.
        graph: the network.
        asked_property: the property.
        verdict: ``verified`` or ``falsified``.
        counterexample: ``(*input_shape)`` float64, an input that breaks it; None if there is none.
    """

    name: str
    family: str
    graph: Graph
    asked_property: Property
    verdict: Verdict
    counterexample: Tensor | None = None

    @property
    def asked(self) -> str:
        """The question in words."""
        return f"a property, {len(self.asked_property.cases)} case(s)"


#: Whatever can be asked.
AnyInstance = Instance | Prediction | PropertyInstance


def made(family: str, name: str, graph: Graph, question: Question, pair: Tensor, most: Fraction | None) -> Instance:
    """An Instance, with what its pair proves.

    Raises:
        InvalidArgument: if the pair proves nothing, lies outside the region, or contradicts the law.
    """
    problem = Problem(graph, question)
    least = proved_by(problem, pair)
    if not least > 0 or (most is not None and most < least):
        raise InvalidArgument("pair", f"prove something of {name} that its law allows", (float(least), most))
    return Instance(name, family, problem, pair, least, most)


def proved_by(problem: Problem, pair: Tensor) -> Fraction:
    """No more than the answer: the pair's quotient in fractions.

    Raises:
        InvalidArgument: if the inputs are equal, or outside the region.
    """
    x, y = pair[0], pair[1]
    region, p = problem.region, problem.input_norm
    change = moved(problem.graph, x, y, problem.output_norm)
    at_x, at_y = numbers(x), numbers(y)
    if region is not None:
        centers = [numbers(center) for center in region.centers]
        own = [center for center in centers if inside(at_y, center, region.radius, region.norm)]
        if problem.quantity is Quantity.DEVIATION:
            own = [center for center in own if center == at_x]
        if not any(inside(at_x, center, region.radius, region.norm) for center in own):
            raise InvalidArgument("pair", "lie in one of the balls", tuple(pair.shape))
        if problem.quantity is Quantity.DEVIATION:
            return change / Fraction(region.radius)
    between = length([a - b for a, b in zip(at_x, at_y, strict=True)], p, up=True)
    if not between:
        raise InvalidArgument("pair", "be two inputs", tuple(pair.shape))
    return change / between


def breaks(instance: Prediction, x: Tensor) -> bool:
    """Whether an input of the ball has another class for certain: an output above that of the label."""
    if not inside(numbers(x), numbers(instance.center), instance.radius, instance.norm):
        return False
    found = values(instance.graph, numbers(x))
    label = found[instance.label]
    return any(other.value - other.off > label.value + label.off for other in found)


def obeys(instance: PropertyInstance, x: Tensor) -> bool:
    """Whether an input obeys a case of the property, in fractions."""
    found = values(instance.graph, numbers(x))
    point = numbers(x)
    for case in instance.asked_property.cases:
        low, high = numbers(case.lower), numbers(case.upper)
        if not all(a <= t <= b for a, t, b in zip(low, point, high, strict=True)):
            continue
        limits = numbers(case.limits)
        for row, limit in zip(rows(case.rows), limits, strict=True):
            most = sum((w * t.value + abs(w) * t.off for w, t in zip(row, found, strict=True)), Fraction(0))
            if most > limit:
                break
        else:
            return True
    return False


def steepest(J: Matrix, p: Norm, q: Norm) -> Tensor:
    """A direction ``(n,)`` in which a matrix gains about as much as it can; largest entry 1."""
    biggest = max(abs(t) for row in J for t in row)
    A = torch.tensor([[float(t / biggest) for t in row] for row in J], dtype=torch.float64)
    candidates = torch.cat([torch.eye(A.shape[1], dtype=torch.float64), A.sign(), A, eigenpairs(A.T @ A)[1].T[-1:]])
    candidates = candidates[candidates.abs().amax(1) > 0]
    gains = vector_norm(candidates @ A.T, q, dim=1) / vector_norm(candidates, p, dim=1)
    best = candidates[int(gains.argmax())]
    return best / best.abs().max()


@dataclass(frozen=True, eq=False)
class Steep:
    """A network, and a point around which it is affine and as steep as anywhere, in every norm.

    Attributes:
        family, name: of the instances.
        graph: the network.
        base: ``(*input_shape)`` float64.
        reach: it is affine on the l_inf ball of this radius around the base.
        matrices: the law: no Jacobian has a larger norm than the largest of theirs; that at the base if not given.
        norms: those that are asked.
        local: whether balls are asked about.
        mixed: whether the constant is asked from l_1 to l_2 and l_inf, and from l_2 to l_inf, too.
    """

    family: str
    name: str
    graph: Graph
    base: Tensor
    reach: float
    matrices: Sequence[Matrix] = ()
    norms: Sequence[Norm] = NORMS
    local: bool = True
    mixed: bool = False

    def instances(self) -> Iterator[Instance]:
        """The constant everywhere; on balls of l_2 and l_inf the constant and the deviation."""
        J = jacobian(self.graph, self.base, 0.5 * self.reach)
        laws = list(self.matrices) or [J]
        mixed: tuple[tuple[Norm, Norm], ...] = ((1, 2), (1, "inf"), (2, "inf")) if self.mixed else ()
        for p, q in mixed:
            v = steepest(J, p, q).reshape(self.base.shape)
            pair = torch.stack([self.base, self.base + 0.5 * self.reach * v / _size(v, p)])
            question, most = Question.everywhere(p, q), max(norm_up(law, p, q) for law in laws)
            yield made(self.family, f"{self.name}-l{p}-l{q}", self.graph, question, pair, most)
        for p in self.norms:
            v = steepest(J, p, p).reshape(self.base.shape)
            pair = torch.stack([self.base, self.base + 0.5 * self.reach * v / _size(v, p)])
            most = max(norm_up(law, p, p) for law in laws)
            yield made(self.family, f"{self.name}-l{p}", self.graph, Question.everywhere(p), pair, most)
            if not self.local or p == 1:
                continue
            ball, own = Ball(self.base[None], self.reach, p), norm_up(J, p, p)
            name = f"{self.name}-l{p}-ball"
            yield made(self.family, name, self.graph, Question.on(ball, p), pair, own)
            far = torch.stack([self.base, self.base + self.reach * v / _size(v, p)])
            question = Question.on(ball, p, quantity=Quantity.DEVIATION)
            yield made(self.family, f"{name}-deviation", self.graph, question, far, own)


def _size(v: Tensor, norm: Norm) -> float:
    """A little above the norm of a direction, so that what is divided by it lies in the ball after rounding too."""
    return float(vector_norm(v)) * (1.0 + 2.0**-40) if norm == 2 else float(v.abs().max())


__all__ = ["AnyInstance", "Instance", "Prediction", "PropertyInstance", "Steep", "breaks", "made", "obeys", "proved_by"]
