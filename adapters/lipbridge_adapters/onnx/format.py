"""ONNX as a format of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipbridge.files.formats import Format
from lipbridge.graph.graph import Graph


class OnnxFormat(Format):
    """Files of others, and two dialects of our own."""

    name, title = "onnx", "ONNX"
    summary = "read from any exporter; written in the dialect relu, for tools that know no more, or native, all as is"
    suffixes = (".onnx", ".onnx.gz")
    takes = ("input_shape", "output")
    dialects = ("relu", "native")
    requires = ("onnx",)
    install = 'pip install "lipbridge[onnx]"'

    def read(
        self, path: Path, *, input_shape: Sequence[int] | None = None, output: str | None = None
    ) -> tuple[Graph, tuple[str, ...]]:
        """As :func:`lipbridge_adapters.onnx.reading.read_onnx`."""
        from lipbridge_adapters.onnx.reading import read_onnx

        return read_onnx(path, input_shape, output=output), ()

    def supported(self) -> tuple[Sequence[int], Sequence[str]]:
        """Opsets and operators."""
        from lipbridge_adapters.onnx.file import OPSETS
        from lipbridge_adapters.onnx.reading import operators

        return OPSETS, operators()

    def write(self, graph: Graph, path: Path, dialect: str | None = None) -> dict[str, object]:
        """As :func:`lipbridge_adapters.onnx.export.export_onnx`, checked."""
        from lipbridge_adapters.onnx.export import export_onnx

        report = export_onnx(graph, path, dialect or self.dialects[0])
        return {"dialect": report.dialect, "rounding": report.rounding}
