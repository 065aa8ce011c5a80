"""Solvers that we know by name: what each is handed, and what its answer becomes; the real ones where they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.activations.modules import Abs
from lipbridge.cli.app import run
from lipbridge.errors import InvalidArgument, LipbridgeError, MissingDependency
from lipbridge.files.environments import READY, VARIABLE, Environment
from lipbridge.files.formats import get_format
from lipbridge.files.queries import query_format_of
from lipbridge.files.solvers import Asked, environment_of, get_solver, list_solvers
from lipbridge.problem.property import Property, Verdict, robust
from lipbridge_adapters.process import tools

#: A module in maraboupy's place: it looks at corners and random points of the box alone.
MARABOU = """
import json, os, random, time
from types import SimpleNamespace
import numpy as np
import onnxruntime

def createOptions(**given):
    return SimpleNamespace(**given)

def read_onnx(file):
    return Network(file)

class Network:
    def __init__(self, file):
        self.session = onnxruntime.InferenceSession(file)
        self.name = self.session.get_inputs()[0].name
        self.shape = self.session.get_inputs()[0].shape
        n, m = np.prod(self.shape), np.prod(self.session.get_outputs()[0].shape)
        self.inputVars, self.outputVars = [np.arange(n).reshape(self.shape)], [np.arange(n, n + m)]
        self.low, self.high, self.rows = {}, {}, []
    def setLowerBound(self, variable, value):
        self.low[int(variable)] = value
    def setUpperBound(self, variable, value):
        self.high[int(variable)] = value
    def addInequality(self, variables, factors, limit):
        self.rows.append((list(map(int, variables)), list(factors), limit))
    def solve(self, verbose, options):
        with open(os.environ["ASKED"], "a") as file:
            print(json.dumps([len(self.rows), options.timeoutInSeconds]), file=file)
        if os.environ.get("SLOW"):
            time.sleep(options.timeoutInSeconds)
            return "TIMEOUT", {}, None
        low = np.array([self.low[i] for i in range(len(self.low))])
        high = np.array([self.high[i] for i in range(len(self.low))])
        for _ in range(2000):
            x = np.where(np.random.rand(len(low)) < 0.5, low, high)
            y = self.session.run(None, {self.name: x.astype(np.float32).reshape(self.shape)})[0].flatten()
            values = dict(enumerate([*x, *y]))
            if all(sum(a * values[v] for v, a in zip(vs, factors)) <= limit for vs, factors, limit in self.rows):
                return "sat", values, None
        return "unsat", {}, None
"""
#: Programs that write what they were asked, and a verdict.
FAKE = """
import json, os, sys
def tell(verdict):
    with open(os.environ["ASKED"], "w") as file:
        json.dump(sys.argv[1:], file)
    return verdict
"""
SAT = "sat\\n((X_0 9.0)\\n (X_1 -9.0)\\n (X_2 0.5))"


@pytest.fixture
def asked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.json"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "environments"))
    return tmp_path / "asked.json"


def pretend(environment: Environment, programs: dict[str, str]) -> None:
    """An environment whose Python is this one, with modules and programs of ours."""
    site = environment.site()
    site.mkdir(parents=True)
    (environment.folder / "bin").mkdir()
    for name, text in programs.items():
        path = environment.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    python = environment.program("python")
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (environment.folder / READY).write_text("\n".join([*environment.packages, *environment.alone]) + "\n")


def asked_of(folder: Path, activation: nn.Module, asked: Property | None = None, *, version: str = "2.0") -> Asked:
    """About a network of three inputs and three classes, as the user's files."""
    torch.manual_seed(0)
    graph = lipbridge.capture(nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(8, 3)))
    get_format("onnx").write(graph, folder / "f.onnx", "native")
    x = torch.zeros(3, dtype=torch.float64)
    asked = robust(x, int(graph(x[None]).argmax()), 3, 1e-3) if asked is None else asked
    kind, _ = query_format_of(folder / "q.vnnlib")
    kind.write(asked, folder / "q.vnnlib", version)
    networks = {"N": folder / "f.onnx"}
    return Asked(folder / "q.vnnlib", networks, kind, kind.read(folder / "q.vnnlib", networks, as_real=True))


def wide(rivals: list[int] | None = None) -> Property:
    torch.manual_seed(0)
    graph = lipbridge.capture(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = torch.zeros(3, dtype=torch.float64)
    return robust(x, int(graph(x[None]).argmax()), 3, 50.0, rivals=rivals)


def marabou(asked_file: Path) -> Any:
    site = tools.MARABOU.site()
    pretend(tools.MARABOU, {})
    (site / "maraboupy").mkdir()
    (site / "maraboupy" / "__init__.py").touch()
    (site / "maraboupy" / "Marabou.py").write_text(MARABOU)
    return get_solver("marabou")


def test_marabou_is_asked_once_for_each_rival(tmp_path: Path, asked_file: Path) -> None:
    solver = marabou(asked_file)
    answer = solver.answer(asked_of(tmp_path, nn.ReLU()), 20.0, 4e9)
    assert (answer.verdict, answer.detail) == (Verdict.VERIFIED, "")
    calls = [json.loads(line) for line in asked_file.read_text().splitlines()]
    assert [rows for rows, _ in calls] == [1, 1]
    assert calls[0][1] <= 10 < calls[1][1]  # half of the time, then what is left
    started = solver.startup()
    assert started is not None
    assert 0.0 < started < 30.0


def test_marabous_counterexample_can_be_run(tmp_path: Path, asked_file: Path) -> None:
    solver, asked = marabou(asked_file), asked_of(tmp_path, nn.ReLU(), wide())
    answer = solver.answer(asked, 20.0, 4e9)
    assert answer.verdict is Verdict.FALSIFIED
    assert asked.read is not None
    x = asked.read.inputs(answer.assignment)
    assert x is not None
    assert asked.read.failing(x) == (0.0, "")


def test_marabou_at_its_limit_is_a_timeout(tmp_path: Path, asked_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW", "1")
    answer = marabou(asked_file).answer(asked_of(tmp_path, nn.ReLU()), 2.0, 4e9)
    assert answer.verdict is Verdict.TIMEOUT


def test_a_network_of_other_operators_is_handed_over_as_relu(tmp_path: Path) -> None:
    """abs as two relus: the same function, of operators that the tool reads; the user's own file where it can be."""
    asked = asked_of(tmp_path, Abs())
    assert asked.read is not None
    assert "Abs" in asked.read.operators
    (tmp_path / "folder").mkdir()
    file = asked.network_of(tools.LINEAR, tmp_path / "folder")
    assert file.parent == tmp_path / "folder"
    lowered = get_format("onnx").read(file)[0]
    x = torch.randn(50, 3, dtype=torch.float64)
    assert torch.allclose(lowered(x), asked.read.graph(x), atol=1e-5)
    assert asked.network_of(tools.LINEAR | {"Abs"}, tmp_path / "folder") == tmp_path / "f.onnx"
    tanh = asked_of(tmp_path, nn.Tanh())
    with pytest.raises(LipbridgeError, match="piecewise linear"):
        tanh.network_of(tools.LINEAR, tmp_path / "folder")
    first = asked_of(tmp_path, nn.ReLU(), version="1.0")
    assert first.query_of("1.0", tmp_path / "folder") == tmp_path / "q.vnnlib"
    second = asked_of(tmp_path, nn.ReLU())
    text = second.query_of("1.0", tmp_path / "folder").read_text()
    assert "(declare-const X_0 Real)" in text


def test_what_we_do_not_understand_is_not_asked(tmp_path: Path, asked_file: Path) -> None:
    asked = asked_of(tmp_path, nn.ReLU())
    unread = Asked(asked.query, asked.networks, asked.kind, None)
    answer = marabou(asked_file).answer(unread, 5.0, 4e9)
    assert answer.verdict is Verdict.ERROR
    assert "do not understand" in answer.detail


def test_vibecheck_by_its_command_line(tmp_path: Path, asked_file: Path) -> None:
    pretend(tools.VIBECHECK, {"bin/vibecheck": f"#!{sys.executable}\n{FAKE}\nprint(tell('{SAT}'))\n"})
    asked = asked_of(tmp_path, Abs())
    answer = get_solver("vibecheck").answer(asked, 7.0, 4e9)
    words = json.loads(asked_file.read_text())
    assert answer.verdict is Verdict.FALSIFIED
    assert answer.assignment.startswith("((X_0 9.0)")
    assert words[:3] == ["verify", str(tmp_path / "q.vnnlib"), "--network"]
    assert words[3].startswith("N=")
    assert words[3].endswith("network.onnx")  # lowered
    assert words[4:] == ["--timeout", "7"]


def test_neuralsat_by_its_main_file(tmp_path: Path, asked_file: Path) -> None:
    site = tools.NEURALSAT.site()
    main = (
        f"{FAKE}\nimport torchvision\nopen(sys.argv[sys.argv.index('--result_file') + 1], 'w').write(tell('{SAT}'))\n"
    )
    pretend(tools.NEURALSAT, {str(site.relative_to(tools.NEURALSAT.folder) / "src" / "main.py"): main})
    answer = get_solver("neuralsat").answer(asked_of(tmp_path, nn.ReLU()), 7.0, 4e9)
    words = json.loads(asked_file.read_text())
    assert answer.verdict is Verdict.FALSIFIED, answer.detail
    assert words[:2] == ["--net", str(tmp_path / "f.onnx")]
    assert words[3].endswith("query.vnnlib")
    assert words[words.index("--timeout") + 1] == "7"


@pytest.mark.parametrize(
    ("said", "verdict"), [("holds", Verdict.VERIFIED), ("violated", Verdict.FALSIFIED), ("error", Verdict.ERROR)]
)
def test_nnenum_from_a_checkout(tmp_path: Path, asked_file: Path, said: str, verdict: Verdict) -> None:
    source = tmp_path / "checkout" / "src" / "nnenum"
    source.mkdir(parents=True)
    (source / "__init__.py").touch()
    body = f"{FAKE}\nif __name__ == '__main__':\n    print('Input: [9.0, -9.0, 0.5]')\n"
    (source / "nnenum.py").write_text(f"{body}    open(sys.argv[4], 'w').write(tell('{said}'))\n")
    solver = get_solver(f'nnenum "{tmp_path / "checkout"}" "{sys.executable}"')
    answer = solver.answer(asked_of(tmp_path, nn.ReLU()), 7.0, 4e9)
    assert answer.verdict is verdict
    assert answer.assignment == ("((X_0 9.0)\n(X_1 -9.0)\n(X_2 0.5))" if verdict is Verdict.FALSIFIED else "")
    assert solver.startup() is not None


def test_alpha_beta_crown_from_a_checkout(tmp_path: Path, asked_file: Path) -> None:
    source = tmp_path / "checkout" / "complete_verifier"
    source.mkdir(parents=True)
    body = (
        "settings = json.load(open(sys.argv[2]))\nopen(settings['general']['results_file'], 'w').write(tell('unsat'))"
    )
    (source / "abcrown.py").write_text(f"{FAKE}\n{body}\n")
    answer = get_solver(f'alpha-beta-crown "{tmp_path / "checkout"}"').answer(asked_of(tmp_path, nn.ReLU()), 7.0, 4e9)
    assert (answer.verdict, answer.detail) == (Verdict.VERIFIED, "")


@pytest.mark.parametrize("words", ["nnenum", "nnenum /none", "alpha-beta-crown a b c", "alpha-beta-crown '"])
def test_a_checkout_has_to_be_named(words: str) -> None:
    with pytest.raises(InvalidArgument, match="--solver"):
        get_solver(words)


def test_what_is_not_installed_says_how(asked_file: Path) -> None:
    with pytest.raises(MissingDependency, match="lipbridge verifiers install vibecheck"):
        get_solver("vibecheck")
    known = {info.name: info for info in list_solvers()}
    assert not known["marabou"].installed
    assert known["marabou"].install == "lipbridge verifiers install marabou"
    with pytest.raises(InvalidArgument, match="alone"):
        get_solver("marabou --fast")


def test_installing_says_the_size_first(asked_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verifiers", "install", "marabou"]) != 0  # nobody to be asked here
    said = capsys.readouterr().err
    assert "220 MB" in said
    assert "maraboupy==2.0.0" in said
    assert "--yes" in said
    assert run(["verifiers", "install", "no-such"]) != 0
    assert "vibecheck" in capsys.readouterr().err
    assert run(["verifiers", "install"]) != 0
    assert run(["verifiers", "trivial", "marabou"]) != 0
    assert run(["verifiers", "marabou", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "marabou"


def test_a_failed_installation_leaves_nothing(asked_file: Path, tmp_path: Path) -> None:
    broken = Environment("broken", ("./no-such-wheel-1.0-py3-none-any.whl",), "1 MB", "none", ("nothing",))
    with pytest.raises(LipbridgeError, match="exit code"):
        broken.make(["--no-index"])
    assert not broken.folder.exists()
    assert not broken.ready
    empty = Environment("empty", ("pip",), "1 MB", "none", ("json",))
    empty.make(["--no-index"])
    assert empty.ready
    assert not Environment("empty", ("pip==1",), "1 MB", "none", ("json",)).ready  # of other versions


@pytest.mark.parametrize("name", ["marabou", "vibecheck", "neuralsat"])
def test_the_real_ones(name: str, tmp_path: Path) -> None:
    if not environment_of(name).ready:
        pytest.skip(f"{name} is not installed: {environment_of(name).command}")
    solver = get_solver(name)
    for activation in (nn.ReLU(), Abs()):
        answer = solver.answer(asked_of(tmp_path, activation), 60.0, 8e9)
        assert (answer.verdict, answer.detail) == (Verdict.VERIFIED, "")
    asked = asked_of(tmp_path, nn.ReLU(), wide())
    answer = solver.answer(asked, 60.0, 8e9)
    assert answer.verdict is Verdict.FALSIFIED
    assert asked.read is not None
    x = asked.read.inputs(answer.assignment)
    assert x is not None
    assert asked.read.failing(x)[0] < 1e-4
