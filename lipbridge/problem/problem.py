"""Problem: a network and what is asked about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph, tensors, with_axes
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import Norm, Quantity

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Problem:
    """A Graph and a Question.

    Outputs that are a number an input, of shape ``(batch,)``, are held in the shape ``(batch, 1)``.

    Raises:
        InvalidArgument: for anything else, or a region whose centres are no inputs of the Graph.
    """

    graph: Graph
    question: Question
    _kept: dict[Any, tuple[int, Any]] = field(init=False, repr=False, default_factory=lambda: {})

    def __post_init__(self) -> None:
        words = "be a Graph, which lipbridge.capture(module) or read_onnx(file) gives"
        checks.instance(self.graph, Graph, "graph", words)
        object.__setattr__(self, "graph", with_axes(self.graph))
        checks.instance(self.question, Question, "question", "be a Question, e.g. Question.everywhere(2)")
        region = self.question.region
        if region is not None and tuple(region.centers.shape[1:]) != self.graph.input_shape:
            expected = f"have centres of shape (k, {', '.join(map(str, self.graph.input_shape))}), inputs of the graph"
            raise InvalidArgument("region", expected, tuple(region.centers.shape))

    def once(self, make: Callable[[Problem], T]) -> T:
        """``make(self)``, computed the first time and kept: several verifiers read the same chain of one problem.

        It is computed anew where a number of the Graph has changed meanwhile, in whatever way.
        """
        digest = hash(tuple(map(_digest, (t for node in self.graph for t in tensors(node).values()))))
        if make not in self._kept or self._kept[make][0] != digest:
            self._kept[make] = digest, make(self)
        return self._kept[make][1]

    @property
    def input_norm(self) -> Norm:
        """p: changes of the input are measured in it."""
        return self.question.input_norm

    @property
    def output_norm(self) -> Norm:
        """q: changes of the output are measured in it."""
        return self.question.output_norm

    @property
    def region(self) -> Ball | None:
        """Where it is asked; None is everywhere."""
        return self.question.region

    @property
    def quantity(self) -> Quantity:
        """What is to be bounded."""
        return self.question.quantity

    @property
    def norm_name(self) -> str:
        """As :attr:`Question.norm_name`."""
        return self.question.norm_name

    @property
    def region_name(self) -> str:
        """As :attr:`Question.region_name`."""
        return self.question.region_name


def _digest(tensor: Tensor) -> int:
    """Of the numbers themselves: torch's own count of changes misses those through ``.data`` and numpy."""
    return 0 if tensor.is_meta else hash(tensor.detach().cpu().contiguous().numpy().tobytes())
