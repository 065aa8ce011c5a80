"""A box and inequalities of outputs as a mixed-integer program: its verdict is that of samples and of our own proof."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.cli.app import run
from lipbridge.errors import InvalidArgument, MissingDependency, UnsupportedProblem
from lipbridge.files.formats import get_format
from lipbridge.files.queries import query_format_of
from lipbridge.files.solvers import get_solver, list_solvers
from lipbridge.graph.graph import Graph
from lipbridge.problem.property import Case, Property, Verdict, robust
from lipbridge.verifiers.properties import counterexample, judge
from lipbridge_adapters.milp import __main__ as command
from lipbridge_adapters.milp.program import Answer, Scaled
from lipbridge_adapters.milp.properties import case_program
from lipbridge_adapters.milp.solving import TOOLS
from tests.support.brute_force import tiny

TOOLS_HERE = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(tool.module) is None, reason=f"{tool.module} is optional"))
    for name, tool in TOOLS.items()
]


def box(graph: Graph, half: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    center = torch.randn(graph.input_shape, dtype=torch.float64)
    reach = half * (0.2 + torch.rand(graph.input_shape, dtype=torch.float64))
    return center - reach, center + reach


def sampled(graph: Graph, lower: torch.Tensor, upper: torch.Tensor, row: torch.Tensor) -> float:
    """The least value of a combination of outputs, from samples and a descent."""
    x = lower + torch.rand(4000, *lower.shape, dtype=torch.float64) * (upper - lower)
    x = torch.cat([x, torch.where(torch.rand_like(x) < 0.5, lower, upper)])
    return float((graph(x).flatten(1) @ row).min())


@pytest.mark.parametrize("tool", TOOLS_HERE)
@pytest.mark.parametrize("seed", range(24))
def test_verdicts_around_the_least_value(seed: int, tool: str) -> None:
    graph = tiny(seed)
    lower, upper = box(graph, (0.3, 1.0, 4.0)[seed % 3], seed)
    outputs = graph(lower[None]).flatten().shape[0]
    row = torch.randn(outputs, dtype=torch.float64)
    least = sampled(graph, lower, upper, row)
    scale = 1.0 + abs(least)
    # The program's own least value: an upper end from its point, which is evaluated, and none below.
    made = case_program(graph, Case(lower, upper, row[None], torch.tensor([least + 0.5 * scale])))
    told = TOOLS[tool].maximise(made.program.scaled(), 60.0, gap=1e-9)
    assert told.optimal
    assert told.point is not None
    x = torch.tensor(made.input(told.point, Case(lower, upper, row[None], torch.zeros(1)))).reshape(lower.shape)
    value = float(graph(x[None]).flatten() @ row)
    assert least + 0.5 * scale - told.primal == pytest.approx(value, abs=1e-6 * scale)
    assert value <= least + 1e-6 * scale
    below = Property((Case(lower, upper, row[None], torch.tensor([value - 1e-4 * scale])),))
    above = Property((Case(lower, upper, row[None], torch.tensor([value + 1e-4 * scale])),))
    assert command.answer(TOOLS[tool], graph, below, time.perf_counter() + 60.0) == "unsat"
    assert command.answer(TOOLS[tool], graph, above, time.perf_counter() + 60.0).startswith("sat\n((X_0 ")
    assert judge(graph, below, deadline=time.perf_counter() + 2.0).verdict is not Verdict.FALSIFIED
    assert counterexample(graph, below.cases) is None


def test_inequalities_hold_together() -> None:
    """Each alone can be obeyed, and both at once cannot."""
    module = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU()).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    graph = lipbridge.capture(module)
    ends = torch.tensor([-1.0]), torch.tensor([1.0])
    rows, limits = -torch.eye(2, dtype=torch.float64), torch.full((2,), -0.5, dtype=torch.float64)
    both = Property((Case(*ends, rows, limits),))
    assert command.answer(TOOLS["highs"], graph, both, time.perf_counter() + 10.0) == "unsat"
    either = Property(tuple(Case(*ends, rows[i : i + 1], limits[i : i + 1]) for i in range(2)))
    assert command.answer(TOOLS["highs"], graph, either, time.perf_counter() + 10.0).startswith("sat")
    assert command.answer(TOOLS["highs"], graph, both, time.perf_counter() - 1.0) == "timed-out"


def test_what_is_not_piecewise_linear_is_refused() -> None:
    graph = lipbridge.capture(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)))
    with pytest.raises(UnsupportedProblem, match="piecewise linear"):
        case_program(graph, robust(torch.zeros(2), 0, 2, 0.1).cases[0])


@pytest.mark.parametrize("tool", TOOLS_HERE)
def test_as_a_solver_beside_ours(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    graph = lipbridge.capture(nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3)))
    get_format("onnx").write(graph, tmp_path / "f.onnx")
    x = torch.randn(4, dtype=torch.float64)
    label = int(graph(x[None]).argmax())
    for radius, wanted in ((0.001, "unsat"), (3.0, "sat")):
        kind, _ = query_format_of(tmp_path / "q.vnnlib")
        kind.write(robust(x, label, 3, radius), tmp_path / "q.vnnlib", "2.0")
        asked = ["verify", "q.vnnlib", "--network", "N=f.onnx", "--timeout", "30", "--solver", tool, "--json"]
        assert run(asked) == 0
        ours, row = json.loads(capsys.readouterr().out)
        assert (ours["result"], row["result"], row["detail"], row["unsound"]) == (wanted, wanted, "", False)
        assert row["solver"] == tool
        assert 0.0 < row["startup"] < 60.0


def test_its_command_line_answers_in_words(tmp_path: Path) -> None:
    (tmp_path / "q.vnnlib").write_text("(declare-const X_0 Real")
    asked = [sys.executable, "-m", "lipbridge_adapters.milp", "highs", "verify", str(tmp_path / "q.vnnlib")]
    ended = subprocess.run([*asked, "--network", "N=none.onnx"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_what_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipbridge_adapters.milp.solvers.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="pip install gurobipy"):
        get_solver("gurobi")
    info = {each.name: each for each in list_solvers()}["scip"]
    assert (info.installed, info.install) == (False, "pip install pyscipopt")
    with pytest.raises(InvalidArgument, match="alone"):
        get_solver("highs --fast")


def test_what_is_open_after_its_share_of_the_time_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cases, of which the first is hard: it is asked again, with what the others left."""
    graph = lipbridge.capture(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4)))
    x = torch.zeros(2, dtype=torch.float64)
    asked = robust(x, int(graph(x[None]).argmax()), 4, 1e-4)
    given: list[float] = []

    def maximise(program: Scaled, seconds: float, *, gap: float, seed: int = 0, target: float | None = None) -> Answer:
        given.append(seconds)
        late = len(given) in (1, 4)
        nothing = {"dual": math.inf, "primal": -math.inf, "point": None, "nodes": 0}
        return Answer("", optimal=False, timed_out=late, infeasible=not late, **nothing)

    tool = replace(TOOLS["highs"], maximise=maximise)
    assert command.answer(tool, graph, asked, time.perf_counter() + 60.0) == "unsat"
    assert len(given) == 5
    assert given[0] == pytest.approx(20.0, abs=2.0)
    assert given[3] == pytest.approx(60.0, abs=5.0)
    assert command.answer(tool, graph, asked, time.perf_counter() - 1.0) == "timed-out"
