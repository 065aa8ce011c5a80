"""Properties as VNN-LIB text, versions 1.0 and 2.0: it describes the counterexample, so ``unsat`` means verified.

All numbers are fixed decimals with all their digits, so that the text is the property: where it is ``unsat`` over the
real numbers, the property holds, and what is proved of the property is so of the text.

Source: https://www.vnnlib.org (the standard of version 2.0, December 2025), and the files of VNN-COMP for 1.0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor

from lipbridge.errors import UnsupportedProblem
from lipbridge.problem.property import Case, Property
from lipbridge_adapters.vnnlib.decimals import exactly

#: Names of a number of the input and of the output, by their places.
Names = tuple[Callable[[int], str], Callable[[int], str]]


def vnnlib_1(asked: Property) -> str:
    """A property for the readers of VNN-COMP until 2025: variables ``X_i`` and ``Y_j``, comparisons of two of them.

    Raises:
        UnsupportedProblem: for inequalities of three outputs, or with other factors than one: its readers know neither.
    """
    n, m = math.prod(asked.input_shape), asked.outputs
    lines = [f"(declare-const X_{i} Real)" for i in range(n)] + [f"(declare-const Y_{j} Real)" for j in range(m)]
    return "\n".join([*lines, "", *_assertions(asked, (lambda i: f"X_{i}", lambda j: f"Y_{j}"), _compared)]) + "\n"


def vnnlib_2(asked: Property, input_shape: Sequence[int], output_shape: Sequence[int], network: str = "N") -> str:
    """A property in version 2.0: tensors of the shapes that the ONNX file has, numbers of type ``real``."""

    inputs, outputs = places_of(input_shape), places_of(output_shape)
    shapes = [",".join(map(str, shape)) for shape in (input_shape, output_shape)]
    head = [
        "(vnnlib-version <2.0>)",
        "",
        f"(declare-network {network}",
        f"  (declare-input X real [{shapes[0]}])",
        f"  (declare-output Y real [{shapes[1]}])",
        ")",
        "",
    ]
    names: Names = (lambda i: f"X{inputs[i]}", lambda j: f"Y{outputs[j]}")
    return "\n".join([*head, *_assertions(asked, names, _linear)]) + "\n"


def places_of(shape: Sequence[int]) -> list[str]:
    """The numbers of a tensor in version 2.0, in order: ``[0,0]``, ``[0,1]``, ..."""
    return [f"[{','.join(map(str, place))}]" for place in itertools.product(*map(range, shape))]


def _assertions(
    asked: Property, names: Names, inequality: Callable[[Sequence[float], float, Callable[[int], str]], str]
) -> list[str]:
    """One box and its cases, or one long disjunction of several boxes."""
    boxes = asked.boxes
    if len(boxes) == 1:
        lower, upper, cases = boxes[0]
        found = [f"(assert {line})" for line in _box(lower, upper, names[0])]
        outputs = [_conjunction(case, names[1], inequality) for case in cases]
        if len(outputs) == 1:
            return [*found, "", *(f"(assert {line})" for line in outputs[0])]
        return [*found, "", "(assert (or", *(f"  (and {' '.join(lines)})" for lines in outputs), "))"]
    options = [
        " ".join([*_box(case.lower, case.upper, names[0]), *_conjunction(case, names[1], inequality)])
        for case in asked.cases
    ]
    return ["(assert (or", *(f"  (and {option})" for option in options), "))"]


def _box(lower: Tensor, upper: Tensor, name: Callable[[int], str]) -> list[str]:
    found: list[str] = []
    for i, (low, high) in enumerate(zip(_numbers(lower), _numbers(upper), strict=True)):
        found += [f"(>= {name(i)} {exactly(low)})", f"(<= {name(i)} {exactly(high)})"]
    return found


def _conjunction(
    case: Case, name: Callable[[int], str], inequality: Callable[[Sequence[float], float, Callable[[int], str]], str]
) -> list[str]:
    rows = [_numbers(row) for row in case.rows]
    return [inequality(row, limit, name) for row, limit in zip(rows, _numbers(case.limits), strict=True)]


def _compared(row: Sequence[float], limit: float, name: Callable[[int], str]) -> str:
    held = [(j, factor) for j, factor in enumerate(row) if factor]
    if limit == 0.0 and sorted(factor for _, factor in held) == [-1.0, 1.0]:
        smaller, larger = (next(name(j) for j, factor in held if factor == sign) for sign in (1.0, -1.0))
        return f"(<= {smaller} {larger})"
    if [factor for _, factor in held] == [1.0]:
        return f"(<= {name(held[0][0])} {exactly(limit)})"
    if [factor for _, factor in held] == [-1.0]:
        return f"(>= {name(held[0][0])} {exactly(-limit)})"
    words = "VNN-LIB 1.0 compares two outputs, or one with a number: sums and factors need version 2.0."
    raise UnsupportedProblem(words)


def _linear(row: Sequence[float], limit: float, name: Callable[[int], str]) -> str:
    held = [(j, factor) for j, factor in enumerate(row) if factor]
    if limit == 0.0 and sorted(factor for _, factor in held) == [-1.0, 1.0]:
        return _compared(row, limit, name)
    terms = [name(j) if factor == 1.0 else f"(* {exactly(factor)} {name(j)})" for j, factor in held]
    total = "0.0" if not terms else terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"
    return f"(<= {total} {exactly(limit)})"


def _numbers(x: Tensor) -> list[float]:
    return cast(Any, x.flatten()).tolist()


__all__ = ["places_of", "vnnlib_1", "vnnlib_2"]
