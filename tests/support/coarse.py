"""The same proofs in a coarse arithmetic, where a rounding margin that was left out shows on an ordinary network.

In float64 a margin of n u is 1e-14: a proof that forgets it is still right on almost every input, and no test notices.
Under :func:`coarse_arithmetic` each result of a torch operation is rounded to 24 bits (of any exponent), sums and
matrix products after every single addition, and the unit roundoff that the proofs read is that of this arithmetic. All
that they assume of float64 holds of it too (the standard model of rounding, Higham 2002, section 2.2), so every bound
must still be one; but a margin is now 1e-5, as large as what a witness or an exact rational reference can tell apart.

Rounding towards zero makes every sum come out low, which is the worst case for an upper bound; away from zero makes
residuals and differences come out high. Real roundings of long sums cancel, though, and stay far below what a proof has
to allow for. With ``worst``, sums and matrix products are off by all that the standard model permits, (n - 1) u times
the sum of the magnitudes: some order of summation and some roundings could do that, and a proof may not rely on luck.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lipbridge.lipsdp import proof as lmi_proof
from lipbridge.rigor import accuracy
from lipbridge.rounding import scalars as rounding

BITS = 24
#: The unit roundoff of directed rounding to 24 bits; rounding to nearest has half of it.
COARSE_UNIT = 2.0 ** (1 - BITS)
DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {"zero": torch.trunc, "nearest": torch.round}
DIRECTIONS["away"] = lambda x: torch.where(x > 0, x.ceil(), x.floor())

aten = torch.ops.aten


def coarse(x: Tensor, direction: str = "nearest") -> Tensor:
    """``x`` rounded to 24 bits, entry by entry: weights that every arithmetic here holds exactly."""
    if x.is_complex():
        return torch.view_as_complex(coarse(torch.view_as_real(x), direction))
    mantissa, exponent = torch.frexp(x)
    rounded = torch.ldexp(DIRECTIONS[direction](mantissa * 2.0**BITS) / 2.0**BITS, exponent)
    return torch.where(torch.isfinite(x) & (x != 0) & torch.isfinite(rounded), rounded, x)


class _Coarse(TorchDispatchMode):
    def __init__(self, direction: str, worst: str | None, only: Callable[[Tensor, Tensor], bool] | None) -> None:
        super().__init__()
        self.direction, self.worst, self.only = direction, worst, only
        self.generator = torch.Generator().manual_seed(0)

    def off(self, exact: Tensor, magnitude: Tensor, terms: int) -> Tensor:
        """A sum of some terms, off by as much as their roundings can add up to."""
        unit = COARSE_UNIT if self.direction != "nearest" else COARSE_UNIT / 2
        sign = {"low": -1.0, "high": 1.0}.get(str(self.worst))
        signs = torch.randint(0, 2, exact.shape, generator=self.generator) * 2.0 - 1.0 if sign is None else sign
        return self.round(exact + signs * (max(terms - 1, 0) * unit) * magnitude)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        step = _STEPS.get(func)
        if step is not None and args[0].dtype == torch.float64:
            return step(self, *args, **kwargs)
        result = func(*args, **kwargs)
        mutable = func._schema.is_mutable
        view = any(value.alias_info is not None for value in func._schema.returns) and not mutable
        if view or func in _EXACT:
            return result
        return tree_map(lambda value: self._rounded(value, mutable), result)

    def _rounded(self, value: Any, in_place: bool) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in (torch.float64, torch.complex128):
            return value
        return value.copy_(coarse(value, self.direction)) if in_place else self.round(value)

    def round(self, x: Tensor) -> Tensor:
        return coarse(x, self.direction)

    def sum(self, x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
        axes = sorted({d % x.ndim for d in dim}) if dim else list(range(x.ndim))
        moved = x.movedim(axes, list(range(len(axes)))).flatten(0, max(len(axes) - 1, 0)) if axes else x[None]
        if self.worst and self.only is None:
            moved = self.off(moved.sum(0), moved.abs().sum(0), len(moved) - 1)[None]
        total = torch.zeros_like(moved[0]) if len(moved) else moved.new_zeros(moved.shape[1:])
        for term in moved:
            total = self.round(total + term)
        for axis in axes if keepdim else ():
            total = total.unsqueeze(axis)
        return total

    def cumsum(self, x: Tensor, dim: int) -> Tensor:
        total, sums = torch.zeros_like(x.select(dim, 0)), list[Tensor]()
        for term in x.unbind(dim):
            total = self.round(total + term)
            sums.append(total)
        return torch.stack(sums, dim)

    def product(self, a: Tensor, b: Tensor, total: Tensor | None = None) -> Tensor:
        """``total + a @ b`` with each product and each addition rounded; matrices or batches of them."""
        if self.worst and (self.only is None or self.only(a, b)):
            exact, magnitude, terms = a @ b, a.abs() @ b.abs(), a.shape[-1]
            if total is not None:
                exact, magnitude, terms = exact + total, magnitude + total.abs(), terms + 1
            return self.off(exact, magnitude, terms)
        if total is None:
            total = a.new_zeros(*a.shape[:-1], b.shape[-1])
        for k in range(a.shape[-1]):
            total = self.round(total + self.round(a[..., k, None] * b[..., None, k, :]))
        return total

    def addmm(self, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        start = c.expand(*a.shape[:-1], b.shape[-1])
        start = start if beta == 1 else self.round(start * beta)
        return self.product(a if alpha == 1 else self.round(a * alpha), b, start)

    def addmm_in_place(self, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        return c.copy_(self.addmm(c, a, b, beta=beta, alpha=alpha))

    def mean(self, x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
        count = x.numel() if not dim else math.prod(x.shape[d] for d in dim)
        return self.round(self.sum(x, dim, keepdim) / max(count, 1))

    def convolution(self, x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
        """A dot product with a part of the kernel for each output, rounded once unless it is to be the worst."""
        exact = aten.convolution.default(x, w, b, *options)
        if not self.worst:
            return self.round(exact)
        magnitude = aten.convolution.default(x.abs(), w.abs(), None if b is None else b.abs(), *options)
        transposed, groups = options[3], options[5]
        terms = w[:, 0].numel() // groups if transposed else w[0].numel()
        return self.off(exact, magnitude, terms + (b is not None))

    def norm(self, x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
        if order == 1:
            return self.sum(x.abs(), dim, keepdim)
        if order != 2:
            return aten.linalg_vector_norm.default(x, order, dim, keepdim, dtype=dtype)
        return self.round(self.sum(self.round(x.square()), dim, keepdim).sqrt())


_STEPS: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _Coarse.product,
    aten.bmm.default: _Coarse.product,
    aten.mv.default: lambda mode, a, v: _Coarse.product(mode, a, v[:, None])[..., 0],
    aten.dot.default: lambda mode, a, b: _Coarse.product(mode, a[None], b[:, None])[0, 0],
    aten.addmm.default: _Coarse.addmm,
    aten.addmm_.default: _Coarse.addmm_in_place,
    aten.baddbmm.default: _Coarse.addmm,
    aten.addmv.default: lambda mode, c, a, v, **scales: _Coarse.addmm(mode, c[:, None], a, v[:, None], **scales)[:, 0],
    aten.sum.default: lambda mode, x, **options: _Coarse.sum(mode, x),
    aten.sum.dim_IntList: _Coarse.sum,
    aten.mean.default: lambda mode, x, **options: _Coarse.mean(mode, x),
    aten.mean.dim: _Coarse.mean,
    aten.convolution.default: _Coarse.convolution,
    aten.cumsum.default: lambda mode, x, dim, **options: _Coarse.cumsum(mode, x, dim),
    aten.linalg_vector_norm.default: _Coarse.norm,
}
#: What makes no rounding: numbers that Python computed come in whole, and copies are copies.
_EXACT = {aten.lift_fresh.default, aten.detach.default, aten.copy_.default, aten._to_copy.default, aten.clone.default}


@contextmanager
def coarse_arithmetic(
    direction: str = "zero", worst: str | None = None, only: Callable[[Tensor, Tensor], bool] | None = None
) -> Iterator[None]:
    """Round every torch operation in the block to 24 bits, and let all proofs read the unit roundoff of that.

    ``worst`` is None, or the side on which sums and products are off: "low", "high" or "mixed"; ``only`` says of which
    matrix products alone, so that no other margin hides what one of them needs. Weights go in rounded by
    :func:`coarse` (outside the block), and are compared with the bound as exact fractions.
    """
    unit = COARSE_UNIT if direction != "nearest" else COARSE_UNIT / 2
    changed: list[tuple[Any, str, float]] = []
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("lipbridge", "lipbridge_adapters") and vars(module).get("UNIT") == rounding.UNIT:
            changed.append((module, "UNIT", unit))
        # The trust in the libraries' scalar functions is a number of units.
        if name.startswith("lipbridge") and vars(module).get("ULPS") == accuracy.ULPS:
            changed.append((module, "ULPS", accuracy.ULPS / rounding.UNIT * unit))
    # What covers the rounding of error bounds, sums of up to a thousand non-negative terms: 1 + 1000 u and more.
    for name, module in list(sys.modules.items()):
        if name.startswith("lipbridge") and vars(module).get("COVER") == lmi_proof.COVER:
            changed.append((module, "COVER", 1.0 + 2.0**-10))
    before = [(module, name, getattr(module, name)) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        with _Coarse(direction, worst, only):
            yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
