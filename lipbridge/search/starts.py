"""Where a search starts: data points, random points of several sizes, and points inside balls."""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.problem.question import Ball
from lipbridge.search.domain import Balls, Domain

#: Sizes of random points where the size matters: near zero, where biases decide, to far away, where they do not.
SIZES = (1.0, 0.1, 10.0, 0.01, 100.0, 1e4)
#: At most this many data points are scored.
MOST_STARTS = 1000


def everywhere(
    shape: tuple[int, ...], starts: Tensor | None, count: int, homogeneous: bool, generator: torch.Generator
) -> Tensor:
    """Data points (a seeded choice of them) and ``count`` random points, in half of them positive: ``(n, *shape)``."""
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    noise[::4] = noise[::4].abs()  # where all weights are positive, every unit is active
    noise[2::4] = -noise[2::4].abs()
    if not homogeneous:
        sizes = torch.tensor(SIZES, dtype=torch.float64).repeat_interleave(4)
        noise = noise * sizes[torch.arange(count) % len(sizes)].reshape(-1, *[1] * len(shape))
    return noise if starts is None else torch.cat([chosen(starts, generator), noise])


def chosen(starts: Tensor, generator: torch.Generator, most: int = MOST_STARTS) -> Tensor:
    """All starts, or a seeded choice of ``most``, in float64 on the CPU."""
    if len(starts) > most:
        order = torch.randperm(len(starts), generator=generator)[:most]
        starts = starts[order.to(starts.device)]
    return starts.detach().to(device="cpu", dtype=torch.float64)


def in_balls(region: Ball, count: int, generator: torch.Generator) -> tuple[Tensor, Balls]:
    """The centres (a seeded choice) and ``count`` random points of the balls, each with its ball."""
    centers = chosen(region.centers, generator)
    index = torch.cat([torch.arange(len(centers)), torch.randint(len(centers), (count,), generator=generator)])
    centers = centers[index]
    x = centers.clone()
    noise = torch.randn(count, *centers.shape[1:], generator=generator, dtype=torch.float64)
    domain = Balls(centers, region.radius, region.norm)
    x[len(x) - count :] += 2.0 * noise * domain.step_length(x)[len(x) - count :]
    return domain.project(x), domain


def perturbed(x: Tensor, domain: Domain, generator: torch.Generator) -> Tensor:
    """The points moved by noise of random sizes, from 1e-3 to 2 times the domain's step length."""
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    exponents = torch.rand(len(x), *[1] * (x.ndim - 1), generator=generator, dtype=torch.float64)
    sizes = 1e-3 * 2e3**exponents
    return domain.project(x + (noise * sizes).to(x.device) * domain.step_length(x))
