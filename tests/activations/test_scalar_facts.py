"""The numbers in the rows of scalar functions, against many digits: extreme slopes, curvatures, ranges, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import mpmath
import pytest
import torch

from lipbridge.activations.activation import Term as T
from lipbridge.activations.activation import derive
from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS, Parameters
from lipbridge.activations.slopes import LOCAL
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Dense, Elementwise, Input
from lipbridge.rigor.accuracy import ACCURACY
from lipbridge.rigor.running_error import enclose
from lipbridge.rigor.tangent_error import enclose_tangent

Real = Callable[[mpmath.mpf], mpmath.mpf]


def gelu_tanh(cube: float) -> Real:
    return lambda t: t / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (t + mpmath.mpf(cube) * t**3)))


def celu(alpha: float) -> Real:
    return lambda t: t if t > 0 else mpmath.mpf(alpha) * mpmath.expm1(t / mpmath.mpf(alpha))


def softplus(beta: float) -> Real:
    b = mpmath.mpf(beta)
    return lambda t: (
        (b * t if b * t > 10**4 else mpmath.mpf(0) if b * t < -(10**4) else mpmath.log1p(mpmath.exp(b * t))) / b
    )


def elu(alpha: float) -> Real:
    return lambda t: t if t > 0 else mpmath.mpf(alpha) * mpmath.expm1(t)


def leaky_relu(slope: float) -> Real:
    return lambda t: t if t > 0 else mpmath.mpf(slope) * t


#: With the brackets of all extremes of the slope, and of the curvature, where they are not at the ends.
EXACT: dict[str, tuple[Real, list[float], list[float]]] = {
    "silu": (lambda t: t / (1 + mpmath.exp(-t)), [-2.4, 2.4], [0.0]),
    "gelu": (lambda t: t * mpmath.ncdf(max(min(t, mpmath.mpf(10**4)), mpmath.mpf(-(10**4)))), [-1.4, 1.4], [0.0]),
    "gelu_tanh": (gelu_tanh(0.044715), [-1.4, 1.4], [0.0]),
    "mish": (lambda t: t * mpmath.tanh(mpmath.log1p(mpmath.exp(t))), [-2.3, 1.5], [-0.3]),
    "log_sigmoid": (lambda t: -mpmath.log1p(mpmath.exp(-t)) if t > -(10**4) else t, [], [0.0]),
    "softsign": (lambda t: t / (1 + abs(t)), [], []),
    "atan": (mpmath.atan, [0.0], [0.57]),
    "erf": (mpmath.erf, [0.0], [0.7]),
}


def parameters(name: str) -> Parameters:
    return (0.044715,) if name == "gelu_tanh" else ()


@pytest.mark.parametrize("name", EXACT)
def test_extreme_slopes_are_right_to_the_last_digits(name: str) -> None:
    f, bends, _ = EXACT[name]
    low, high = SCALAR_FUNCTIONS[name].slopes(parameters(name))
    with mpmath.workdps(40):
        found = [
            mpmath.mpf(0),
            mpmath.mpf(1 if name in ("log_sigmoid", "silu", "gelu", "gelu_tanh", "mish", "softsign") else 0),
        ]
        for near in bends:
            place = mpmath.findroot(lambda t: mpmath.diff(f, t, 2), near) if near else mpmath.mpf(0)
            found.append(mpmath.diff(f, place))
        digits = mpmath.mpf(10) ** -25  # of the numerical differentiation
        assert low - digits <= min(found)
        assert max(found) <= high + digits
        assert high - max(found) <= 1e-12
        assert min(found) - low <= 1e-12


@pytest.mark.parametrize("name", EXACT)
def test_the_slope_is_monotone_between_its_extremes(name: str) -> None:
    f, bends, _ = EXACT[name]
    with mpmath.workdps(60):
        places = [mpmath.findroot(lambda t: mpmath.diff(f, t, 2), near) if near else mpmath.mpf(0) for near in bends]
        edges = [mpmath.mpf(-6), *(places or [mpmath.mpf(0)]), mpmath.mpf(6)]
        for left, right in pairwise(edges):
            inside = [left + (right - left) * k / 60 for k in range(1, 60)]
            signs = {mpmath.sign(mpmath.diff(f, t, 2)) for t in inside} - {0}
            assert len(signs) == 1


@pytest.mark.parametrize("name", EXACT)
def test_curvatures_are_bounds(name: str) -> None:
    f, _, peaks = EXACT[name]
    stated = ACCURACY[name].curvature(parameters(name))
    with mpmath.workdps(30):
        points = [mpmath.mpf(k) / 50 + mpmath.mpf("0.0037") for k in range(-400, 400)] + [mpmath.mpf(p) for p in peaks]
        largest = max(abs(mpmath.diff(f, t, 2)) for t in points)
        assert largest <= stated
        assert stated <= 2 * largest


@pytest.mark.parametrize("name", EXACT)
def test_ranges_hold(name: str) -> None:
    low, high = LOCAL[name].range(parameters(name))
    with mpmath.workdps(30):
        for k in range(-800, 801):
            assert low <= EXACT[name][0](mpmath.mpf(k) / 40) <= high


@pytest.mark.parametrize("cube", [0.0401, 0.043, 0.044714998, 0.0448, 0.0499])
def test_slopes_of_gelu_with_another_cube_are_in_its_wider_interval(cube: float) -> None:
    with mpmath.workdps(30):
        place = mpmath.findroot(lambda t: mpmath.diff(gelu_tanh(cube), t, 2), 1.4)
        steepest = mpmath.diff(gelu_tanh(cube), place)
        assert abs(place - mpmath.mpf(1.4185040087908284)) <= abs(cube / 0.044715 - 1)
    low, high = SCALAR_FUNCTIONS["gelu_tanh"].slopes((cube,))
    assert low <= 1 - steepest <= steepest <= high <= steepest + abs(cube - 0.044715) * 2 + 1e-14
    assert math.isinf(SCALAR_FUNCTIONS["gelu_tanh"].slopes((0.06,))[1])


# --- accuracy over the whole range of inputs and parameters ----------------------------------------------------------

CASES: list[tuple[str, Parameters, Real]] = [
    *((name, parameters(name), f) for name, (f, _, _) in EXACT.items()),
    *(("gelu_tanh", (k,), gelu_tanh(k)) for k in (0.0401, 0.0499)),
    *(("celu", (a,), celu(a)) for a in (1.0, 0.3, 7.0, 1e-3, 1e3, 2.0**-900, 2.0**900)),
    ("hardswish", (), lambda t: t * min(max(t + 3, mpmath.mpf(0)), mpmath.mpf(6)) / 6),
    *(("softplus", (b,), softplus(b)) for b in (1.0, 3.0, -0.7, 3e-200)),
    *(("elu", (a,), elu(a)) for a in (0.3, -2.7)),
    *(("leaky_relu", (a,), leaky_relu(a)) for a in (0.01, 1e7)),
]
MAGNITUDES = [10.0**k for k in (-300, -200, -100, -30, -15, -8, -4, -2, -1, 0, 1, 2, 4, 8, 30, 100, 300)]


@pytest.mark.parametrize(("name", "parameters", "f"), CASES, ids=lambda value: "f" if callable(value) else str(value))
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (-0.37, 0.0), (1.3, -2.6)])
def test_enclosures_hold_against_many_digits(
    name: str, parameters: Parameters, f: Real, scale: float, offset: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([*MAGNITUDES, 2.9999, 3.0001, 1.49, 2.2564], dtype=torch.float64)
    sizes = torch.cat([sizes * (1 + 0.3 * torch.rand(len(sizes), generator=generator).double()), sizes])
    small = sizes if offset == 0.0 else sizes[(sizes > 1e-12) & (sizes < 1e12)]
    x = torch.cat([small, -small, 6 * torch.randn(30, dtype=torch.float64, generator=generator)])[:, None]
    row = derive("row", ((T(name, 0.7, scale, offset, parameters),),))
    graph = Graph((Input("x", (), (1,)), Elementwise("g", (0,), (1,), row)))
    value, slope = enclose(graph, x), enclose_tangent(graph, x, torch.ones_like(x))
    assert bool(torch.isfinite(value.value).all())
    with mpmath.workdps(400):

        def exact(t: mpmath.mpf) -> mpmath.mpf:
            return mpmath.mpf(0.7) * f(mpmath.mpf(scale) * t + mpmath.mpf(offset))

        for i, place in enumerate(x.flatten().tolist()):
            t = mpmath.mpf(place)
            assert abs(exact(t) - mpmath.mpf(float(value.value[i, 0]))) <= float(value.error[i, 0]), place
            if not bool(slope.sound[i]) or not 1e-30 < abs(t) < 1e30:
                continue
            h = abs(t) * mpmath.mpf(10) ** -100
            derivative = (exact(t + h) - exact(t - h)) / (2 * h)
            found = slope.tangent
            assert abs(derivative - float(found.value[i, 0])) <= float(found.error[i, 0]) + 1e-20, place


def test_a_rounded_argument_beside_a_kink_is_no_differentiable_point() -> None:
    """fl(s x) + o = 0 for s x + o > 0: the derivative would be that of the wrong side."""
    generator = torch.Generator().manual_seed(3)
    scales = 0.5 + 0.5 * torch.rand(2000, dtype=torch.float64, generator=generator)
    places = 1.9 + 0.1 * torch.rand(2000, dtype=torch.float64, generator=generator)
    for scale, place in zip(scales.tolist(), places.tolist(), strict=True):
        row = derive("row", ((T("leaky_relu", 1.0, scale, -(scale * place), (2.0,)),),))
        assert float(row.distance_to_kink(torch.tensor([place], dtype=torch.float64))) == 0.0
    assert math.isinf(float(derive("s", ((T("mish"),),)).distance_to_kink(torch.zeros(1))))


@pytest.mark.parametrize("name", ["sin", "softsign"])
def test_a_slope_counts_the_rounding_of_a_large_shift(name: str) -> None:
    """fl(s t + o) is off by u |o|, which moves the slope, however small s is."""
    f: Real = mpmath.sin if name == "sin" else lambda t: t / (1 + abs(t))
    scale, offset = 1.1e-6, 1e6 if name == "sin" else 3.7
    x = torch.linspace(1e6, 9e6, 60, dtype=torch.float64)[:, None]
    row = derive("row", ((T(name, 1.0, scale, offset),),))
    found = enclose_tangent(Graph((Input("x", (), (1,)), Elementwise("g", (0,), (1,), row))), x, torch.ones_like(x))
    with mpmath.workdps(60):
        for t, value, error in zip(
            x.flatten().tolist(), found.tangent.value.tolist(), found.tangent.error.tolist(), strict=True
        ):
            exact = mpmath.diff(f, mpmath.mpf(scale) * mpmath.mpf(t) + mpmath.mpf(offset)) * mpmath.mpf(scale)
            assert abs(exact - value[0]) <= error[0]


def test_a_slope_that_underflows_is_not_zero() -> None:
    """1e-200 g(1e-200 z) on z = 1e200 t, times 1e200: slopes 1 and 0.5, so less t the constant is 0.5, never 1."""
    huge = torch.full((1, 1), 1e200, dtype=torch.float64)
    row = derive("row", ((T("leaky_relu", 1e-200, 1e-200, 0.0, (0.5,)),),))
    graph = Graph(
        (
            Input("x", (), (1,)),
            Dense("a", (0,), (1,), huge),
            Elementwise("g", (1,), (1,), row),
            Dense("b", (2,), (1,), huge),
            Dense("minus", (0,), (1,), -torch.ones(1, 1, dtype=torch.float64)),
            Add("sum", (3, 4), (1,)),
        )
    )
    x = torch.tensor([[3.0], [-3.0]], dtype=torch.float64)
    found = enclose_tangent(graph, x, torch.ones_like(x)).tangent
    for value, error, exact in zip(found.value.tolist(), found.error.tolist(), (0.0, -0.5), strict=True):
        assert abs(value[0] - exact) <= error[0] + 1e-9
