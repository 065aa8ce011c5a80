"""Counterexamples that were planted where attacks do not find them.

The idea is that of SoundnessBench (Zhou et al. 2024), done anew: a network is trained for two ends at once, that one
input in a ball has another class, and that whatever an attack finds in the ball has not. What the training reaches is
not relied on: the planted input is looked at in fractions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lipbridge.auditing.exactly import numbers
from lipbridge.auditing.instance import Instance, Prediction, PropertyInstance, breaks, made
from lipbridge.auditing.networks import chain
from lipbridge.errors import NumericalFailure
from lipbridge.graph.graph import Graph
from lipbridge.problem.property import Case, Property, Verdict
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import Quantity

#: Inputs and units of each of two hidden layers; steps of training, points of its attack and how far they move.
SIZES = ((4, 16), (8, 32))
STEPS, POINTS = 150, 64
ATTACK = (1.0, 0.5, 0.25, 0.1, 0.05)
RADIUS = 0.5
#: In parts of the radius: how near the planted input, in l_1, another class may be found, and how near an attack may
#: come, in l_inf.
REACH, NEAR = 0.3, 0.3
#: The margins that are trained: of the planted input, and of what an attack finds.
PLANTED, OTHERS = 0.25, 0.5


def trained(inputs: int, width: int, seed: int) -> tuple[Graph, Tensor]:
    """A network of two outputs, and the input of the cube of RADIUS around zero at which output 1 is the larger.

    The training starts from random weights and one unit of the second layer that is active near the planted input
    alone: ``relu(REACH - |x - planted|_1)``.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = [(width, inputs), (width, width), (2, width)]
    weights = [normal(m, n) * (0.5 / n) ** 0.5 for m, n in sizes]
    biases = [0.1 * normal(m) for m, _ in sizes]
    hidden = RADIUS * torch.randint(-12, 13, (inputs,), generator=generator).double() / 16
    eye = torch.eye(inputs, dtype=torch.float64)
    weights[0][: 2 * inputs], biases[0][: 2 * inputs] = torch.cat([eye, -eye]), torch.cat([-hidden, hidden])
    weights[1][0], biases[1][0] = 0.0, REACH * RADIUS
    weights[1][0, : 2 * inputs] = -1.0
    weights[2][:, 0], biases[2][0] = torch.tensor([0.0, 3.0 / REACH / RADIUS]).double(), 1.0
    parameters = [t.requires_grad_() for t in (*weights, *biases)]
    optimiser = torch.optim.Adam(parameters, lr=2e-3)

    def margin(x: Tensor) -> Tensor:
        """Output 0 less output 1."""
        for W, b in zip(weights[:-1], biases[:-1], strict=True):
            x = torch.relu(x @ W.T + b)
        y = x @ weights[-1].T + biases[-1]
        return y[:, 0] - y[:, 1]

    with torch.enable_grad():
        for step in range(STEPS):
            x = RADIUS * (2.0 * torch.rand(POINTS, inputs, generator=generator, dtype=torch.float64) - 1.0)
            x[::2] = RADIUS * x[::2].sign()
            for rate in ATTACK:
                x = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(margin(x).sum(), x)
                x = (x - rate * RADIUS * slope.sign()).clamp(-RADIUS, RADIUS).detach()
            near = (x - hidden).abs().amax(1) < NEAR * RADIUS  # there no attack can be kept away
            x = torch.cat([x[~near], torch.zeros(1, inputs, dtype=torch.float64)])
            loss = (PLANTED + margin(hidden[None])).relu().sum() * (1.0 + step / STEPS)
            loss = loss + (OTHERS - margin(x)).relu().mean() * 4.0
            optimiser.zero_grad()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]  # torch does not say what it takes
            optimiser.step()  # pyright: ignore[reportUnknownMemberType]
    rounded = [t.detach().float().double() for t in parameters]
    W, b = rounded[:3], rounded[3:]
    return chain((W[0], b[0]), "relu", (W[1], b[1]), "relu", (W[2], b[2])), hidden


def planted(seed: int) -> Iterator[Instance | Prediction | PropertyInstance]:
    """Predictions that do not hold, properties that are broken, and what the planted input proves of the deviation."""
    family = "planted"
    for inputs, width in SIZES:
        for attempt in range(5):
            graph, hidden = trained(inputs, width, 100 * seed + attempt)
            zero = torch.zeros(inputs, dtype=torch.float64)
            name = f"planted-{inputs}-{width}"
            own = Prediction(f"{name}-class", family, graph, zero, 0, RADIUS, "inf", False, hidden)
            if breaks(own, hidden) and float(graph(zero[None])[0].diff()) < 0:
                break
        else:
            raise NumericalFailure(f"No counterexample could be planted in {family} {inputs}-{width}.")
        yield own
        box = torch.full_like(zero, RADIUS)
        rows = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        asked = Property((Case(-box, box, rows, torch.zeros(1)),))
        yield PropertyInstance(f"{name}-property", family, graph, asked, Verdict.FALSIFIED, hidden)
        difference = graph.margins(0)
        pair, ball = torch.stack([zero, hidden]), Ball(zero[None], RADIUS, "inf")
        question = Question.on(ball, quantity=Quantity.DEVIATION)
        yield made(family, f"{name}-linf-ball-deviation", difference, question, pair, None)
        yield made(family, f"{name}-linf-ball", difference, Question.on(ball), pair, None)
        far = float(sum(t * t for t in numbers(hidden))) ** 0.5 * (1.0 + 2.0**-30)
        yield made(family, f"{name}-l2-ball", difference, Question.on(Ball(zero[None], far, 2)), pair, None)


__all__ = ["planted", "trained"]
