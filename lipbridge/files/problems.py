"""Problems as files: a Graph with its question."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lipbridge import checks
from lipbridge.files.container import model_file, named_faults, open_container, write_container
from lipbridge.files.graphs import NUMBERS, decode_graph, encode_graph
from lipbridge.files.header import Fault, as_object, as_real, as_text
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.vocabulary import Quantity, as_norm


def save_problem(problem: Problem, path: str | os.PathLike[str]) -> Path:
    """Write a Problem (graph, norms, quantity, region) to a file, atomically and exactly; returns the file's path.

    Raises:
        ModelFileError: if weights or centres are NaN or infinite, or the file cannot be written.
    """
    file = model_file(path)
    checks.instance(problem, Problem, "problem", "be a Problem, e.g. Problem(lipbridge.capture(module))")
    with named_faults(file, "write"):
        graph, tensors = encode_graph(problem.graph)
        region = problem.region
        if region is not None:
            tensors["region.centers"] = region.centers.to(torch.float64)
        body = {
            "graph": graph,
            "input_norm": problem.input_norm,
            "output_norm": problem.output_norm,
            "quantity": problem.quantity.value,
            "region": None if region is None else {"radius": float(region.radius), "norm": region.norm},
        }
        return write_container(file, "problem", body, tensors, None, NUMBERS.values())


def load_problem(path: str | os.PathLike[str]) -> Problem:
    """Read a Problem that :func:`save_problem` wrote.

    Raises:
        ModelFileError: as :func:`load`.

    Law: the trivial bound of the loaded Problem is the same double as that of the saved one.
    """
    file = model_file(path)
    with named_faults(file), open_container(file, "problem") as opened:
        body = as_object(opened.body, "graph", "input_norm", "output_norm", "quantity", "region")
        extra = () if body["region"] is None else ("region.centers",)
        graph, others = decode_graph(body["graph"], opened, extra)
        region = None
        if body["region"] is not None:
            ball = as_object(body["region"], "radius", "norm")
            centers = others["region.centers"]
            if centers.shape[1:] != graph.input_shape:
                raise Fault(f"the region's centres have shape {tuple(centers.shape)}, which does not fit the input")
            region = Ball(centers, as_real(ball["radius"]), as_norm(ball["norm"]))
        question = Question(
            input_norm=as_norm(body["input_norm"]),
            output_norm=as_norm(body["output_norm"]),
            region=region,
            quantity=Quantity(as_text(body["quantity"])),
        )
        return Problem(graph, question)


__all__ = ["load_problem", "save_problem"]
