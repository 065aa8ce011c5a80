"""Problem: a network and what is asked about it."""

from __future__ import annotations

from dataclasses import dataclass

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import Norm, Quantity


@dataclass(frozen=True, eq=False)
class Problem:
    """A Graph and a Question.

    Outputs that are a number an input, of shape ``(batch,)``, are held in the shape ``(batch, 1)``.

    Raises:
        InvalidArgument: for anything else, or a region whose centres are no inputs of the Graph.
    """

    graph: Graph
    question: Question

    def __post_init__(self) -> None:
        words = "be a Graph, which lipbridge.capture(module) or read_onnx(file) gives"
        checks.instance(self.graph, Graph, "graph", words)
        object.__setattr__(self, "graph", with_axes(self.graph))
        checks.instance(self.question, Question, "question", "be a Question, e.g. Question.everywhere(2)")
        region = self.question.region
        if region is not None and tuple(region.centers.shape[1:]) != self.graph.input_shape:
            expected = f"have centres of shape (k, {', '.join(map(str, self.graph.input_shape))}), inputs of the graph"
            raise InvalidArgument("region", expected, tuple(region.centers.shape))

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
