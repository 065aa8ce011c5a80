"""The check that every capture runs: is the Graph the function that the module computes?

Two comparisons at random points of several scales. The exported program in float64 against the Graph in float64: they
are the same real-number function, so they differ by the running error of float64 alone. And the module itself, as the
user runs it, against the program: for batches of several sizes, in another order, alone and beside others, twice. There
the module's own rounding is measured, by running the program in the module's dtype too. A difference is a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lipbridge.activations.activation import derive
from lipbridge.errors import LipbridgeError, NumericalFailure, UnsupportedOperation, first_line
from lipbridge.frontend.builder import Curve, Deferred
from lipbridge.frontend.computed.tensor import known
from lipbridge.frontend.export import (
    BATCH,
    BatchSize,
    Program,
    example_of,
    layer_name,
    operation_name,
    silenced,
)
from lipbridge.frontend.moments import default_epsilon
from lipbridge.frontend.program import ProgramReader, Reading
from lipbridge.frontend.program_values import named_arguments
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph, multiply_adds
from lipbridge.graph.nodes import Elementwise, Node
from lipbridge.rigor.running_error import enclose
from lipbridge.rigor.tangent_error import understood

#: Scales of the points, in the order in which they are dropped from the end where a network is costly.
SCALES = (1.0, 1e-3, 1e3, 30.0, 0.03, 1.0, 1.0)
#: Multiply-adds of one evaluation above which fewer points are taken: (at most, points), the last for all beyond.
_POINTS = ((1e7, 7), (2e8, 4), (math.inf, 3))
#: Of the largest value on the way, in float64: differences below are rounding without a closer look.
_ROUNDING = 2.0**-40
#: In units of the module's rounding: a difference of its outputs that needs no measurement, and times the measured one.
_UNITS, _MEASURED = 64.0, 16.0
#: In those units, of the largest value on the way: the most that a running error excuses.
_CAP = 1024.0

#: What the points are called together, as they stand.
_TOGETHER = "a batch"
#: Inputs of the largest batch, of networks whose evaluation is short.
_MANY = 61


def check_reading(module: nn.Module, reading: Reading, shape: tuple[int, ...]) -> None:
    """Compare module, program and Graph; ``module`` must be in eval mode.

    Raises:
        UnsupportedOperation: naming the first operation at which program and Graph part, or how the module differs.
    """
    try:
        _check(module, reading, shape)
    except LipbridgeError:
        raise
    except Exception as error:
        raise _other(module, f"What was read of it cannot be evaluated: {first_line(error)}") from error


def _check(module: nn.Module, reading: Reading, shape: tuple[int, ...]) -> None:
    program, reader, graph = reading.program, reading.reader, reading.graph
    x = _points(module, shape, program, graph)
    exact = x.to(torch.float64)
    with torch.no_grad(), silenced():
        large = not program.fixed and multiply_adds(graph) > _POINTS[1][0]
        exact = exact[:1] if large else exact
        values = graph.values(exact)
        expected = run(program, reader, exact, double=True)
        _require_finite(module, expected)
        _compare_graph(reading, exact, values, expected)
        del values
        if large:  # the other inputs are company for the first; what the module gives for them is to stay the same
            first = _outputs(module, x, _TOGETHER)
            _require_shape(module, first, (len(x), *expected.shape[1:]), _TOGETHER)
            expected = torch.cat([expected, first[1:].to(torch.float64)])
            _compare_module(module, reading, x, expected, first)
        else:
            _compare_module(module, reading, x, expected)


def _with_epsilon(node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments of an RMSNorm with the epsilon that it takes in the module's own dtype, where it is given none."""
    given = named_arguments(node.target, args, kwargs)
    if given["eps"] is None:
        given["eps"] = default_epsilon(node.meta["val"].dtype)
    return (), given


def _points(module: nn.Module, shape: tuple[int, ...], program: Program, graph: Graph) -> Tensor:
    work = multiply_adds(graph)
    count = program.batch if program.fixed else next(points for most, points in _POINTS if work <= most)
    like = example_of(module, shape, 1)
    return random_points(shape, count).to(like.dtype).to(like.device)


def random_points(shape: tuple[int, ...], count: int) -> Tensor:
    """``(count, *shape)`` float64: the same normal points in every run, of the scales in turn."""
    generator = torch.Generator().manual_seed(20261125)
    unit = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    scales = torch.tensor([SCALES[i % len(SCALES)] for i in range(count)], dtype=torch.float64)
    return unit * scales.reshape(-1, *(1,) * len(shape))


def run(
    program: Program, reader: ProgramReader, x: Tensor, *, double: bool, each: Any = None, change: Any = None
) -> Tensor:
    """The program at ``x``: in float64 with ``double``, else in the dtypes of the module.

    ``each`` sees every value, and ``change`` gives what takes the place of one that is computed from ``x``.
    """
    values: dict[fx.Node, Any] = {}
    users = {node: len(node.users) for node in program.graph.nodes}

    def leaf(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return values[value]
        if isinstance(value, BatchSize):
            return len(x)
        if double and isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        return value

    for node in program.graph.nodes:
        constant = reader.values.get(node)
        if node.op == "placeholder":
            if node in program.stored or node in program.constants:
                stored = program.stored.get(node)
                native = program.constants[node] if stored is None else reader.tensor_of(stored).detach()
                values[node] = known(cast(Tensor, constant)) if double else native
            else:
                values[node] = x
        elif double and isinstance(constant, Tensor):
            values[node] = known(constant)
        elif "_assert_" in operation_name(node) or "sym_constrain" in operation_name(node):
            values[node] = None
        else:
            args, kwargs = pytree.tree_map(leaf, program.takes(node))
            if double and operation_name(node).startswith("rms_norm"):
                args, kwargs = _with_epsilon(node, args, kwargs)
            values[node] = cast(Callable[..., Any], node.target)(*args, **kwargs)
            values[node] = values[node] if change is None else change(values[node])
        if each is not None:
            each(node, values[node])
        if node is program.output:
            return values[node]
        for source in node.all_input_nodes:
            users[source] -= 1
            if users[source] == 0 and source is not program.output:
                values.pop(source, None)
    raise AssertionError("a program without output")


def _require_finite(module: nn.Module, expected: Tensor) -> None:
    finite = torch.isfinite(expected).reshape(len(expected), -1).all(1)
    if bool(finite.all()):
        return
    named = (*module.named_parameters(), *module.named_buffers())
    broken = next((name for name, t in named if not bool(torch.isfinite(t).all())), None)
    if broken is not None:
        raise NumericalFailure(f"The tensor `{broken}` of {type(module).__name__} holds NaN or infinity.")
    if not bool(finite.any()):  # points that overflow say nothing, but the others do
        raise NumericalFailure(
            f"The outputs of {type(module).__name__} overflow at random points: its weights are too large."
        )


# --- Graph against program -------------------------------------------------------------------------------------------


def _compare_graph(reading: Reading, x: Tensor, values: list[Tensor], expected: Tensor) -> None:
    found = values[-1]
    if found.shape == expected.shape and _agree(found, expected, _largest(values) * _ROUNDING):
        return
    if found.shape == expected.shape and understood(reading.graph) is None:
        # The running error of both, unless it says nothing any more.
        size = by_row(expected)
        error = torch.minimum(8.0 * enclose(reading.graph, x).error, 1e-4 * _like(size, expected))
        if bool(((found - expected).abs() <= error).all()):
            return
    if found.shape == expected.shape and _agree(found, expected, _MEASURED * _noise(reading, x, expected)):
        return  # e.g. 1e16 x + x - 1e16 x, which is read as x
    layer, operation = _first_difference(reading, x)
    raise UnsupportedOperation(
        layer, operation, "What was read is not what torch computes there (found by the check of the captured Graph)."
    )


def _noise(reading: Reading, x: Tensor, expected: Tensor) -> Tensor:
    """How far, by row, the program's outputs move where every value on the way moves by a unit in the last place."""
    generator = torch.Generator().manual_seed(20261125)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        signs = (2 * torch.randint(0, 2, value.shape, generator=generator) - 1).to(value)
        return value * (1.0 + 2.0**-52 * signs)

    found = [run(reading.program, reading.reader, x, double=True, change=moved) for _ in range(8)]
    return torch.stack([by_row(torch.nan_to_num(y - expected)) for y in found]).amax(0)


def _agree(found: Tensor, expected: Tensor, room: Tensor) -> bool:
    """Whether rows differ by no more than ``room``; rows that are not finite must not be so alike."""
    finite = torch.isfinite(expected).flatten(1).all(1) if expected.ndim > 1 else torch.isfinite(expected)
    if not bool(finite.any()):
        return False
    difference = by_row(found[finite] - expected[finite])
    return bool((difference <= room[finite]).all())


def by_row(y: Tensor) -> Tensor:
    """The largest magnitude in each row of a batch; zero of rows without entries."""
    return y.abs().reshape(len(y), -1).amax(1) if y.numel() else torch.zeros(len(y), dtype=y.dtype, device=y.device)


def _like(rows: Tensor, y: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (y.ndim - 1))


def _largest(values: list[Tensor]) -> Tensor:
    return torch.stack([by_row(value) for value in values]).amax(0)


def _first_difference(reading: Reading, x: Tensor) -> tuple[str, str]:
    """Layer and operation of the first value that the Graph has not as the program has it."""
    curves, nodes = _as_curves(reading)
    whole = Graph(tuple(nodes)).values(x)
    largest = _largest(whole)
    found: list[tuple[str, str]] = []

    def compare(node: fx.Node, value: Any) -> None:
        if found or node not in curves or not isinstance(value, Tensor):
            return
        ours = _value(curves[node], whole)
        if ours.shape != value.shape or not _agree(ours, value, largest * _ROUNDING * 16.0):
            found.append((layer_name(node), operation_name(node)))

    run(reading.program, reading.reader, x, double=True, each=compare)
    return found[0] if found else ("output", "output")


def _as_curves(reading: Reading) -> tuple[dict[fx.Node, Curve], list[Node]]:
    """The values of all operations as curves on nodes, those that waited for a reader too."""
    reader = copy(reading.reader)
    reader.nodes, reader.materialised, reader.recipes = list(reader.nodes), dict(reader.materialised), {}
    curves: dict[fx.Node, Curve] = {}
    for node, value in reader.values.items():
        if isinstance(value, Curve | Deferred):
            with suppress(UnsupportedOperation):  # e.g. a comparison, or indices
                curves[node] = reader.curve(value)
    return curves, reader.nodes


def _value(curve: Curve, whole: list[Tensor]) -> Tensor:
    source = whole[curve.source]
    rank = source.ndim - 1
    axis = curve.axis % rank if rank else 0
    node = Elementwise("", (curve.source,), tuple(source.shape[1:]), derive("", curve.components), axis)
    return evaluate(node, [source])


# --- module against program ------------------------------------------------------------------------------------------


def _compare_module(
    module: nn.Module, reading: Reading, x: Tensor, expected: Tensor, first: Tensor | None = None
) -> None:
    """Compare outputs in batches of several sizes and orders; ``first`` are those for ``x``, if they are known."""
    program, count = reading.program, len(x)
    turned = torch.arange(count, device=x.device).flip(0)
    ways: list[tuple[str, Tensor]] = [(_TOGETHER, turned.flip(0)), ("the same inputs in another order", turned)]
    if not program.fixed:
        # The batch of three is in another order too; the batch of one is run twice.
        chosen = turned[:3] if count > 3 else turned[:2]
        one = turned[-1:]
        if first is not None:
            chosen = torch.cat([turned[:1], one])  # the input that was read exactly, once more beside another
        ways = [ways[0], (f"a batch of {len(chosen)}", chosen), ("a batch of one", one), ("the same input again", one)]
        if count == _POINTS[0][1]:  # what only rows far from the first show
            ways.append((f"a batch of {_MANY}", turned.repeat(_MANY)[:_MANY]))
        ways = ways if first is None else ways[:3]  # where one evaluation is long, batches are the repetition
        if program.other:  # a size that torch took for a number may matter anywhere
            ways += [(f"a batch of {n}", turned.repeat(n)[:n]) for n in (2, 4, 8, 16, 33)]
    unit = _unit(program, x.dtype)
    room: Tensor | None = None
    for words, rows in ways:
        found = first if first is not None and words == _TOGETHER else _outputs(module, x[rows], words)
        right = expected[rows]
        _require_shape(module, found, tuple(right.shape), words)
        quick = _UNITS * unit * by_row(right) + torch.finfo(x.dtype).tiny
        finite = (torch.isfinite(found) & torch.isfinite(right)).reshape(len(found), -1).all(1)
        if not bool(finite.any()):
            continue  # it overflows in its own dtype
        gap = by_row(torch.where(_like(finite, found), found.to(torch.float64) - right, 0.0))
        if bool((gap <= quick).all()):
            continue
        if room is None:
            room = _rounding_of_module(reading, x, expected, unit)
        if not bool((gap <= quick + room[rows]).all()):
            raise _other(module, f"For {words} it computes something else than torch.export reads.")


def _rounding_of_module(reading: Reading, x: Tensor, expected: Tensor, unit: float) -> Tensor:
    """How far, by row, rounding in the module's dtype may take its outputs.

    That is its running error, at most ``_CAP`` units of the largest value on the way, so that a deep network's bound,
    which grows without end, does not excuse everything; or what the program itself shows in that dtype. (In float64 it
    shows nothing: it is then its own reference. Yet batches of other sizes are summed in other orders.)
    """
    exact = x.to(torch.float64)
    room = _CAP * unit * _largest(reading.graph.values(exact))
    if understood(reading.graph) is None:
        # Errors are of first order in the unit roundoff, so float64's, scaled, are those of the dtype.
        running = by_row(enclose(reading.graph, exact).error) * (8.0 * unit / 2.0**-53)
        room = torch.minimum(room, running)
    own = run(reading.program, reading.reader, x, double=False).to(torch.float64)
    return torch.maximum(room, _MEASURED * by_row(torch.nan_to_num(own - expected, nan=torch.inf)))


def _unit(program: Program, dtype: torch.dtype) -> float:
    """The coarsest unit roundoff of the program's values."""
    units = [torch.finfo(dtype).eps]
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            units.append(torch.finfo(value.dtype).eps)
    return max(units) / 2.0


def _require_shape(module: nn.Module, found: Tensor, shape: tuple[int, ...], words: str) -> None:
    if tuple(found.shape) != shape:
        raise _other(module, f"For {words} it returns the shape {tuple(found.shape)}, not {shape}.")


def _outputs(module: nn.Module, x: Tensor, words: str) -> Tensor:
    try:
        made = module(x)
    except Exception as error:
        raise _other(module, f"It fails for {words}: {first_line(error)}") from error
    tensors = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]
    if len(tensors) != 1:
        raise _other(module, "A network has one tensor as output.")
    return tensors[0].detach()


def _other(module: nn.Module, hint: str) -> UnsupportedOperation:
    return UnsupportedOperation(type(module).__name__, "forward", hint)


__all__ = ["BATCH", "by_row", "check_reading", "random_points", "run"]
