"""HiGHS, Gurobi and SCIP as solvers of queries, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lipbridge.files.solver_processes import ProcessSolver
from lipbridge.files.solvers import Asked
from lipbridge_adapters.milp.solving import TOOLS


class _MilpSolver(ProcessSolver):
    """Our formulation, by one of the tools."""

    @classmethod
    def missing(cls) -> str:
        """Of pip, in this environment."""
        tool = TOOLS[cls.name]
        return tool.install if find_spec(tool.module) is None else ""

    def starts(self) -> Sequence[str]:
        """With what it imports."""
        return [sys.executable, "-m", "lipbridge_adapters.milp", self.name, "supports"]

    def command(self, asked: Asked, seconds: float, folder: Path) -> Sequence[str]:
        """Of ``verify``."""
        found = [*self.starts()[:-1], "verify", str(asked.query.absolute())]
        for name, file in asked.networks.items():
            found += ["--network", f"{name}={file.absolute()}"]
        return [*found, "--timeout", f"{seconds:g}"]


class Highs(_MilpSolver):
    """By HiGHS."""

    name, summary = "highs", TOOLS["highs"].summary


class Gurobi(_MilpSolver):
    """By Gurobi."""

    name, summary = "gurobi", TOOLS["gurobi"].summary


class Scip(_MilpSolver):
    """By SCIP."""

    name, summary = "scip", TOOLS["scip"].summary


__all__ = ["Gurobi", "Highs", "Scip"]
