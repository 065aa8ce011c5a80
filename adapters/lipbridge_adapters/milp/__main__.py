"""Solvers of mixed-integer programs with VNN-LIB 2.0's command line: ``python -m lipbridge_adapters.milp TOOL ...``.

``verify QUERY --network NAME=FILE --timeout SECONDS`` prints a verdict and, after ``sat``, the input. What it says is
a claim: the solvers compute in floats, and nothing is proved after rounding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from lipbridge.errors import LipbridgeError
from lipbridge.files.queries import query_format_of
from lipbridge.graph.graph import Graph
from lipbridge.problem.property import Case, Property
from lipbridge.verifiers.properties import counterexample
from lipbridge_adapters.milp.program import Vector
from lipbridge_adapters.milp.properties import case_program
from lipbridge_adapters.milp.solving import TOOLS, Tool

#: A solver stops at the first point by which inequalities are obeyed with so much to spare, in units of the outputs.
ENOUGH = 1e-6
#: The relative gap of an answer that is near zero.
GAP = 1e-9


def main(arguments: Sequence[str]) -> int:
    """Answer; 1 for what is not understood."""
    parser = argparse.ArgumentParser(prog="lipbridge_adapters.milp", description=__doc__)
    parser.add_argument("tool", choices=list(TOOLS))
    parser.add_argument("action", choices=["verify", "supports"])
    parser.add_argument("query", nargs="?", type=Path)
    parser.add_argument("--network", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    tool = TOOLS[given.tool]
    import_module(tool.module)
    if given.action == "supports" or given.query is None:
        return 0
    pairs = [pair.partition("=") for pair in given.network]
    try:
        kind, _ = query_format_of(given.query)
        read = kind.read(given.query, {name: Path(file) for name, _, file in pairs}, as_real=True)
        if read.asked is None:
            _say("unsat")
        else:
            _say(answer(tool, read.graph, read.asked, began + given.timeout))
    except LipbridgeError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


def answer(tool: Tool, graph: Graph, asked: Property, deadline: float) -> str:
    """The verdict on a property, and the input after ``sat``: of a search by gradients, also from a tool's point.

    Such an input is one in exact arithmetic; that there is none is what the tool says, and not proved.

    Args:
        tool: that is asked, once for each case.
        graph: the network.
        asked: what no input may do.
        deadline: of ``time.perf_counter``.
    """
    found = counterexample(graph, asked.cases, deadline=deadline)
    if found is not None:
        return "sat\n" + _assignment(found.flatten().numpy())
    left, unclear = list(asked.cases), False
    while left:  # what is open after its share of the time has another one of what is left
        still: list[Case] = []
        for count, case in enumerate(left):
            seconds = (deadline - time.perf_counter()) / (len(left) - count)
            if seconds <= 0.0:
                return "timed-out"
            made = case_program(graph, case)
            told = tool.maximise(made.program.scaled(), seconds, gap=GAP, target=ENOUGH)
            if told.point is not None:  # feasible up to the tool's tolerances, which is not enough
                x = torch.tensor(made.input(told.point, case), dtype=torch.float64).reshape(1, *asked.input_shape)
                found = counterexample(graph, [case], starts=x)
                if found is not None:
                    return "sat\n" + _assignment(found.flatten().numpy())
            if told.timed_out:
                still.append(case)
            unclear = unclear or not (told.infeasible or told.timed_out)
        left = still
    return "unknown" if unclear else "unsat"


def _assignment(x: Vector) -> str:
    return "(" + "\n".join(f"(X_{i} {np.format_float_positional(v)})" for i, v in enumerate(x)) + ")"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
