"""Assertions as alternatives: each a box of inputs and linear inequalities of outputs, in exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from lipbridge.errors import ModelFileError
from lipbridge_adapters.vnnlib.syntax import CONSTANT, Declared, Node, indices, line_of, number, refused, word

#: Alternatives, and inequalities in all of them, at most.
MOST_CASES, MOST_LITERALS = 20_000, 4_000_000

#: Factors of numbers of the input (0) and output (1), and a constant.
Place = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """``sum of factors * numbers + constant``."""

    factors: dict[Place, Fraction]
    constant: Fraction

    def times(self, k: Fraction) -> Form:
        """k times it."""
        return Form({place: k * a for place, a in self.factors.items()}, k * self.constant)

    def plus(self, other: Form) -> Form:
        """The sum; numbers that cancel are left out."""
        found = dict(self.factors)
        for place, a in other.factors.items():
            found[place] = found.get(place, Fraction(0)) + a
        return Form({place: a for place, a in found.items() if a}, self.constant + other.constant)


@dataclass(frozen=True)
class Literal:
    """``form <= 0``, or below it for ``strict``; ``line`` of the text."""

    form: Form
    strict: bool
    line: int


@dataclass(eq=False)
class Alternative:
    """One way to obey all assertions.

    Attributes:
        lower, upper: by the number of an input: the bound, and whether it is strict.
        outputs: linear inequalities of outputs: factors by number, the limit that the sum is at most, and strictness.
    """

    lower: dict[int, tuple[Fraction, bool]] = field(default_factory=lambda: {})
    upper: dict[int, tuple[Fraction, bool]] = field(default_factory=lambda: {})
    outputs: list[tuple[dict[int, Fraction], Fraction, bool]] = field(default_factory=lambda: [])
    possible: bool = True

    def take(self, literal: Literal) -> None:
        """One more inequality.

        Raises:
            ModelFileError: if it is of several inputs, or of inputs and outputs.
        """
        factors, constant = literal.form.factors, literal.form.constant
        kinds = {kind for kind, _ in factors}
        if not factors:
            self.possible &= constant < 0 or (constant == 0 and not literal.strict)
        elif kinds == {1}:
            own = {place: a for (_, place), a in factors.items()}
            self.outputs.append((own, -constant, literal.strict))
        elif kinds == {0} and len(factors) == 1:
            (((_, place), a),) = factors.items()
            bound = (-constant / a, literal.strict)
            if a > 0:
                self.upper[place] = min(self.upper.get(place, bound), bound, key=lambda b: (b[0], not b[1]))
            else:
                self.lower[place] = max(self.lower.get(place, bound), bound, key=lambda b: (b[0], b[1]))
        else:
            what = "inputs and outputs together" if kinds == {0, 1} else "several inputs"
            raise refused(
                literal.line, f"an inequality of {what} is not read: inputs have bounds, outputs inequalities"
            )

    def empty(self) -> bool:
        """Whether no input is in the box."""
        if not self.possible:
            return True
        for place, (low, strict) in self.lower.items():
            if place in self.upper:
                high, other = self.upper[place]
                if low > high or (low == high and (strict or other)):
                    return True
        return False


def alternatives(declared: Declared, assertions: Sequence[Node]) -> list[Alternative]:
    """All ways to obey all assertions; none if they contradict each other.

    Raises:
        ModelFileError: with the line, for what is not read: products of variables, inputs without bounds.
    """
    reader = _Reader(declared)
    common: list[Literal] = []
    choices: list[list[list[Literal]]] = []
    for node in assertions:
        found = reader.formula(node)
        if len(found) == 1:
            common += found[0]
        else:
            choices.append(found)
    ways: list[list[Literal]] = [[]]
    for choice in choices:
        ways = _limited([[*way, *more] for way in ways for more in choice])
    if len(ways) * len(common) + sum(map(len, ways)) > MOST_LITERALS:
        raise ModelFileError(f"its alternatives hold more than {MOST_LITERALS:,} inequalities")
    held: list[Alternative] = []
    for way in ways:
        one = Alternative()
        for literal in (*common, *way):
            one.take(literal)
        if one.empty():
            continue
        for place in range(declared.input.size):
            if place not in one.lower or place not in one.upper:
                raise ModelFileError(f"input {place} (from 0) has no bounds on both sides, in some alternative")
        held.append(one)
    return held


def _limited(ways: list[list[Literal]]) -> list[list[Literal]]:
    if len(ways) > MOST_CASES:
        raise ModelFileError(f"it has more than {MOST_CASES:,} alternatives: ask less at once")
    return ways


_COMPARISONS = ("<=", ">=", "<", ">", "==", "!=")


class _Reader:
    def __init__(self, declared: Declared) -> None:
        self.declared, self.loose = declared, declared.version == "1.0"

    def formula(self, node: Node) -> list[list[Literal]]:
        """As alternatives of inequalities that hold together."""
        if not isinstance(node, list) or not node:
            raise refused(line_of(node), "a comparison, `and` or `or` in brackets is expected")
        kind = word(node[0])
        if kind in _COMPARISONS:
            return self.comparison(kind, node)
        if kind not in ("and", "or") or len(node) < 2:
            raise refused(line_of(node), f"`{kind}` is not read: and, or, and comparisons are")
        parts = [self.formula(part) for part in node[1:]]
        if kind == "or":
            return _limited([way for part in parts for way in part])
        found: list[list[Literal]] = [[]]
        for part in parts:
            if len(part) == 1:
                for way in found:
                    way += part[0]
            else:
                found = _limited([[*way, *more] for way in found for more in part])
        return found

    def comparison(self, kind: str, node: list[Node]) -> list[list[Literal]]:
        line = line_of(node)
        terms: list[Form] = []
        at = 1
        while at < len(node):
            form, at = self.term(node, at)
            terms.append(form)
        if len(terms) != 2:
            raise refused(line, f"`{kind}` compares two terms, not {len(terms)}")
        if self.loose and kind not in ("<=", ">="):
            raise refused(line, f"`{kind}` is not of version 1.0: <= and >= are")
        below = terms[0].plus(terms[1].times(Fraction(-1)))
        above = below.times(Fraction(-1))
        if kind == "==":
            return [[Literal(below, False, line), Literal(above, False, line)]]
        if kind == "!=":
            return [[Literal(below, True, line)], [Literal(above, True, line)]]
        return [[Literal(below if kind[0] == "<" else above, kind in "<>", line)]]

    def term(self, node: list[Node], at: int) -> tuple[Form, int]:
        """The term that begins at a place, and the place after it."""
        own = node[at]
        if isinstance(own, list):
            return self.compound(own), at + 1
        value = number(own, loose=self.loose)
        if value is not None:
            return Form({}, value), at + 1
        if self.loose:
            match = CONSTANT.match(own[0])
            size = {"X": self.declared.input.size, "Y": self.declared.output.size}
            if match is None or int(match[2]) >= size[match[1]]:
                raise refused(own[1], f"`{own[0]}` is not declared")
            return Form({("XY".index(match[1]), int(match[2])): Fraction(1)}, Fraction(0)), at + 1
        for kind, tensor in enumerate((self.declared.input, self.declared.output)):
            if own[0] == tensor.name:
                given: tuple[int, ...] = ()
                after = at + 1
                if tensor.shape:
                    given, after = indices(node, at + 1)
                place = tensor.place(given)
                if place is None:
                    raise refused(own[1], f"{tensor.name} of shape {list(tensor.shape)} has no entry {list(given)}")
                return Form({(kind, place): Fraction(1)}, Fraction(0)), after
        raise refused(own[1], f"`{own[0]}` is neither a number nor declared")

    def compound(self, node: list[Node]) -> Form:
        kind = word(node[0]) if node else ""
        if kind not in ("+", "-", "*") or len(node) < 2:
            raise refused(line_of(node), f"`{kind}` is not read in a term: +, - and * are")
        terms: list[Form] = []
        at = 1
        while at < len(node):
            form, at = self.term(node, at)
            terms.append(form)
        found = terms[0]
        if kind == "-" and len(terms) == 1:
            return found.times(Fraction(-1))
        for other in terms[1:]:
            if kind == "*":
                if found.factors and other.factors:
                    raise refused(line_of(node), "a product of two variables is not linear, and not read")
                found = other.times(found.constant) if not found.factors else found.times(other.constant)
                if not all(found.factors.values()):
                    found = Form({}, found.constant)
            else:
                found = found.plus(other if kind == "+" else other.times(Fraction(-1)))
        return found


__all__ = ["Alternative", "alternatives"]
