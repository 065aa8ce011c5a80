"""A Lipschitz claim as VNN-LIB 2.0 of two networks that are equal: no twin is built, the pair is in the query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lipbridge.lowering.twin import signs
from lipbridge.problem.claim import LipschitzClaim
from lipbridge_adapters.vnnlib.decimals import exactly
from lipbridge_adapters.vnnlib.queries import places_of


def vnnlib_pairs(
    claim: LipschitzClaim, input_shape: Sequence[int], output_shape: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """By name, a query for each entry of ``y - x`` that is largest, its sign and the side of the outputs.

    The networks are ``f`` at x = X with output Y, and ``g``, equal to it, at y = U with output V.
    """
    inputs, outputs = places_of(input_shape), places_of(output_shape)
    shapes = [",".join(map(str, shape)) for shape in (input_shape, output_shape)]
    head = [
        "(vnnlib-version <2.0>)",
        "",
        f"(declare-network f\n  (declare-input X real [{shapes[0]}])\n  (declare-output Y real [{shapes[1]}])\n)",
        f"(declare-network g\n  (equal-to f)\n  (declare-input U real [{shapes[0]}])\n"
        f"  (declare-output V real [{shapes[1]}])\n)",
        "",
    ]
    near, far = exactly(claim.nearest), exactly(claim.farthest)
    box = [f"(assert (and (>= X{at} {exactly(claim.low)}) (<= X{at} {exactly(claim.high)})))" for at in inputs]
    for place, largest in enumerate(inputs):
        for told, difference in (("up", f"(- U{largest} X{largest})"), ("down", f"(- X{largest} U{largest})")):
            region = [*box, f"(assert (and (>= {difference} {near}) (<= {difference} {far})))"]
            for i, at in enumerate(inputs):
                if i != place and claim.norm == "inf":
                    smaller = f"(<= (- U{at} X{at}) {difference}) (<= (- X{at} U{at}) {difference})"
                    region.append(f"(assert (and {smaller}))")
                elif i != place:
                    region.append(f"(assert (and (<= (- U{at} X{at}) {far}) (<= (- X{at} U{at}) {far})))")
            for name, broken in _broken(claim, inputs, outputs, difference):
                yield f"input{place}{told}_{name}", "\n".join([*head, *region, "", *broken]) + "\n"


def _broken(
    claim: LipschitzClaim, inputs: Sequence[str], outputs: Sequence[str], difference: str
) -> Iterator[tuple[str, list[str]]]:
    L = exactly(claim.constant)
    if claim.norm == "inf":
        for j, at in enumerate(outputs):
            yield f"output{j}up", [f"(assert (>= (- V{at} Y{at}) (* {L} {difference})))"]
        for j, at in enumerate(outputs):
            yield f"output{j}down", [f"(assert (>= (- Y{at} V{at}) (* {L} {difference})))"]
        return
    for side, row in enumerate(signs(len(outputs))):
        terms = [f"(* {exactly(s)} (- V{at} Y{at}))" for s, at in zip(row, outputs, strict=True)]
        total = terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"
        # |d|_1 is the largest of its sums with signs, and L |d|_1 is to be below: below each of them is enough to ask.
        sums = [f"(>= {total} (* {L} {_sum(inputs, signs_of_d)}))" for signs_of_d in signs(len(inputs))]
        yield f"side{side}", [f"(assert (and {' '.join(sums)}))"]


def _sum(inputs: Sequence[str], row: Sequence[float]) -> str:
    terms = [f"(- U{at} X{at})" if s > 0 else f"(- X{at} U{at})" for s, at in zip(row, inputs, strict=True)]
    return terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"


__all__ = ["vnnlib_pairs"]
