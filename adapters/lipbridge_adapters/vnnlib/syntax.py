"""VNN-LIB text as nested lists of words, and what it declares. Nothing is guessed: what is not known is refused."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from lipbridge.errors import ModelFileError

#: Characters of a file, and brackets within brackets, at most.
MOST_TEXT, MOST_DEPTH = 2**27, 64
#: Digits of a number at most.
MOST_DIGITS = 2000

_TOKEN = re.compile(
    r"""\s+|;[^\n]*|(?P<word>"(?:[^"\\]|\\["\\nt])*"|<[^<>\s()]*>|[()\[\],]|(?:(?!<)[^\s()\[\],";]|<=?(?=\s))+)"""
)
_WHOLE = re.compile(r"(0|[1-9][0-9]{0,8})\Z")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?\Z")
#: Files of VNN-COMP until 2025 also have these.
_LOOSE_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\Z")

#: A word with the number of its line, or a list of such.
Word = tuple[str, int]
Node = Word | list["Node"]


def refused(line: int, why: str) -> ModelFileError:
    """The error of a line."""
    return ModelFileError(f"line {line}: {why}")


def parsed(text: str) -> list[list[Node]]:
    """The bracketed expressions of a file, in order.

    Raises:
        ModelFileError: with the line, for brackets that do not match, and characters that are none of the language.
    """
    if len(text) > MOST_TEXT:
        raise ModelFileError(f"the file has {len(text):,} characters, and {MOST_TEXT:,} are read")
    found: list[list[Node]] = []
    open_: list[list[Node]] = []
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise refused(line, f"{text[at]!r} is not expected")
        word = match["word"]
        if word == "(":
            if len(open_) >= MOST_DEPTH:
                raise refused(line, f"more than {MOST_DEPTH} brackets within each other")
            new: list[Node] = []
            (open_[-1] if open_ else found).append(new)
            open_.append(new)
        elif word == ")":
            if not open_:
                raise refused(line, "a bracket is closed that was not opened")
            open_.pop()
        elif word is not None:
            if not open_:
                raise refused(line, f"{word!r} is not in brackets")
            open_[-1].append((word, line))
        line += text.count("\n", at, match.end())
        at = match.end()
    if open_:
        raise refused(line, "the file ends before a bracket is closed")
    return found


def line_of(node: Node) -> int:
    """Where a node begins, about."""
    while isinstance(node, list):
        if not node:
            return 0
        node = node[0]
    return node[1]


def word(node: Node) -> str:
    """A word.

    Raises:
        ModelFileError: for a list.
    """
    if isinstance(node, list):
        raise refused(line_of(node), "a word is expected, not a bracket")
    return node[0]


def name(node: Node) -> str:
    """A name of a network, variable or type."""
    if _NAME.match(word(node)) is None:
        raise refused(line_of(node), f"{word(node)!r} is no name")
    return word(node)


def number(node: Node, *, loose: bool) -> Fraction | None:
    """The exact number that a word is, or None; ``loose`` admits exponents, as files of version 1.0 have them."""
    if isinstance(node, list):
        return None
    text = node[0]
    if (_LOOSE_NUMBER if loose else _NUMBER).match(text) is None:
        return None
    if len(text) > MOST_DIGITS:
        raise refused(node[1], f"a number has more than {MOST_DIGITS} digits")
    return Fraction(text)


@dataclass(frozen=True)
class Tensor:
    """A declared input or output: its name, type and shape, as they are written."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def place(self, indices: tuple[int, ...]) -> int | None:
        """The number of an entry in row-major order; None if there is none."""
        if len(indices) != len(self.shape) or any(i >= n for i, n in zip(indices, self.shape, strict=True)):
            return None
        found = 0
        for i, n in zip(indices, self.shape, strict=True):
            found = found * n + i
        return found


@dataclass(frozen=True)
class Declared:
    """What a query is about: the network's name, its input and its output, and the version of the text."""

    version: str
    network: str
    input: Tensor
    output: Tensor


def declared_2(items: list[list[Node]]) -> tuple[Declared, list[Node]]:
    """The declarations of a text of version 2.0, and its assertions.

    Raises:
        ModelFileError: for anything but one network with one input and one output, without hidden nodes.
    """
    head = items[0]
    if len(head) != 2 or word(head[1]) != "<2.0>":
        raise refused(line_of(head), "versions 1.0 and 2.0 of VNN-LIB are read: (vnnlib-version <2.0>)")
    networks = [item for item in items[1:] if item and item[0][0] == "declare-network"]
    rest = [item for item in items[1:] if item not in networks]
    if len(networks) != 1:
        raise refused(line_of(head), f"queries of one network are read, and this is of {len(networks)}")
    if items[1] is not networks[0]:
        raise refused(line_of(items[1]), "the network is declared before all else")
    own = networks[0]
    if len(own) < 2:
        raise refused(line_of(own), "the network has no name")
    tensors: dict[str, Tensor] = {}
    for part in own[2:]:
        if not isinstance(part, list) or not part:
            raise refused(line_of(own), "a network has inputs and outputs in brackets, and nothing else")
        kind = word(part[0])
        if kind not in ("declare-input", "declare-output"):
            raise refused(line_of(part), f"`{kind}` is not read: networks of an input and an output are")
        if kind in tensors or (kind == "declare-input" and tensors):
            raise refused(line_of(part), "networks of one input, and then one output, are read")
        tensors[kind] = _tensor(part)
    if len(tensors) != 2:
        raise refused(line_of(own), "the network needs an input and an output")
    given, made = tensors["declare-input"], tensors["declare-output"]
    if given.name == made.name:
        raise refused(line_of(own), f"`{given.name}` is declared twice")
    return Declared("2.0", name(own[1]), given, made), [_asserted(item) for item in rest]


def _tensor(part: list[Node]) -> Tensor:
    """``(declare-input X real [1,2])``."""
    if len(part) < 5:
        raise refused(line_of(part), "a name, a type and a shape are expected")
    shape, after = indices(part, 3, empty=True)
    if after != len(part):
        raise refused(line_of(part), f"{_shown(part[after])} is not read")
    if any(n < 1 for n in shape):
        raise refused(line_of(part), "lengths are at least 1")
    if math.prod(shape) > MOST_TEXT:
        raise refused(line_of(part), "the tensor is too large")
    return Tensor(name(part[1]), name(part[2]), shape)


def _shown(node: Node) -> str:
    return f"`{node[0]}`" if isinstance(node, tuple) else "a bracket"


def indices(part: list[Node], at: int, *, empty: bool = False) -> tuple[tuple[int, ...], int]:
    """Whole numbers in square brackets that begin at a place, and the place after them."""
    found: list[int] = []
    if at >= len(part) or part[at][0] != "[":
        raise refused(line_of(part), "whole numbers in square brackets are expected")
    at += 1
    if empty and at < len(part) and part[at][0] == "]":
        return (), at + 1
    while at + 1 < len(part):
        text = word(part[at])
        if _WHOLE.match(text) is None:
            raise refused(line_of(part[at]), f"`{text}` is no whole number")
        found.append(int(text))
        mark = word(part[at + 1])
        at += 2
        if mark == "]":
            return tuple(found), at
        if mark != ",":
            raise refused(line_of(part), "whole numbers in square brackets are expected")
    raise refused(line_of(part), "a square bracket is not closed")


CONSTANT = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})\Z")


def declared_1(items: list[list[Node]]) -> tuple[Declared, list[Node]]:
    """The same for version 1.0: constants ``X_0, X_1, ...`` and ``Y_0, ...`` of type Real, all declared."""
    counts = {"X": 0, "Y": 0}
    rest: list[Node] = []
    for item in items:
        if not item or word(item[0]) != "declare-const":
            rest.append(_asserted(item))
            continue
        match = CONSTANT.match(word(item[1])) if len(item) == 3 else None
        if match is None or word(item[2]) != "Real":
            raise refused(line_of(item), "constants X_i and Y_j of type Real are read")
        if rest:
            raise refused(line_of(item), "constants are declared before all assertions")
        if int(match[2]) != counts[match[1]]:
            raise refused(line_of(item), f"{match[0]} is expected to be {match[1]}_{counts[match[1]]}")
        counts[match[1]] += 1
    if not all(counts.values()):
        raise ModelFileError("constants X_0, ... and Y_0, ... are expected, and assertions about them")
    given, made = (Tensor(letter, "Real", (counts[letter],)) for letter in "XY")
    return Declared("1.0", "", given, made), rest


def _asserted(item: list[Node]) -> Node:
    if not item or word(item[0]) != "assert":
        raise refused(line_of(item), f"{_shown(item[0]) if item else 'an empty bracket'} is not read here")
    if len(item) != 2 or not isinstance(item[1], list):
        raise refused(line_of(item), "an assertion is one bracket")
    return item[1]


def declarations(text: str) -> tuple[Declared, list[Node]]:
    """What a text declares, of either version, and its assertions.

    Raises:
        ModelFileError: with the line and the reason.
    """
    items = parsed(text)
    if not items:
        raise ModelFileError("the file holds nothing")
    first = items[0][0] if items[0] else ("", 1)
    if len(items) > 1 and isinstance(first, tuple) and first[0] == "vnnlib-version":
        found = declared_2(items)
    else:
        found = declared_1(items)
    if not found[1]:
        raise ModelFileError("nothing is asserted")
    return found


__all__ = [
    "CONSTANT",
    "MOST_TEXT",
    "Declared",
    "Node",
    "Tensor",
    "declarations",
    "indices",
    "line_of",
    "number",
    "parsed",
    "refused",
    "word",
]
