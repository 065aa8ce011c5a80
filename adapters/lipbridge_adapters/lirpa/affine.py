"""Sums of linear maps of earlier values: what a network is made of between two nonlinear functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge_adapters.lirpa.kernel import Kernel, Shape, channel_factors, pointwise

#: A matrix, a vector that stands for a diagonal matrix, or a convolution.
Weight = Tensor | Kernel


@dataclass(frozen=True, eq=False)
class Affine:
    """``constant + sum of weight @ signal`` over signals by index."""

    terms: dict[int, Weight]
    constant: Tensor

    @property
    def mixing(self) -> bool:
        """Whether a weight is more than a factor of each coordinate, or a mixture of the channels of each place."""
        return any(w.ndim > 1 if isinstance(w, Tensor) else not w.pointwise for w in self.terms.values())

    @property
    def convolved(self) -> bool:
        """Whether a weight is a convolution of more than one tap."""
        return any(isinstance(w, Kernel) and not w.pointwise for w in self.terms.values())

    def image(self, matrix: Tensor, bias: Tensor | None = None) -> Affine:
        """``matrix @ self + bias``."""
        constant = matrix @ self.constant
        return Affine(
            {signal: _times(matrix, weight) for signal, weight in self.terms.items()},
            constant if bias is None else constant + bias,
        )

    def convolution(self, kernel: Kernel, bias: Tensor | None) -> Affine | None:
        """The convolution of this form and ``bias`` added to each channel; None if a weight goes into no kernel."""
        terms: dict[int, Weight] = {}
        for signal, weight in self.terms.items():
            if isinstance(weight, Kernel):
                if not weight.pointwise:
                    return None
                terms[signal] = kernel.after_mixing(weight)
            else:
                factors = channel_factors(weight, kernel.source[0])
                if factors is None:
                    return None
                terms[signal] = kernel.after_factors(factors)
        constant = kernel(self.constant[None])[0]
        if bias is not None:
            constant = constant + bias.repeat_interleave(len(constant) // len(bias))
        return Affine(terms, constant)

    def times(self, factors: Tensor, channels: int) -> Affine:
        """Each coordinate times its own factor, one for each of so many channels."""
        every = factors.repeat_interleave(len(self.constant) // channels)
        terms: dict[int, Weight] = {}
        for signal, weight in self.terms.items():
            if isinstance(weight, Kernel):
                terms[signal] = weight.times(factors)
            else:
                terms[signal] = every * weight if weight.ndim == 1 else every[:, None] * weight
        return Affine(terms, every * self.constant)

    def scaled(self, factor: float, shift: float = 0.0) -> Affine:
        def times(weight: Weight) -> Weight:
            return weight.times(factor) if isinstance(weight, Kernel) else factor * weight

        terms = {signal: times(weight) for signal, weight in self.terms.items()}
        return Affine(terms, factor * self.constant + shift)

    def plus(self, constant: Tensor) -> Affine:
        return Affine(self.terms, self.constant + constant)

    def rows(self, index: Tensor) -> Affine:
        """The coordinates ``index``."""
        return Affine({signal: _rows(weight, index) for signal, weight in self.terms.items()}, self.constant[index])

    def channels(self, index: Tensor, shape: Shape) -> Affine | None:
        """The channels ``index`` of flat images of ``shape``; None if a weight is no kernel."""
        kernels = self.kernels(shape)
        if kernels is None:
            return None
        constant = self.constant.reshape(shape[0], -1)[index].flatten()
        return Affine({signal: kernel.channels(index) for signal, kernel in kernels.items()}, constant)

    def kernels(self, shape: Shape) -> dict[int, Kernel] | None:
        """The weights as kernels, if the form holds flat images of ``shape`` and all of them are such."""
        found: dict[int, Kernel] = {}
        for signal, weight in self.terms.items():
            kernel = weight if isinstance(weight, Kernel) else pointwise(weight, shape)
            if kernel is None or kernel.target != shape:
                return None
            found[signal] = kernel
        return found


def _times(matrix: Tensor, weight: Weight) -> Tensor:
    if isinstance(weight, Tensor):
        return matrix * weight if weight.ndim == 1 else matrix @ weight
    if not weight.pointwise:
        return matrix @ weight.matrix()
    images = matrix.reshape(len(matrix), weight.target[0], -1)
    return torch.einsum("mkp,kc->mcp", images, weight.mixing).flatten(1)


def _rows(weight: Weight, index: Tensor) -> Tensor:
    if isinstance(weight, Kernel):
        return weight.matrix()[index]
    if weight.ndim == 2:
        return weight[index]
    picked = weight.new_zeros(len(index), len(weight))
    return picked.scatter(1, index[:, None], weight[index, None])


def full(weight: Weight) -> Tensor:
    """The weight as a matrix."""
    if isinstance(weight, Kernel):
        return weight.matrix()
    return torch.diag(weight) if weight.ndim == 1 else weight


def _added(a: Weight, b: Weight) -> Weight:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a + b if a.ndim == b.ndim else full(a) + full(b)
    kernels = [weight for weight in (a, b) if isinstance(weight, Kernel)]
    if len(kernels) == 1:
        diagonal = a if isinstance(a, Tensor) else b
        assert isinstance(diagonal, Tensor)
        other = pointwise(diagonal, kernels[0].target)
        kernels += [] if other is None else [other]
    total = kernels[0].plus(kernels[1]) if len(kernels) == 2 else None
    return full(a) + full(b) if total is None else total


@dataclass(frozen=True)
class Call:
    """A function of FUNCTIONS, by name, of one earlier signal."""

    name: str
    source: int


def added_up(forms: list[Affine]) -> Affine:
    terms: dict[int, Weight] = {}
    for form in forms:
        for signal, weight in form.terms.items():
            terms[signal] = _added(terms[signal], weight) if signal in terms else weight
    return Affine(terms, torch.stack([form.constant for form in forms]).sum(0))


def stacked(forms: list[Affine], shapes: Sequence[Shape] | None = None) -> Affine:
    """The forms behind one another: of flat images of ``shapes``, if those are given, channels behind channels."""
    if len(forms) == 1:
        return forms[0]
    if shapes is not None:
        joined = _joined(forms, shapes)
        if joined is not None:
            return joined
    total = sum(len(form.constant) for form in forms)
    padded: list[Affine] = []
    start = 0
    for form in forms:
        rows = torch.arange(start, start + len(form.constant), device=form.constant.device)
        start += len(rows)

        def pad(part: Tensor, rows: Tensor = rows) -> Tensor:
            return part.new_zeros(total, *part.shape[1:]).index_copy(0, rows, part)

        terms: dict[int, Weight] = {signal: pad(full(weight)) for signal, weight in form.terms.items()}
        padded.append(Affine(terms, pad(form.constant)))
    return added_up(padded)


def _joined(forms: list[Affine], shapes: Sequence[Shape]) -> Affine | None:
    total = sum(shape[0] for shape in shapes)
    terms: dict[int, Weight] = {}
    start = 0
    for form, shape in zip(forms, shapes, strict=True):
        kernels = form.kernels(shape)
        if kernels is None:
            return None
        for signal, kernel in kernels.items():
            placed = kernel.placed(start, total)
            terms[signal] = _added(terms[signal], placed) if signal in terms else placed
        start += shape[0]
    return Affine(terms, torch.cat([form.constant for form in forms]))
