"""Weights that proofs in floating point trip over: tiny beside one, duplicated, zero, swamped, and of any size."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

TAME = ("normal", "normal", "float32", "integers", "duplicated", "zero rows", "swamped")
EXTREME = (*TAME, "beside", "graded", "subnormal")
#: Sizes that stand beside ones.
SMALL = (2.0**-27, 2.0**-26, 2.0**-53, 2.0**-54, 1e-20, 1e-154, 1e-162, 1e-200, 1e-300, 1e-310, 1e-320, 5e-324)
#: Decades of one layer after the other. Products on the way leave the range of doubles, and most come back.
PLANS: tuple[tuple[float, ...], ...] = (
    (0,),
    (0, 0, 0),
    (-162, -162, 300, 24),
    (-162, -162, 150, 150, 24),
    (-162, 0, -162, 300, 24),
    (150, 150, -162, -138),
    (150, 150, -320, 20),
    (300, -318),
    (300, -323),
    (300, 15, -322),
    (-320, 150, 150, 20),
    (-310, 300, 10),
    (-154, 154),
    (100, -200, 100),
    (-200, -200, 150, 150, 100),
    (20, -40, 20),
    (5, 5, -5, -5),
    (-320,),
    (150,),
)


class Weights:
    """Draws weights and biases.

    Args:
        seed: of everything.
        flavours: :data:`TAME` or :data:`EXTREME`; of extreme ones every layer also has a size.
    """

    def __init__(self, seed: int | str, flavours: tuple[str, ...]) -> None:
        self.random = random.Random(f"weights {seed}")
        self.generator = torch.Generator().manual_seed(self.random.randrange(2**31))
        self.flavours = flavours
        self.plan: list[float] = []
        self.decades = 0.0  # of the product so far

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def weight(self, *shape: int) -> Tensor:
        """A float64 weight ``(m, ...)`` of some flavour and size."""
        W = self._flavoured(*shape)
        return self.sized(W) if "beside" in self.flavours else W

    def _flavoured(self, *shape: int) -> Tensor:
        flavour, rows = self.random.choice(self.flavours), (-1, *(1,) * (len(shape) - 1))
        W = self.normal(*shape) / math.sqrt(max(1, math.prod(shape[1:])))
        if flavour == "float32":
            return W.float().double()
        if flavour == "integers":
            return (2.0 * W).round()
        if flavour == "duplicated":
            chosen = [self.random.randrange(shape[0]) for _ in range(shape[0])]
            return W[chosen] * torch.tensor([self.random.choice((1.0, 1.0, -1.0)) for _ in chosen]).reshape(rows)
        if flavour == "zero rows":
            W[torch.tensor([self.random.random() < 0.5 for _ in range(shape[0])])] = 0.0
        if flavour == "swamped":
            return self._mixed(shape, (2.0**-27, 2.0**-26, 2.0**-53, 2.0**-30), ones=0.3)
        if flavour == "beside":
            return self._mixed(shape, SMALL, ones=0.5)
        if flavour == "subnormal":
            return W * self.random.choice((1e-308, 1e-312, 1e-320, 1e-323))
        if flavour == "graded":
            powers = [10.0 ** self.random.uniform(-160.0, 0.0) for _ in range(shape[0])]
            return W * torch.tensor(powers, dtype=torch.float64).reshape(rows)
        return W

    def _mixed(self, shape: tuple[int, ...], small: tuple[float, ...], ones: float) -> Tensor:
        """Ones beside many copies of a small number, with signs that mostly agree."""
        tiny = self.random.choice(small)
        flip = self.random.choice((0.0, 0.0, 0.3))
        entries = [
            (1.0 if self.random.random() < ones else tiny * self.random.choice((1.0, 1.0, 1.5)))
            * (-1.0 if self.random.random() < flip else 1.0)
            for _ in range(math.prod(shape))
        ]
        return torch.tensor(entries, dtype=torch.float64).reshape(shape)

    def sized(self, W: Tensor) -> Tensor:
        """The weight times the next power of ten of a plan, in two steps (1e-323 is reached, overflow is not)."""
        if not self.plan:
            self.plan = list(self.random.choice(PLANS))
        decades = self.plan.pop(0)
        if not decades:
            return W
        decades += self.random.uniform(-1.5, 1.5)
        self.decades += decades
        half = 10.0 ** (decades / 2.0)
        return (W * half * half).clamp(-1e307, 1e307)

    def bias(self, n: int) -> Tensor | None:
        """None, or a float64 bias of about the size of what the layer gives."""
        kind = self.random.choice(("none", "normal", "normal", "dead", "integers"))
        if kind == "none":
            return None
        b = self.normal(n)
        b = b.round() if kind == "integers" else b
        half = 10.0 ** (max(-320.0, min(300.0, self.decades)) / 2.0)
        return (b - 3.0 if kind == "dead" else b) * half * half
