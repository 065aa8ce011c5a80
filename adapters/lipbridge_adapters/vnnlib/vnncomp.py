"""A folder as VNN-COMP's runners take it: ``instances.csv``, ``onnx/``, ``vnnlib/``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from lipbridge.disk.atomic import write_atomically
from lipbridge.files.benchmarks import Benchmark, Instance
from lipbridge.files.formats import get_format
from lipbridge.graph.graph import Graph
from lipbridge.problem.claim import LipschitzClaim
from lipbridge.problem.property import Verdict
from lipbridge_adapters.vnnlib.pairs import vnnlib_pairs
from lipbridge_adapters.vnnlib.queries import vnnlib_1, vnnlib_2

NETWORK = "onnx/network.onnx"
#: The network whose pairs the other one takes.
SINGLE = "onnx/single.onnx"
#: Inputs whose signs are written out at most.
MOST_SIGNS = 10
#: What VNN-COMP's runners call our verdicts: a property describes its counterexamples.
RESULTS = {Verdict.VERIFIED: "unsat", Verdict.FALSIFIED: "sat"}


class VnnComp(Benchmark):
    """``instances.csv`` and ``vnnlib/1.0`` for the runners until 2025, ``instances-2.0.csv`` and ``vnnlib/2.0``.

    ``expected.csv`` has our own verdict on each instance, as ``unsat``, ``sat`` or ``unknown``, and the proved margin.
    """

    name = "vnncomp"
    summary = "a folder of ONNX and VNN-LIB files as VNN-COMP's verifiers take it, with our own verdicts beside"
    requires = ("onnx",)
    install = 'pip install "lipbridge[onnx]"'

    def network(self, graph: Graph, folder: Path) -> tuple[Graph, bool]:
        """In the dialect of relu alone, which all of them read."""
        path = folder / NETWORK
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx = get_format("onnx")
        written = onnx.write(graph, path, "relu")
        return onnx.read(path, input_shape=graph.input_shape)[0], written.get("rounding") == 0.0

    def questions(self, folder: Path, instances: Sequence[Instance], timeout: int) -> list[Path]:
        """The lists, and a file of each version for each instance."""
        rows: dict[str, list[list[object]]] = {"instances.csv": [], "instances-2.0.csv": [], "expected.csv": []}
        rows["expected.csv"].append(["onnx", "vnnlib", "result", "margin", "seconds"])
        made: list[Path] = []
        for instance in instances:
            asked, known = instance.asked, instance.known
            texts = {"1.0": vnnlib_1(asked), "2.0": vnnlib_2(asked, (1, *asked.input_shape), (1, asked.outputs))}
            for version, text in texts.items():
                name = f"vnnlib/{version}/{instance.name}.vnnlib"
                made.append(_written(folder / name, text))
                rows["instances.csv" if version == "1.0" else "instances-2.0.csv"].append([NETWORK, name, timeout])
                result = RESULTS.get(known.verdict, "unknown")
                margin = repr(known.margin) if math.isfinite(known.margin) else ""
                rows["expected.csv"].append([NETWORK, name, result, margin, f"{known.seconds:.3f}"])
        lists = [_written(folder / name, _table(lines)) for name, lines in rows.items()]
        return [*lists, *made]

    def pairs(self, graph: Graph, folder: Path, claim: LipschitzClaim, known: Sequence[Instance], timeout: int) -> None:
        """In ``vnnlib/2.0-pair``, listed in ``pairs.csv``: the file of f, the question, our verdict, seconds.

        In l_1 for up to ten inputs: the length of ``y - x`` is a comparison for each of its signs.
        """
        if claim.norm == 1 and math.prod(graph.input_shape) > MOST_SIGNS:
            return
        path = folder / SINGLE
        same = get_format("onnx").write(graph, path, "relu").get("rounding") == 0.0
        rows: list[list[object]] = [["f", "vnnlib", "result", "timeout"]]
        shapes = (1, *graph.input_shape), (1, *graph.output_shape)
        for (name, text), instance in zip(vnnlib_pairs(claim, *shapes), known, strict=True):
            file = f"vnnlib/2.0-pair/{name}.vnnlib"
            _written(folder / file, text)
            result = RESULTS.get(instance.known.verdict, "unknown") if same else "unknown"  # it is of the twin's file
            rows.append([SINGLE, file, result, timeout])
        _written(folder / "pairs.csv", _table(rows))


def _table(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    return path


__all__ = ["VnnComp"]
