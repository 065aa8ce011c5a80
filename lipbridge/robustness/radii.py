"""Certified radius and accuracy: how far an input may move before its class can change, proved.

If every difference f_y - f_j of the label's output and a rival's has Lipschitz constant at most L_j in l_p, the class
y is safe on the ball of radius min_j (f_y - f_j)(x) / L_j around x. Margins are float64 values minus a running error
bound, constants are rounded up and quotients down, so the radius holds for the real-number function of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lipbridge import checks
from lipbridge.constants.layer_constants import output_constants
from lipbridge.errors import InvalidArgument, NumericalFailure
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense
from lipbridge.linalg import vector_norm
from lipbridge.rigor.running_error import Enclosure, enclose
from lipbridge.rounding.outward import scaled_up
from lipbridge.rounding.scalars import UNIT, gamma
from lipbridge.vocabulary import Norm, as_norm, dual

#: Points are taken together up to so many numbers in the widest layer; more take memory and no less time.
NUMBERS = 2**21


@dataclass(frozen=True)
class CertifiedAccuracy:
    """Shares of ``n`` points: classified right, and certified right on the whole closed l_norm ball of ``radius``."""

    radius: float
    norm: Norm
    clean_accuracy: float
    certified_accuracy: float
    n: int


def certified_radii(network: Graph | nn.Module, inputs: Tensor, labels: Tensor, norm: Norm | str = 2) -> Tensor:
    """The proved l_p radius around each input inside which the predicted class stays the label.

    The class is right at every point closer than the radius. A radius is 0 where the class is wrong or tied (or right
    by less than rounding), and infinite where no rival can ever win.

    Args:
        network: a Graph, or a module that :func:`lipbridge.capture` can read, with at least two outputs.
        inputs: ``(n, *input_shape)``, any floating dtype; read as float64.
        labels: ``(n,)`` whole numbers below the number of outputs.
        norm: p of the balls, 1, 2 or "inf".

    Returns:
        ``(n,)`` float64, on the device of the network's weights.

    Raises:
        InvalidArgument: for shapes or labels that do not fit.
        NumericalFailure: if weights or inputs hold NaN or infinite entries, or float64 overflows.
        UnsupportedOperation: for a layer whose rounding or constant is not known.

    Source: Tsuzuku et al. 2018 (margins), with pairwise constants of the last layer's row differences.
    Law: no perturbation of smaller norm changes the class, in exact arithmetic.
    """
    graph, inputs, labels = _checked(network, inputs, labels)
    constants = pairwise_constants(graph, as_norm(norm))
    radii: list[Tensor] = []
    chunk = _chunk(graph)
    for start in range(0, len(inputs), chunk):
        x = inputs[start : start + chunk].to(torch.float64)
        radii.append(radii_of(enclose(graph, x), labels[start : start + chunk], constants))
    found = torch.cat(radii) if radii else inputs.new_zeros(0, dtype=torch.float64)
    if bool(torch.isnan(found).any()):
        raise NumericalFailure(
            "A margin is NaN: inputs or weights hold NaN or infinite entries, or float64 overflowed."
        )
    return found


def certified_accuracy(
    network: Graph | nn.Module, inputs: Tensor, labels: Tensor, radii: Sequence[float], norm: Norm | str = 2
) -> list[CertifiedAccuracy]:
    """The share of inputs whose class is certified on the closed ball of each radius, one row a radius.

    A point counts at radius r if its certified radius is above r. Arguments and errors are those of
    :func:`certified_radii`; ``radii`` are finite and at least 0.

    Law: never rises with the radius, never above the clean accuracy.
    """
    words = "be finite numbers of at least 0, in a list"
    given = cast(object, radii)
    items = checks.tensor(cast(object, given), "radii").flatten() if isinstance(given, Tensor | np.ndarray) else given
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidArgument("radii", words, checks.told(items))
    radii = [checks.number(radius, "radii", words) for radius in cast(Iterable[object], items)]
    for radius in radii:
        if radius < 0.0:
            raise InvalidArgument("radii", "be finite and at least 0", radius)
    graph, inputs, labels = _checked(network, inputs, labels)
    n = len(inputs)
    if n == 0:
        raise InvalidArgument("inputs", "hold at least one point", tuple(inputs.shape))
    found = certified_radii(graph, inputs, labels, norm)
    clean = float(_classified(graph, inputs, labels)) / n
    return [
        CertifiedAccuracy(float(radius), as_norm(norm), clean, float((found > radius).sum()) / n, n) for radius in radii
    ]


def pairwise_constants(graph: Graph, norm: Norm) -> Tensor:
    """``(K, K)`` float64: proved upper bounds of the l_p Lipschitz constants of all differences f_i - f_j.

    Everything before the last Dense is bounded from l_p to l_r by the trivial bound, the difference of two rows of
    the last weight by its dual norm; the smallest product over r is taken. A network that ends otherwise counts as
    followed by the identity.
    """
    last = graph.nodes[-1]
    if isinstance(last, Dense) and len(last.shape) == 1:
        W, source = last.weight, last.inputs[0]
    else:
        (K,) = graph.output_shape
        W, source = torch.eye(K, dtype=torch.float64, device=graph.device), len(graph.nodes) - 1
    body = replace(graph, nodes=graph.nodes[: source + 1])
    hidden = output_constants(body, norm, "inf")
    return difference_norms_up(W, dict(hidden))


def difference_norms_up(W: Tensor, hidden: dict[Norm, float]) -> Tensor:
    """``(K, K)``: for each pair of rows of ``W`` the smallest ``hidden[r] * ||W_i - W_j||_dual(r)``, rounded up.

    Batched over rivals, row by row; runs on any device, without waiting for it.
    """
    n = W.shape[1]
    slack = 1.0 + 8.0 * gamma(n + 16)
    # Sizes and constants go in as mantissas and exponents: no product of two numbers underflows or overflows by itself.
    parts: list[tuple[Norm, tuple[float, int]]] = [(r, math.frexp(constant)) for r, constant in hidden.items()]
    rows: list[Tensor] = []
    for row in W:
        # Each entry carries one rounding. Only a difference that overflows is halved, which takes nothing from it.
        difference = row - W
        large = torch.isinf(difference).any(dim=1)
        difference = torch.where(large[:, None], 0.5 * row - 0.5 * W, difference)
        scale = difference.abs().amax(dim=1)
        unit = difference / torch.where(scale > 0, scale, 1.0)[:, None]
        mantissa, exponent = torch.frexp(scale)
        exponent = exponent.to(torch.int64) + large
        products = [
            scaled_up(vector_norm(unit, dual(r), dim=1) * mantissa * (part * slack), exponent + power)
            for r, (part, power) in parts
        ]
        rows.append(torch.stack(products).amin(dim=0))
    return torch.stack(rows)


def radii_of(outputs: Enclosure, labels: Tensor, constants: Tensor) -> Tensor:
    """Radii ``(n,)`` from enclosed outputs ``(n, K)``, labels ``(n,)`` and pairwise constants ``(K, K)``.

    NaN where an output or its error is not finite. Batched, on any device, without waiting for it.
    """
    f, e = outputs.value, outputs.error
    margins = margins_down(outputs, labels).clamp_min(0.0) * (1.0 - 4.0 * UNIT)
    divisors = constants[labels]
    quotients = torch.nextafter(margins / divisors, torch.zeros_like(margins))
    quotients = torch.where(divisors == 0, float("inf"), quotients)  # outputs that differ by a constant
    quotients = torch.where(margins > 0, quotients, 0.0)
    finite = (torch.isfinite(f) & torch.isfinite(e)).all(dim=1)
    rivals = torch.arange(f.shape[1], device=f.device) != labels[:, None]
    radii = torch.where(rivals, quotients, float("inf")).amin(dim=1)
    return torch.where(finite, radii, float("nan"))


def margins_down(outputs: Enclosure, labels: Tensor) -> Tensor:
    """``(n, K)``: lower bounds of the label's output less each other's, and of zero at the label itself."""
    f, e = outputs.value, outputs.error
    own, own_error = f.gather(1, labels[:, None]), e.gather(1, labels[:, None])
    # The three operations here round by at most 4 UNIT of the magnitudes together.
    slack = (e + own_error) * (1.0 + 4.0 * UNIT) + 4.0 * UNIT * (f.abs() + own.abs())
    return (own - f) - slack


def _chunk(graph: Graph) -> int:
    return max(1, NUMBERS // max(math.prod(node.shape) for node in graph.nodes))


def _classified(graph: Graph, inputs: Tensor, labels: Tensor) -> Tensor:
    """How many points are classified right; a tie counts as wrong."""
    right, chunk = torch.zeros((), dtype=torch.long, device=inputs.device), _chunk(graph)
    for start in range(0, len(inputs), chunk):
        f = graph(inputs[start : start + chunk].to(torch.float64))
        y = labels[start : start + chunk, None]
        right = right + (f.gather(1, y) > f.scatter(1, y, -float("inf")).amax(dim=1, keepdim=True)).sum()
    return right


def _checked(network: Graph | nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Graph, Tensor, Tensor]:
    inputs = checks.tensor(inputs, "inputs")
    if inputs.dtype is torch.bool or not inputs.ndim:
        raise InvalidArgument("inputs", "be numbers of shape (n, *input_shape)", checks.told(inputs))
    if not isinstance(network, Graph):
        from lipbridge.frontend.capture import capture

        checks.instance(network, nn.Module, "network", "be a Graph or a torch.nn.Module")
        try:
            network = capture(network)
        except InvalidArgument:  # it starts with a convolution, whose input's size only the data tell
            network = capture(network, tuple(inputs.shape[1:]))
    shape = network.output_shape
    if len(shape) != 1 or shape[0] < 2:
        raise InvalidArgument("network", "have at least two outputs, in one axis", shape)
    if tuple(inputs.shape[1:]) != network.input_shape:
        words = f"have shape (n, {', '.join(map(str, network.input_shape))}), as the network reads them"
        raise InvalidArgument("inputs", words, tuple(inputs.shape))
    labels = checks.integers(labels, "labels")
    if tuple(labels.shape) != (len(inputs),):
        raise InvalidArgument("labels", f"have shape ({len(inputs)},), one for each input", tuple(labels.shape))
    device = network.device
    labels = labels.to(device=device, dtype=torch.long)
    if len(labels) and not bool(((labels >= 0) & (labels < shape[0])).all()):
        wrong = labels[(labels < 0) | (labels >= shape[0])][0]
        raise InvalidArgument("labels", f"be at least 0 and below {shape[0]}, the number of outputs", int(wrong))
    return network, inputs.detach().to(device), labels
