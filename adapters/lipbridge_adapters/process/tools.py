"""Solvers that we know by name: each is handed the query in the form that it reads, and runs where it is installed.

A network goes to a tool as the user's file if the tool reads all of its operators, and otherwise as the same network
of linear layers and relu; a query as it is, or written anew in version 1.0. What they say is a claim, as anybody's.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from lipbridge.errors import InvalidArgument
from lipbridge.files.environments import Environment
from lipbridge.files.solver_processes import ProcessSolver
from lipbridge.files.solvers import Asked
from lipbridge.processes import STDOUT

#: The scripts that are run by the Python of a tool.
RUNNERS = Path(__file__).parent / "runners"
#: Operators that all of these tools read.
LINEAR = frozenset({"Add", "Constant", "Flatten", "Gemm", "Identity", "MatMul", "Relu", "Reshape"})
#: What those of them read that know convolutions.
SPATIAL = LINEAR | {"Concat", "Conv", "MaxPool", "Sub"}


MARABOU = Environment(
    name="marabou",
    packages=("maraboupy==2.0.0", "numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.32.0"),
    size="220 MB",
    licence="BSD-3-Clause",
    modules=("maraboupy.Marabou",),
)


class Marabou(ProcessSolver):
    """Marabou, one query for each way to a counterexample.

    Source: Wu et al. 2024, "Marabou 2.0: a versatile formal analyzer of neural networks".
    """

    name = "marabou"
    summary = "Marabou 2.0: complete, splits on the phases of units; one query for each rival class"
    environment = MARABOU

    def starts(self) -> Sequence[str]:
        """With its module."""
        return [MARABOU.python(), str(RUNNERS / "marabou_runner.py")]

    def command(self, asked: Asked, seconds: float, folder: Path) -> Sequence[str]:
        """Our script, with the numbers of the property as we read them."""
        _, read = asked.understood()
        boxes = [
            {
                "lower": _numbers(lower),
                "upper": _numbers(upper),
                "cases": [{"rows": _numbers(case.rows), "limits": _numbers(case.limits)} for case in cases],
            }
            for lower, upper, cases in read.boxes
        ]
        network = asked.network_of(SPATIAL | {"LeakyRelu", "Sigmoid", "Tanh"}, folder)
        job = {"network": str(network.absolute()), "seconds": seconds, "boxes": boxes, "outputs": read.outputs}
        (folder / "job.json").write_text(json.dumps(job))
        return [*self.starts(), str(folder / "job.json")]


VIBECHECK = Environment(
    name="vibecheck",
    packages=("vibecheck-nn==1.1.0", "torch==2.13.0"),
    size="1.4 GB with torch for the CPU, several GB where pip takes torch for CUDA",
    licence="GPL-3.0",
    modules=("vibecheck",),
)


class Vibecheck(ProcessSolver):
    """vibecheck, by the command line of VNN-LIB 2.0. It is under the GPL: it is run, and never imported."""

    name = "vibecheck"
    summary = "vibecheck 1.1: complete, bound propagation and branch and bound"
    environment = VIBECHECK

    def starts(self) -> Sequence[str]:
        """With what it imports."""
        return [str(VIBECHECK.program("vibecheck")), "supports", "--vnnlib-versions"]

    def command(self, asked: Asked, seconds: float, folder: Path) -> Sequence[str]:
        """Of ``verify``."""
        network = asked.network_of(SPATIAL | {"Cos", "LeakyRelu", "Max", "Min", "Sigmoid", "Sin", "Tanh"}, folder)
        name = next(iter(asked.networks))
        files = [str(asked.query.absolute()), "--network", f"{name}={network.absolute()}"]
        return [str(VIBECHECK.program("vibecheck")), "verify", *files, "--timeout", str(max(1, math.ceil(seconds)))]


NEURALSAT = Environment(
    name="neuralsat",
    packages=(
        *("torch==2.13.0", "numpy==2.4.6", "onnx==1.22.0", "onnxruntime==1.32.0", "onnxsim==0.8.1"),
        *("protobuf==5.29.6", "beartype==0.23.1", "gurobipy==13.0.3", "scipy==1.17.1", "psutil==7.2.2"),
        *("sortedcontainers==2.4.0", "tqdm==4.70.1", "termcolor==3.3.0", "coloredlogs==15.0.1", "joblib==1.6.0"),
    ),
    alone=("neuralsat==0.2.17",),
    size="1.4 GB with torch for the CPU, several GB where pip takes torch for CUDA",
    licence="MIT",
    modules=("torch", "onnx", "onnxruntime", "gurobipy", "beartype"),
)


class NeuralSat(ProcessSolver):
    """NeuralSAT, whose wheel has neither a command nor a package of its own name: its main file is run.

    It imports torchvision for non-max suppression alone; our script goes on without where that cannot be imported.

    Source: Duong, Li and Nguyen 2023 (arXiv 2307.10266).
    """

    name = "neuralsat"
    summary = "NeuralSAT: complete, a DPLL(T) search with bound propagation as its theory"
    environment = NEURALSAT
    answer_file = "verdict.txt"

    def starts(self) -> Sequence[str]:
        """With what it imports, to the page of its options."""
        return [NEURALSAT.python(), str(RUNNERS / "neuralsat_runner.py"), str(NEURALSAT.site() / "src"), "--help"]

    def command(self, asked: Asked, seconds: float, folder: Path) -> Sequence[str]:
        """Of its main file, which writes the verdict to a file."""
        files = ["--net", str(asked.network_of(SPATIAL, folder)), "--spec", str(asked.query_of("1.0", folder))]
        limits = ["--timeout", f"{seconds:g}", "--device", "cpu", "--verbosity", "0"]
        return [*self.starts()[:-1], *files, *limits, "--result_file", str(folder / self.answer_file), "--export_cex"]


class Nnenum(ProcessSolver):
    """nnenum, from a checkout of its repository.

    Source: Bak 2021, "nnenum: verification of ReLU neural networks with optimized abstraction refinement".
    """

    name = "nnenum"
    summary = "nnenum: complete, star sets of relu networks; from a checkout of its repository"
    words = 'verify --solver "nnenum CHECKOUT [PYTHON]"'
    answer_file = "verdict.txt"

    def __init__(self, words: str) -> None:
        folder, self._python = _checkout(self.name, words)
        self._source = _existing(self.name, folder, ("src/nnenum/nnenum.py", "nnenum/nnenum.py", "nnenum.py"))

    def environment_variables(self) -> Mapping[str, str]:
        """One thread for each of its processes, as it wants."""
        return {"PYTHONPATH": _path(self._source.parent.parent), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def starts(self) -> Sequence[str]:
        """With what it imports."""
        return [self._python, "-c", "import nnenum.nnenum"]

    def command(self, asked: Asked, seconds: float, folder: Path) -> Sequence[str]:
        """Of its front end, which writes the verdict to a file."""
        files = [str(asked.network_of(LINEAR, folder)), str(asked.query_of("1.0", folder))]
        return [self._python, "-m", "nnenum.nnenum", *files, f"{seconds:g}", str(folder / self.answer_file)]

    def assignment(self, folder: Path, after: str) -> str:
        """It prints the counterexample, and does not write it to the file."""
        with open(folder / STDOUT, encoding="utf-8", errors="replace") as out:
            found = [line.partition("[")[2].rpartition("]")[0] for line in out if line.startswith("Input: [")]
        numbers = found[-1].split(",") if found else []
        return "(" + "\n".join(f"(X_{i} {number.strip()})" for i, number in enumerate(numbers)) + ")" if found else ""


class AlphaBetaCrown(ProcessSolver):
    """alpha-beta-CROWN, from a checkout of its repository.

    Source: Wang et al. 2021 (arXiv 2103.06624) and what it builds on.
    """

    name = "alpha-beta-crown"
    summary = "alpha-beta-CROWN: complete, branch and bound with CROWN; from a checkout of its repository"
    words = 'verify --solver "alpha-beta-crown CHECKOUT [PYTHON]"'
    answer_file = "verdict.txt"

    def __init__(self, words: str) -> None:
        folder, self._python = _checkout(self.name, words)
        self._source = _existing(self.name, folder, ("complete_verifier/abcrown.py", "abcrown.py"))

    def environment_variables(self) -> Mapping[str, str]:
        """It imports what lies in its own folder."""
        return {"PYTHONPATH": _path(self._source.parent, self._source.parent.parent)}

    def starts(self) -> Sequence[str]:
        """To the page of its options."""
        return [self._python, str(self._source), "--help"]

    def command(self, asked: Asked, seconds: float, folder: Path) -> Sequence[str]:
        """Of its front end, which writes the verdict to a file."""
        network, query = asked.network_of(SPATIAL, folder), asked.query_of("1.0", folder)
        settings = {
            "general": {"device": "cpu", "results_file": str(folder / self.answer_file), "save_adv_example": True},
            "model": {"onnx_path": str(network.absolute())},
            "specification": {"vnnlib_path": str(query.absolute())},
            "bab": {"timeout": seconds},
            "attack": {"cex_path": str(folder / "counterexample.txt")},
        }
        (folder / "settings.yaml").write_text(json.dumps(settings))  # JSON is YAML
        return [self._python, str(self._source), "--config", str(folder / "settings.yaml")]


def _path(*folders: Path) -> str:
    """``PYTHONPATH`` with folders before what it has."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def _numbers(x: Tensor) -> list[Any]:
    return cast(Any, x.flatten() if x.ndim != 2 else x).tolist()


def _checkout(name: str, words: str) -> tuple[Path, str]:
    """A folder and a Python, of which the second may be left out."""
    try:
        given = shlex.split(words)
    except ValueError:  # quotes that do not end
        given = []
    if not 1 <= len(given) <= 2:
        raise InvalidArgument(
            "--solver", f'be "{name} CHECKOUT" or "{name} CHECKOUT PYTHON"', f"{name} {words}".strip()
        )
    return Path(given[0]).absolute(), given[1] if len(given) == 2 else sys.executable


def _existing(name: str, folder: Path, files: Sequence[str]) -> Path:
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise InvalidArgument("--solver", f"be a folder of {name} that has {' or '.join(files)}", str(folder))


__all__ = ["AlphaBetaCrown", "Marabou", "NeuralSat", "Nnenum", "Vibecheck"]
