"""The judge of a captured module: is the Graph the module's function, and does its proved bound hold for the module?

The module is evaluated in float64 where it can be. What it computes in a coarser type all the same (casts, autocast)
is seen by a spy on its operations, and the comparisons allow for the rounding of that type.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import lipbridge
from lipbridge.errors import LipbridgeError
from lipbridge.graph.nodes import Elementwise
from tests.support.fuzz_modules import FuzzModule

NORMS = (1, 2, "inf")
#: The module's own rounding, in units of its type at the largest number on the way, is at most this for small modules.
UNITS = 256.0
#: Allowed besides: the Jacobian of the module is evaluated in floating point, and so is its norm.
RELATIVE = 1e-6


@dataclass(frozen=True)
class Outcome:
    """``right``, ``refused``, ``wrong`` or ``crashed``, and why."""

    kind: str
    reason: str = ""


class Wrong(Exception):
    """What shows that a Graph, or a bound, is not the module's."""


class _Spy(TorchDispatchMode):
    """The coarsest type and the largest finite number among the results of a module's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.unit, self.largest = 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, list | tuple) else [found]:
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()) and value.numel():
                self.unit = max(self.unit, torch.finfo(value.dtype).eps)
                self.largest = max(self.largest, _top(value.detach().abs().to(torch.float64)))
        return found


def _top(sizes: Tensor) -> float:
    return float(torch.nan_to_num(sizes, nan=0.0, posinf=0.0).max())


class Judged:
    """A module as a function of float64 batches, with the unit and the size of its rounding."""

    def __init__(self, fresh: Callable[[], nn.Module], dtype: torch.dtype) -> None:
        self.dtype = torch.float64
        self.module = fresh().eval().double()
        self.fresh, self.own_dtype = fresh, dtype
        self.unit, self.largest = torch.finfo(torch.float64).eps, 0.0

    def settle(self, x: Tensor) -> None:
        """Go over to the module's own type if it does not run in float64."""
        try:
            with torch.no_grad():
                self.module(x.clone())
        except Exception:
            self.dtype, self.module = self.own_dtype, self.fresh().eval()
        spy = _Spy()  # autocast rounds nothing in float64, but weights of float32
        with suppress(Exception), torch.no_grad(), spy:
            self.fresh().eval()(x.to(self.own_dtype, copy=True))
        if spy.unit > torch.finfo(self.own_dtype).eps:
            self.unit = spy.unit

    def __call__(self, x: Tensor) -> Tensor:
        spy = _Spy()
        with torch.no_grad(), spy:
            found = self.module(x.to(self.dtype, copy=True))
        leaves = pytree.tree_leaves(found)  # one tensor, in a dictionary or so
        if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
            raise Wrong(f"the module gives a {type(found).__name__}")
        found = leaves[0]
        self.unit = max(self.unit, spy.unit, torch.finfo(self.dtype).eps)
        self.largest = max(self.largest, spy.largest)
        return found.to(torch.float64)

    @property
    def coarse(self) -> bool:
        return self.unit > 1e-12


def judge(drawn: FuzzModule, *, thorough: bool = False) -> Outcome:
    """Capture, bound and compare."""
    module = drawn.build()
    before = state(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = lipbridge.capture(module, drawn.shape)
            bounds = {norm: lipbridge.trivial_bound(graph, norm).value for norm in NORMS}
    except LipbridgeError as error:
        if "\n" in str(error).strip() or not str(error).strip():
            return Outcome("crashed", f"an error of no or several lines: {error}")
        difference = changed(before, module)
        return Outcome("wrong", difference) if difference else Outcome("refused", str(error))
    except Exception as error:
        return Outcome("crashed", f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}")
    difference = changed(before, module)
    if difference:
        return Outcome("wrong", difference)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(drawn.seed)
        try:
            compare(drawn.build, graph, bounds, drawn.dtype, drawn.shape, thorough=thorough)
        except Wrong as wrong:
            return Outcome("wrong", str(wrong))
    return Outcome("right")


def compare(
    fresh: Callable[[], nn.Module],
    graph: lipbridge.Graph,
    bounds: dict[Any, float],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    *,
    thorough: bool = False,
) -> None:
    """Hold a Graph and its bounds against the module, of which ``fresh`` makes one more.

    Raises:
        Wrong: saying what differs.
    """
    judged = Judged(fresh, dtype)
    judged.settle(torch.randn(1, *shape, dtype=torch.float64))
    values(judged, graph, bounds, shape)
    pairs(judged, bounds, shape)
    jacobian(judged, bounds, shape)
    if thorough:
        lower_bounds(judged, graph, bounds)


def values(judged: Judged, graph: lipbridge.Graph, bounds: dict[Any, float], shape: tuple[int, ...]) -> None:
    """Graph and module agree: alone, in batches of three and five, in another order, twice."""
    scales = torch.tensor([1.0, 1e-3, 30.0, 1e3, 0.3], dtype=torch.float64).reshape(5, *(1,) * len(shape))
    x = torch.randn(5, *shape, dtype=torch.float64) * scales
    if torch.get_default_dtype() == torch.float32:
        x = x.to(torch.float32).to(torch.float64)  # the module's own type holds the same points
    with _as_wrong("the Graph cannot be evaluated"):
        alone = torch.cat([graph(row[None]) for row in x])
    orders = ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1], [2, 4, 1], [1], [1], [3])
    # A clipped line is written with hinges, whose places are numbers on the way as well.
    lines = [node.activation for node in graph.nodes if isinstance(node, Elementwise)]
    places = [abs(t.coefficient * t.offset) for line in lines for terms in line.components for t in terms]
    for order in orders:
        judged.largest = max(places, default=0.0)
        with _as_wrong(f"the module raises on a batch of {len(order)}"):
            found = judged(x[order])
        with _as_wrong(f"the Graph cannot be evaluated on a batch of {len(order)}"):
            expected = graph(x[order])
        tolerance = _tolerance(judged, bounds["inf"], expected)
        _require_equal(expected, alone[order], tolerance, f"the Graph differs between batches {order}")
        _require_equal(found, expected, tolerance, f"values differ in the batch {order}")


@contextmanager
def _as_wrong(what: str) -> Iterator[None]:
    try:
        yield
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"{what}: {type(error).__name__} {str(error).strip().splitlines()[:1]}") from error


def _tolerance(judged: Judged, bound: float, expected: Tensor) -> float:
    """What rounding may change: an error at any number on the way, carried on by no more than the bound."""
    largest = max(judged.largest, float(expected.abs().max()) if expected.numel() else 0.0)
    return UNITS * judged.unit * largest * (1.0 + min(bound, 1e6)) + 1e-290


def _require_equal(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    if found.shape != expected.shape:
        raise Wrong(f"{what}: shapes {tuple(found.shape)} and {tuple(expected.shape)}")
    if not bool(expected.isfinite().all()):
        raise Wrong(f"{what}: the Graph is not finite")
    worst = float((found - expected).abs().max()) if found.numel() else 0.0
    if not worst <= tolerance:  # also for NaN
        at = int((found - expected).abs().flatten().argmax())
        raise Wrong(
            f"{what}: module {float(found.flatten()[at])!r}, Graph {float(expected.flatten()[at])!r}, "
            f"apart by {worst:.3g} where {tolerance:.3g} is rounding"
        )


def pairs(judged: Judged, bounds: dict[Any, float], shape: tuple[int, ...]) -> None:
    """No pair is pulled apart more than the bounds say.

    Segments are searched for their steepest part, which is then searched again: a jump anywhere on them is found.
    """
    n = int(torch.Size(shape).numel())
    far = torch.randn(1, *shape, dtype=torch.float64)
    unit = torch.zeros(n, dtype=torch.float64)
    unit[int(torch.randint(n, ()))] = 1.0
    segments = [
        (far, -0.7 * far.roll(1, -1)),
        (1e3 * torch.randn(1, *shape, dtype=torch.float64), 1e3 * torch.randn(1, *shape, dtype=torch.float64)),
        (far - unit.reshape(1, *shape) * 1.3, far + unit.reshape(1, *shape) * 1.6),
        (0.02 * far.roll(1, -1), -0.03 * far),
    ]
    t = torch.linspace(0.0, 1.0, 49, dtype=torch.float64).reshape(-1, *(1,) * len(shape))
    for start, end in segments:
        for _ in range(4):
            x = start + t * (end - start)
            judged.largest = 0.0
            with _as_wrong("the module raises on a batch of 49"):
                y = judged(x)
            steps, moves = ((v[1:] - v[:-1]).reshape(len(t) - 1, -1) for v in (x, y))
            for norm in NORMS:
                allowed = bounds[norm] * _length(steps, norm) * (1.0 + RELATIVE)
                slack = 2.0 * _tolerance(judged, bounds["inf"], y) * max(1, moves.shape[1])
                over = _length(moves, norm) - allowed - slack
                if not bool((over <= 0).all()):
                    at = int(torch.nan_to_num(over, nan=torch.inf).argmax())
                    raise Wrong(
                        f"a pair at distance {float(_length(steps, norm)[at]):.3g} in l_{norm} moves by "
                        f"{float(_length(moves, norm)[at]):.6g}; the bound {bounds[norm]:.6g} allows "
                        f"{float(allowed[at]):.6g}"
                    )
            steepest = int((_length(moves, 2) / _length(steps, 2)).nan_to_num(0.0).argmax())
            start, end = x[steepest : steepest + 1], x[steepest + 1 : steepest + 2]


def _length(rows: Tensor, norm: Any) -> Tensor:
    return torch.linalg.vector_norm(rows, float(norm), dim=1)


def jacobian(judged: Judged, bounds: dict[Any, float], shape: tuple[int, ...]) -> None:
    """The norms of the module's Jacobians at points of batch one are below the bounds."""
    for scale in (1.0, 1e-3, 1e3):
        x = torch.randn(1, *shape, dtype=torch.float64) * scale
        J = _jacobian(judged, x)
        if J is None:
            return
        for norm in NORMS:
            found = float(operator_norm(J, norm))
            slack = 1.0 + RELATIVE + UNITS * judged.unit
            if not found <= bounds[norm] * slack + 1e-280:
                raise Wrong(f"a Jacobian of norm {found:.9g} in l_{norm}, above the bound {bounds[norm]:.9g}")


def operator_norm(J: Tensor, norm: Any) -> Tensor:
    """The l_norm operator norm of a matrix, in plain floating point: nothing of what is judged is used."""
    if 0 in J.shape:
        return J.new_zeros(())
    return torch.linalg.matrix_norm(J, {1: 1, 2: 2, "inf": torch.inf}[norm])


def _jacobian(judged: Judged, x: Tensor) -> Tensor | None:
    """``(m, n)`` from one backward pass over copies of ``x``; None where autograd does not go."""
    m = judged(x).numel()
    leaf = x.to(judged.dtype).repeat(m, *(1,) * (x.ndim - 1)).requires_grad_()
    with torch.enable_grad():
        (y,) = pytree.tree_leaves(judged.module(leaf.clone()))
        if not y.requires_grad:
            return None
        try:
            (rows,) = torch.autograd.grad(y.reshape(m, m).diagonal().sum(), leaf)
        except Exception:
            return None
    return rows.reshape(m, -1).to(torch.float64)


def lower_bounds(judged: Judged, graph: lipbridge.Graph, bounds: dict[Any, float]) -> None:
    """A searched lower bound is no larger than the upper one, and the module itself shows its witness."""
    for norm in NORMS:
        try:
            found = lipbridge.search_lower_bound(
                lipbridge.Problem(graph, lipbridge.Question.everywhere(norm)),
                seconds=0.5,
                restarts=4,
                steps=10,
                rounds=1,
            )
        except LipbridgeError:
            continue
        if not found.value <= bounds[norm]:
            raise Wrong(f"a lower bound {found.value!r} above the upper one {bounds[norm]!r} in l_{norm}")
        if found.witness is None or not found.value > 0.0 or judged.coarse:
            continue
        x = found.witness.points
        if found.witness.direction is None:
            y, step = judged(x), (x[:1] - x[1:]).flatten(1)
            gain = float(_length((y[:1] - y[1:]).flatten(1), norm) / _length(step, norm))
        else:
            J = _jacobian(judged, x)
            if J is None:
                continue
            v = found.witness.direction.flatten(1)
            gain = float(_length(v @ J.T, norm) / _length(v, norm))
        if not found.value <= gain * (1.0 + RELATIVE) + 1e-9:
            raise Wrong(f"the witness of {found.value!r} in l_{norm} gives the module a gain of {gain!r}")


# --- the module is left as it was ------------------------------------------------------------------------------------


def state(module: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {key: value.clone() for key, value in module.state_dict().items() if not is_lazy(value)},
        "modes": [(name, layer.training) for name, layer in module.named_modules()],
        "requires_grad": [(name, p.requires_grad, p.grad is None) for name, p in module.named_parameters()],
        "hooks": [len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in module.modules()],
        "attributes": [sorted(vars(layer)) for layer in module.modules()],
        "random": torch.random.get_rng_state(),
    }


def changed(before: dict[str, Any], module: nn.Module) -> str:
    after = state(module)
    for key, value in before.items():
        same: Callable[[Any, Any], bool] = lambda a, b: a == b  # noqa: E731
        if key == "random":
            same = torch.equal
        if key == "tensors":
            same = lambda a, b: a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)  # noqa: E731
        if not same(value, after[key]):
            return f"capture changed the module's state ({key})"
    fake = [
        name
        for layer in module.modules()
        for name, value in vars(layer).items()
        if "FakeTensor" in type(value).__name__
    ]
    return f"capture left a FakeTensor in {fake}" if fake else ""


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


__all__ = ["Judged", "Outcome", "Wrong", "changed", "compare", "judge", "state"]
