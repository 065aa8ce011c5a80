"""Any solver with the command line of VNN-LIB 2.0.

Source: https://www.vnnlib.org (the standard of version 2.0, December 2025, its chapter on the command line).
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from lipbridge.errors import InvalidArgument
from lipbridge.files.solver_processes import ProcessSolver
from lipbridge.files.solvers import Asked


class CommandSolver(ProcessSolver):
    """A command, as ``vibecheck`` or ``python -m solver``."""

    summary = "any program with VNN-LIB 2.0's command line, handed the query and the network as they are"
    words = "verify --solver COMMAND"

    def __init__(self, words: str) -> None:
        """Find it.

        Args:
            words: the command, as a shell has it.

        Raises:
            InvalidArgument: if there is no such command.
        """
        try:
            self._command = shlex.split(words)
        except ValueError as error:
            raise InvalidArgument("--solver", f"be a command ({error})", words) from None
        program = shutil.which(self._command[0]) if self._command else None
        if program is None:
            raise InvalidArgument("--solver", "be a command that can be run, or its path", words)
        self._command[0] = str(Path(program).absolute())
        self.name = Path(program).name if len(self._command) == 1 else words

    def starts(self) -> Sequence[str]:
        """What it asks itself."""
        return [*self._command, "supports", "--vnnlib-versions"]

    def command(self, asked: Asked, seconds: float, folder: Path) -> Sequence[str]:
        """Of ``verify``."""
        found = [*self._command, "verify", str(asked.query.absolute())]
        for name, file in asked.networks.items():
            found += ["--network", f"{name}={file.absolute()}"]
        return [*found, "--timeout", str(max(1, math.ceil(seconds)))]


__all__ = ["CommandSolver"]
