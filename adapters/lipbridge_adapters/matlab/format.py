"""The weight file of the original LipSDP as a format of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipbridge.files.formats import Format
from lipbridge.graph.graph import Graph


class MatFormat(Format):
    """Weights alone: the file holds no biases, which the bound does not see, and does not name the activation."""

    name, title = "mat", "LipSDP's MATLAB format"
    summary = "the weights as the MATLAB LipSDP takes them, with the command that runs it"
    suffixes = (".mat",)

    def read(
        self, path: Path, *, input_shape: Sequence[int] | None = None, output: str | None = None
    ) -> tuple[Graph, tuple[str, ...]]:
        """As :func:`lipbridge_adapters.matlab.lipsdp_mat.read_mat`, with relu, as LipSDP's own examples have it."""
        from lipbridge_adapters.matlab.lipsdp_mat import read_mat

        return read_mat(path), (f"{path}: it has no biases and names no activation, so relu is taken",)

    def write(self, graph: Graph, path: Path, dialect: str | None = None) -> dict[str, object]:
        """As :func:`lipbridge_adapters.matlab.lipsdp_mat.export_mat`."""
        from lipbridge_adapters.matlab.lipsdp_mat import export_mat

        report = export_mat(graph, path)
        note = f"In the folder LipSDP of its repository: {report.command}"
        return {"alpha": report.alpha, "beta": report.beta, "command": report.command, "note": note}
