"""The largest norm of a piecewise linear network's Jacobian on a ball, as a mixed-integer program.

A unit's slope between two kinks is a sum of steps, each times a binary variable a: 1 above the kink, 0 below, either at
the kink itself. With pre-activations between bounds that are known, ``max(t - kink, 0)`` is linear in t and a, and so
is the product of a with a number between known bounds (a big-M constraint each): here a cotangent, from the output
backwards, or a tangent, from the input forwards. The last layer's product is one of a with a constant. The absolute
value of an entry whose sign is not known takes another binary.

Source: Jordan and Dimakis 2020 (arXiv 2003.01219); hinges of any number and components, and the bounds of Jacobians
(:mod:`lipbridge.propagation.jacobian`) in place of interval products, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipbridge_adapters.milp.network import FREE, ON, Hinges, Reach
from lipbridge_adapters.milp.program import Affine, Program, Vector, total

#: Bounds are proved outward in exact arithmetic; the program's own numbers are rounded, so they get this much more.
ROOM = 1e-12

Ends = tuple[Vector, Vector]


@dataclass(frozen=True, eq=False)
class Pattern:
    """The program's variables that say where a point is, and which slopes it has.

    Attributes:
        input: the flattened input.
        slopes: by activation ``(units, kinks)``: the column of the binary, or ON or OFF.
    """

    input: Affine
    slopes: Sequence[Vector]


def activations(program: Program, reach: Reach) -> Pattern:
    """Rows for every activation's argument and value on the ball, up to the last one."""
    y = x = _input(program, reach)
    found: list[Vector] = []
    network = reach.network
    for W, b, hinges, (lower, upper), states in zip(
        network.weights, network.biases, network.hinges, reach.arguments, reach.states, strict=False
    ):
        t = program.held(y.image(W, b), *wider(lower, upper))
        columns = states.copy()
        parts: list[Affine] = []
        for j, kink in enumerate(hinges.kinks):
            above = t.image(np.eye(len(lower)), np.full(len(lower), -kink))
            free = np.flatnonzero(states[:, j] == FREE)
            a = program.binaries(len(free))
            columns[free, j] = a
            parts.append(rectified(program, above, free, a, lower - kink, upper - kink, states[:, j] == ON))
        y = blocks_of(hinges, t, parts)
        found.append(columns)
    return Pattern(x, found)


def row_program(reach: Reach, rows: Vector, cotangents: Sequence[Ends], entries: Ends) -> tuple[Program, Pattern]:
    """The largest l_1 norm of a row of the Jacobian: what one output gains in l_inf.

    Args:
        reach: what is known on the ball.
        rows: of which outputs; of several, the program chooses one.
        cotangents, entries: of :meth:`Reach.cotangents`.

    Returns:
        The program, with its objective, and its pattern.
    """
    program, pattern, values = _row(reach, rows, cotangents)
    program.objective = total([_absolute(program, values, *_hull(entries, rows))])
    return program, pattern


def entry_program(reach: Reach, rows: Vector, cotangents: Sequence[Ends], entries: Ends) -> tuple[Program, Pattern]:
    """As :func:`row_program`, for the largest absolute entry of the row: what l_1 changes do to an output."""
    program, pattern, values = _row(reach, rows, cotangents)
    program.objective = _largest(program, values, *_hull(entries, rows))
    return program, pattern


def column_program(reach: Reach, columns: Vector, tangents: Sequence[Ends]) -> tuple[Program, Pattern]:
    """The largest l_1 norm of a column of the Jacobian: what the output gains in l_1 from one input.

    Args:
        reach: what is known on the ball.
        columns: of which inputs; of several, the program chooses one.
        tangents: of :meth:`Reach.tangents`.
    """
    program = Program()
    pattern = activations(program, reach)
    network = reach.network
    u = _choice(program, network.weights[0].T[columns])
    for W, hinges, slopes, ends in zip(network.weights[1:], network.hinges, pattern.slopes, tangents, strict=False):
        lower, upper = _hull((ends[0].T, ends[1].T), columns)
        if not u.known:
            u = program.held(u, *wider(lower, upper))
        parts = [_product(program, slopes[:, j], u, lower, upper) for j in range(len(hinges.kinks))]
        u = blocks_of(replace(hinges, value=0.0 * hinges.value), u, parts).image(W)
    program.objective = total([_absolute(program, u, *_hull((tangents[-1][0].T, tangents[-1][1].T), columns))])
    return program, pattern


def _row(reach: Reach, rows: Vector, cotangents: Sequence[Ends]) -> tuple[Program, Pattern, Affine]:
    """The program of the network's values and of a row of its Jacobian, and that row."""
    program = Program()
    pattern = activations(program, reach)
    network = reach.network
    c = _choice(program, network.weights[-1][rows])
    for index in reversed(range(len(network.hinges))):
        hinges, slopes = network.hinges[index], pattern.slopes[index]
        lower, upper = _hull(cotangents[index], rows)
        if not c.known:
            c = program.held(c, *wider(lower, upper))
        units = len(slopes)
        blocks = [np.arange(k * units, (k + 1) * units) for k in range(hinges.components)]
        found = _weighted(c, blocks, hinges.first)
        for j in range(len(hinges.kinks)):
            steps = hinges.steps[:, j]
            ends = [(s * lower[block], s * upper[block]) for s, block in zip(steps, blocks, strict=True)]
            least = np.sum([np.minimum(*pair) for pair in ends], 0)
            most = np.sum([np.maximum(*pair) for pair in ends], 0)
            found = found.plus(_product(program, slopes[:, j], _weighted(c, blocks, steps), least, most))
        c = found.image(network.weights[index].T)
    return program, pattern, c


def _choice(program: Program, rows: Vector) -> Affine:
    """The only row of a matrix, or one that the program chooses."""
    if len(rows) == 1:
        return Affine.fixed(rows[0])
    chosen = Affine.of(program.binaries(len(rows)))
    program.equal(total([chosen]), Affine.fixed(np.ones(1)))
    return chosen.image(rows.T)


def _hull(ends: Ends, rows: Vector) -> Ends:
    """An interval, entry by entry, that holds those of some rows."""
    return ends[0][rows].min(0), ends[1][rows].max(0)


def _input(program: Program, reach: Reach) -> Affine:
    """The flattened input as ``centre + radius d``, d in the unit ball of l_inf or l_1."""
    center, radius = reach.ball.centers[0].flatten().cpu().numpy(), reach.ball.radius
    n = len(center)
    one = np.ones(n)
    if reach.ball.norm == "inf":
        d = Affine.of(program.variables(-one, one))
        if reach.shrink is not None:
            _on_a_face(program, d)
    else:
        up, down = Affine.of(program.variables(0 * one, one)), Affine.of(program.variables(0 * one, one))
        program.at_most(total([up, down]), Affine.fixed(np.ones(1)))
        d = up.plus(down.times(-one))
    return d.image(radius * np.eye(n), center)


def _on_a_face(program: Program, d: Affine) -> None:
    """Some entry of d, between -1 and 1, is 1 or -1."""
    n = len(d.constant)
    up, down = Affine.of(program.binaries(n)), Affine.of(program.binaries(n))
    program.equal(total([up, down]), Affine.fixed(np.ones(1)))
    program.at_most(up.image(2.0 * np.eye(n), -1.0), d)
    program.at_most(d, down.image(-2.0 * np.eye(n), 1.0))


def rectified(program: Program, t: Affine, free: Vector, a: Vector, lower: Vector, upper: Vector, on: Vector) -> Affine:
    """``max(t, 0)`` for t between bounds; a is 1 where t > 0, 0 where t < 0."""
    lower, upper = wider(lower, upper)
    low, high = np.minimum(lower[free], 0.0), np.maximum(upper[free], 0.0)
    h, own, binary = Affine.of(program.variables(0.0 * high, high)), t.take(free), Affine.of(a)
    program.at_most(own, h)
    program.at_most(h, binary.times(high))
    program.at_most(h, own.plus(binary.times(low)).image(np.eye(len(free)), -low))
    return placed(h, free, len(lower)).plus(t.times(on.astype(float)))


def _product(program: Program, columns: Vector, value: Affine, lower: Vector, upper: Vector) -> Affine:
    """Entries of ``value``, between bounds, times slopes of 0 or 1 (``columns`` as in :class:`Pattern`)."""
    count, free = len(columns), np.flatnonzero(columns >= 0)
    certain = value.times((columns == ON).astype(float))
    if not len(free):
        return certain
    binary = Affine.of(columns[free])
    own = value.take(free)
    if own.known:
        return certain.plus(placed(binary.times(own.constant), free, count))
    low, high = wider(lower[free], upper[free])
    m = Affine.of(program.variables(np.minimum(low, 0.0), np.maximum(high, 0.0)))
    eye = np.eye(len(free))
    program.at_most(m, binary.times(high))
    program.at_most(binary.times(low), m)
    program.at_most(m, own.plus(binary.times(low)).image(eye, -low))
    program.at_most(own.plus(binary.times(high)).image(eye, -high), m)
    return certain.plus(placed(m, free, count))


def _absolute(program: Program, value: Affine, lower: Vector, upper: Vector) -> Affine:
    """Numbers that are at most the absolute values of the entries, and may be equal to them."""
    sign = np.where(upper <= 0.0, -1.0, 1.0)
    mixed = np.flatnonzero((lower < 0.0) & (upper > 0.0))
    sign[mixed] = 0.0
    certain = value.times(sign)
    if not len(mixed):
        return certain
    low, high = wider(lower[mixed], upper[mixed])
    own = program.held(value.take(mixed), low, high)
    u = Affine.of(program.variables(0.0 * high, np.maximum(high, -low)))
    positive = Affine.of(program.binaries(len(mixed)))
    program.at_most(u, own.plus(positive.times(2.0 * low)).image(np.eye(len(mixed)), -2.0 * low))
    program.at_most(u, own.times(-np.ones(len(mixed))).plus(positive.times(2.0 * high)))
    return certain.plus(placed(u, mixed, len(lower)))


def _largest(program: Program, value: Affine, lower: Vector, upper: Vector) -> Affine:
    """A number that is at most the largest absolute value of the entries, and may be equal to it."""
    low, high = wider(lower, upper)
    most = float(np.maximum(high, -low).max(initial=0.0))
    n = len(lower)
    own = program.held(value, low, high)
    best = Affine.of(program.variables(np.zeros(1), np.array([most])))
    each = best.image(np.ones((n, 1)))
    up, down = Affine.of(program.binaries(n)), Affine.of(program.binaries(n))
    program.equal(total([up, down]), Affine.fixed(np.ones(1)))
    eye = np.eye(n)
    program.at_most(each.plus(up.times(most - low)), own.image(eye, most - low))
    program.at_most(each.plus(down.times(most + high)), own.image(-eye, most + high))
    return best


def blocks_of(hinges: Hinges, t: Affine, rectified: Sequence[Affine]) -> Affine:
    """The components of an activation, one block after the other, from t and ``max(t - kink, 0)``."""
    units = len(t.constant)
    parts: list[Affine] = []
    for first, steps, value in zip(hinges.first, hinges.steps, hinges.value, strict=True):
        own = t.image(first * np.eye(units), np.full(units, value))
        for step, part in zip(steps, rectified, strict=True):
            own = own.plus(part.image(step * np.eye(units)))
        parts.append(own)
    columns = parts[0].columns  # all have the same columns, in the same order
    return Affine(np.concatenate([p.matrix for p in parts]), columns, np.concatenate([p.constant for p in parts]))


def _weighted(value: Affine, blocks: Sequence[Vector], factors: Vector) -> Affine:
    """A weighted sum of blocks of entries."""
    matrix = np.zeros((len(blocks[0]), len(value.constant)))
    for factor, block in zip(factors, blocks, strict=True):
        matrix[np.arange(len(block)), block] = factor
    return value.image(matrix)


def placed(value: Affine, rows: Vector, count: int) -> Affine:
    """The entries at some places of a vector of zeros."""
    matrix = np.zeros((count, len(rows)))
    matrix[rows, np.arange(len(rows))] = 1.0
    return value.image(matrix)


def wider(lower: Vector, upper: Vector) -> tuple[Vector, Vector]:
    """The same bounds with room for the rounding of a program's own numbers."""
    room = ROOM * np.maximum(np.abs(lower), np.abs(upper))
    return lower - room, upper + room


__all__ = [
    "Pattern",
    "activations",
    "blocks_of",
    "column_program",
    "entry_program",
    "placed",
    "rectified",
    "row_program",
    "wider",
]
