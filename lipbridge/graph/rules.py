"""Rules: what is known of every kind of node for one purpose, as a table that a test can walk.

Each kind of node has a cell in each rule: a function, or the reason why there is none. A test walks all of them
(``tests/graph/test_node_table.py``), so that a new kind is not forgotten anywhere, nor a new rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from lipbridge.errors import UnsupportedOperation, UnsupportedProblem
from lipbridge.graph.nodes import Input, Node

P = ParamSpec("P")
R = TypeVar("R")

#: Why no rule has a function of a network's first node.
BEGINNING = "a network begins with it, and what is known of it is given"
#: All rules by name, once the modules that make them are imported.
RULES: dict[str, Rule[Any, Any]] = {}


class Rule(Generic[P, R]):
    """A function of a node and more, written down kind by kind: ``rule(node, ...)`` calls the one of the node's kind.

    Args:
        name: for whom reads the table.
        missing: what is told of a kind that has no function, if the table says nothing of its own.
    """

    def __init__(self, name: str, missing: str = "") -> None:
        self.name, self.missing = name, missing
        self._cells: dict[type[Node], Callable[..., R] | str] = {Input: BEGINNING}
        RULES[name] = self

    def of(self, *kinds: type[Node]) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Decorator: the function of these kinds of nodes."""

        def register(function: Callable[..., R]) -> Callable[..., R]:
            for kind in kinds:
                self._fill(kind, function)
            return function

        return register

    def without(self, *kinds: type[Node], reason: str) -> None:
        """Say why there is no function for these kinds."""
        for kind in kinds:
            self._fill(kind, reason)

    def cell(self, kind: type[Node]) -> Callable[..., R] | str | None:
        """The function of a kind, or the reason why there is none; None if the cell is empty."""
        return next((self._cells[base] for base in kind.__mro__ if base in self._cells), None)

    def knows(self, kind: type[Node]) -> bool:
        """Whether there is a function for a kind."""
        return callable(self.cell(kind))

    def __call__(self, node: Node, /, *args: P.args, **kwargs: P.kwargs) -> R:
        cell = self.cell(type(node))
        if callable(cell):
            return cell(node, *args, **kwargs)
        raise self.refusal(node, cell or self.missing)

    def refusal(self, node: Node, reason: str) -> Exception:
        """What is raised for a node without a function."""
        return UnsupportedOperation(node.name, type(node).__name__, reason)

    def _fill(self, kind: type[Node], cell: Callable[..., R] | str) -> None:
        if kind in self._cells:
            raise ValueError(f"Rule {self.name!r} says something of {kind.__name__} already.")
        self._cells[kind] = cell


class ProblemRule(Rule[P, R]):
    """A rule without which a problem cannot be taken: ``missing`` ends the sentence "Layer `name` (Kind) ..."."""

    def refusal(self, node: Node, reason: str) -> Exception:
        return UnsupportedProblem(f"Layer `{node.name}` ({type(node).__name__}) {reason}")
