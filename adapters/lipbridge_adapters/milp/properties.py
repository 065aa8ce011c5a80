"""Whether some input of a box obeys linear inequalities of a piecewise linear network's outputs, as a program.

The largest t >= 0 is asked for by which all inequalities are obeyed, so there is none if no input obeys them. A unit
that may be on either side of a kink takes a binary variable. Bounds of what units read come from
:func:`lipbridge.propagation.bounds.forward_bounds`.

Source: Tjeng, Xiao and Tedrake 2019 (arXiv 1711.07356); hinges of any number, and any acyclic network, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.graph.nodes import Add, Concat, Dense, Elementwise, Gather, Input, Reshape
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.lowering.selections import lower_selections
from lipbridge.problem.property import Case
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.verifiers.properties import as_cube
from lipbridge_adapters.milp.formulation import blocks_of, rectified, wider
from lipbridge_adapters.milp.network import hinges_of
from lipbridge_adapters.milp.program import Affine, Program, Vector


@dataclass(frozen=True, eq=False)
class CaseProgram:
    """The program of a case.

    Attributes:
        program: whose objective is t, of at least zero: each of its points is a counterexample.
        inputs: the columns of the flattened input.
    """

    program: Program
    inputs: Vector

    def input(self, point: Vector, case: Case) -> Vector:
        """The input of a point of the program, moved into the case's box."""
        low, high = (end.flatten().cpu().numpy() for end in (case.lower, case.upper))
        return np.clip(point[self.inputs], low, high)


def case_program(graph: Graph, case: Case) -> CaseProgram:
    """The program of a network and a case.

    Raises:
        UnsupportedProblem: for a network that is not piecewise linear, or too large as matrices.
        NumericalFailure: for bounds beyond float64.
    """
    graph = lower_to_dense(lower_selections(with_axes(graph))).graph
    cube, ball = as_cube(graph, case.lower[None], case.upper[None])
    found = forward_bounds(cube, ball, layer_norms(cube, "inf"), steps=0)[len(cube.nodes) - len(graph.nodes) :]
    program = Program()
    low, high = (end.flatten().cpu().numpy() for end in (case.lower, case.upper))
    inputs = program.variables(low, high)
    values: list[Affine] = []
    for index, node in enumerate(graph.nodes):
        sources = [values[i] for i in node.inputs]
        if isinstance(node, Input):
            values.append(Affine.of(inputs))
        elif isinstance(node, Dense):
            shift = np.zeros(len(node.weight)) if node.bias is None else node.bias.cpu().numpy()
            values.append(sources[0].image(node.weight.cpu().numpy(), shift))
        elif isinstance(node, Elementwise):
            bounds = found[node.inputs[0]]
            ends = bounds.lower.flatten().cpu().numpy(), bounds.upper.flatten().cpu().numpy()
            values.append(_activation(program, node, sources[0], *ends))
        elif isinstance(node, Add):
            values.append(_sum(sources))
        elif isinstance(node, Concat):
            values.append(_joined(sources, len(graph.nodes[index].shape)))
        elif isinstance(node, Gather):
            values.append(_gathered(sources[0], node.index.flatten().cpu().numpy()))
        elif isinstance(node, Reshape) and node.axes is None:
            values.append(sources[0])
        else:
            raise UnsupportedProblem(f"a {type(node).__name__} cannot be said in a mixed-integer linear program")
    rows, limits = case.rows.cpu().numpy(), case.limits.cpu().numpy()
    y = values[-1].image(rows)
    reach = found[-1]
    most = np.maximum(reach.lower.abs().flatten().cpu().numpy(), reach.upper.abs().flatten().cpu().numpy())
    room = float((np.abs(rows) @ most + np.abs(limits)).max())
    if not np.isfinite(room):
        raise NumericalFailure("The bounds of the outputs on the box are beyond float64.")
    t = Affine.of(program.variables(np.zeros(1), np.array([room])))
    program.at_most(y.plus(t.image(np.ones((len(rows), 1)))), Affine.fixed(limits))
    program.objective = t
    return CaseProgram(program, inputs)


def _activation(program: Program, node: Elementwise, source: Affine, lower: Vector, upper: Vector) -> Affine:
    if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        raise NumericalFailure("The bounds of pre-activations on the box are beyond float64.")
    hinges = hinges_of(node.activation)
    t = program.held(source, *wider(lower, upper))
    parts: list[Affine] = []
    for kink in hinges.kinks:
        above = t.image(np.eye(len(lower)), np.full(len(lower), -kink))
        free = np.flatnonzero((lower <= kink) & (upper >= kink))
        parts.append(
            rectified(program, above, free, program.binaries(len(free)), lower - kink, upper - kink, lower > kink)
        )
    return blocks_of(hinges, t, parts)


def _sum(parts: list[Affine]) -> Affine:
    found = parts[0]
    for part in parts[1:]:
        found = found.plus(part)
    return found


def _joined(parts: list[Affine], axes: int) -> Affine:
    if axes != 1:
        raise UnsupportedProblem("a Concat of more than one axis cannot be said in a mixed-integer linear program")
    sizes = [len(part.constant) for part in parts]
    ends = np.cumsum([0, *sizes])
    eye = np.eye(ends[-1])
    return _sum(
        [part.image(eye[:, start : start + size]) for part, start, size in zip(parts, ends, sizes, strict=False)]
    )


def _gathered(source: Affine, index: Vector) -> Affine:
    matrix = np.zeros((len(index), len(source.constant)))
    held = np.flatnonzero(index >= 0)
    matrix[held, index[held]] = 1.0
    return source.image(matrix)


__all__ = ["CaseProgram", "case_program"]
