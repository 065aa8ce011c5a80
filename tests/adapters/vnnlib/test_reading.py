"""What is read of VNN-LIB files is what they say, or an error in words; verdicts are true."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import vnnlib
from torch import nn

import lipbridge
from lipbridge.checking.network import Network
from lipbridge.cli.app import run
from lipbridge.errors import LipbridgeError, ModelFileError
from lipbridge.files.formats import get_format
from lipbridge.files.queries import query_format_of
from lipbridge.problem.property import robust
from lipbridge_adapters.vnnlib.formulas import Alternative, alternatives
from lipbridge_adapters.vnnlib.queries import vnnlib_1, vnnlib_2
from lipbridge_adapters.vnnlib.syntax import MOST_TEXT, declarations

HEAD = "(vnnlib-version <2.0>)\n(declare-network N\n (declare-input X real [1,2])\n (declare-output Y real [1,3])\n)\n"
BOX = "(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0) (>= X[0,1] 0.25) (<= X[0,1] 0.75)))\n"
FORMULAS = [
    "(assert (<= Y[0,0] Y[0,1]))",
    "(assert (or (<= Y[0,0] Y[0,1]) (and (> Y[0,2] 0.5) (< X[0,0] 0.0))))",
    "(assert (== Y[0,1] 0.5)) (assert (!= Y[0,0] Y[0,2]))",
    "(assert (>= (+ Y[0,0] (* -2.0 Y[0,1]) 0.125) (- Y[0,2] 1.0 Y[0,1])))",
    "(assert (or (and (or (<= Y[0,0] 0.1) (>= Y[0,1] 0.2)) (<= X[0,1] 0.5)) (< (* 3.0 (- Y[0,2])) (* 2.0 Y[0,0]))))",
    "(assert (<= (- Y[0,0] Y[0,0]) (+ Y[0,1] 0.0)))",
]


def words(text: str) -> Any:
    """Nested lists: another reader of the same brackets."""
    text = re.sub(r"\s*([\[,])\s*", r"\1", re.sub(r";[^\n]*", "", text))
    text = re.sub(r"\s*\]", "] ", re.sub(r"(?<=[\[,])0+(?=[0-9])", "", text))
    tokens = re.findall(r"\(|\)|[^\s()]+", text)
    stack: list[list[Any]] = [[]]
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return stack[0]


def value(node: Any, at: dict[str, Fraction]) -> Any:
    """A formula or term at a point, by its definition."""
    if isinstance(node, str):
        return at[node] if node in at else Fraction(node)
    kind, parts = node[0], [value(part, at) for part in node[1:]]
    if kind in ("and", "or"):
        return all(parts) if kind == "and" else any(parts)
    if kind == "-":
        return -parts[0] if len(parts) == 1 else parts[0] - sum(parts[1:])
    if kind == "*":
        product = Fraction(1)
        for part in parts:
            product *= part
        return product
    if kind == "+":
        return sum(parts)
    a, b = parts
    return {"<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b, "==": a == b, "!=": a != b}[kind]


def obeys(way: Alternative, x: list[Fraction], y: list[Fraction]) -> bool:
    low = all(x[i] > b or (x[i] == b and not strict) for i, (b, strict) in way.lower.items())
    high = all(x[i] < b or (x[i] == b and not strict) for i, (b, strict) in way.upper.items())
    sums = [(sum((a * y[i] for i, a in f.items()), Fraction(0)), limit, strict) for f, limit, strict in way.outputs]
    return low and high and all(t < limit or (t == limit and not strict) for t, limit, strict in sums)


@pytest.mark.parametrize("formula", FORMULAS)
def test_alternatives_are_the_formula(formula: str) -> None:
    text = HEAD + BOX + formula
    ways = alternatives(*declarations(text))
    asserted = [item[1] for item in words(text) if item[0] == "assert"]
    grid = [Fraction(k, 8) for k in range(-9, 10)]
    draw = random.Random(0)
    seen: set[bool] = set()
    for _ in range(3000):
        x, y = [draw.choice(grid) for _ in range(2)], [draw.choice(grid) for _ in range(3)]
        at = {f"X[0,{i}]": v for i, v in enumerate(x)} | {f"Y[0,{i}]": v for i, v in enumerate(y)}
        truth = all(value(node, at) for node in asserted)
        assert any(obeys(way, x, y) for way in ways) == truth
        seen.add(truth)
    assert seen == {True, False} or formula == FORMULAS[2]


@pytest.fixture
def network(tmp_path: Path) -> tuple[Path, lipbridge.Graph]:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3))
    path = tmp_path / "n.onnx"
    graph = lipbridge.capture(module)
    get_format("onnx").write(graph, path)
    return path, graph


def asked(text: str, folder: Path, network: Path, *more: str) -> list[str]:
    query = folder / "q.vnnlib"
    query.write_text(text)
    return ["verify", str(query), "--network", f"N={network}", *more]


@pytest.mark.parametrize("limit", ["-3.0", "0.05", "0.13", "0.2", "3.0"])
@pytest.mark.parametrize("box", ["-1.0 1.0 0.25 0.75", "0.1 0.3 -4.0 4.0", "0.5 0.5 0.0 1.0"])
def test_verdicts_are_true_and_sat_comes_with_an_input(
    network: tuple[Path, lipbridge.Graph], tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, box: str
) -> None:
    a, b, c, d = box.split()
    text = f"{HEAD}(assert (and (>= X[0,0] {a}) (<= X[0,0] {b}) (>= X[0,1] {c}) (<= X[0,1] {d})))"
    text += f"(assert (or (>= (+ Y[0,0] Y[0,1]) {limit}) (< Y[0,2] -9.0)))"
    assert run(asked(text, tmp_path, network[0], "--timeout", "20")) == 0
    lines = capsys.readouterr().out.split()
    u = torch.rand(20_000, 2, dtype=torch.float64) * torch.tensor([float(b) - float(a), float(d) - float(c)])
    y = network[1](u + torch.tensor([float(a), float(c)]))
    most = float((y[:, 0] + y[:, 1]).max())
    if lines[0] == "unsat":
        assert most < float(limit)
    else:
        assert lines[0] == "sat"  # so small a network is decided
        assert lines[1:4] == ["X", "real", "[1,2]"]
        assert lines[6:9] == ["Y", "real", "[1,3]"]
        x = [Fraction(word) for word in lines[4:6]]
        assert Fraction(a) <= x[0] <= Fraction(b)
        assert Fraction(c) <= x[1] <= Fraction(d)
        exact = Network(get_format("onnx").read(network[0])[0]).at(x)[1]
        assert exact[0] + exact[1] >= Fraction(limit)
        assert [float(word) for word in lines[9:12]] == pytest.approx([float(v) for v in exact], rel=1e-4, abs=1e-5)


def test_what_we_write_is_read_as_it_was(network: tuple[Path, lipbridge.Graph], tmp_path: Path) -> None:
    path, _ = network
    wanted = robust(torch.tensor([0.1, 0.7]), 1, 3, 0.037)
    for name, text in (("1", vnnlib_1(wanted)), ("2", vnnlib_2(wanted, (1, 2), (1, 3)))):
        query = tmp_path / f"{name}.vnnlib"
        query.write_text(text)
        found = query_format_of(query)[0].read(query, {"N": path})
        assert found.asked is not None
        assert len(found.asked.cases) == len(wanted.cases)
        for own, other in zip(found.asked.cases, wanted.cases, strict=True):
            for part in ("lower", "upper", "rows", "limits"):
                assert torch.equal(getattr(own, part), getattr(other, part).double())


def test_a_query_of_version_1_is_answered_as_vnncomp_has_it(
    network: tuple[Path, lipbridge.Graph], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = vnnlib_1(robust(torch.tensor([0.1, 0.7]), 0, 3, 5.0))
    assert run(asked(text, tmp_path, network[0])) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "sat"
    assert re.fullmatch(r"\(\(X_0 -?[0-9.]+\)", rest[0])
    assert re.fullmatch(r"\(Y_2 -?[0-9.]+\)\)", rest[-1])
    assert len(rest) == 5


def test_ends_of_boxes_are_hit_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The identity on 0.1 <= x <= 0.3: 0.3 is no float, and x is never printed above it."""
    path = tmp_path / "n.onnx"
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    get_format("onnx").write(lipbridge.capture(layer), path)
    head = "(vnnlib-version <2.0>)(declare-network N (declare-input X real [1,1]) (declare-output Y real [1,1]))"
    box = "(assert (>= X[0,0] 0.1)) (assert (<= X[0,0] 0.3))"
    for limit, result in (("0.30000000000000001", "unsat"), ("0.2999999", "sat"), ("0.25", "sat")):
        assert run(asked(f"{head}{box}(assert (>= Y[0,0] {limit}))", tmp_path, path, "--timeout", "5")) == 0
        lines = capsys.readouterr().out.split()
        assert lines[0] in (result, "unknown", "timed-out") if limit.startswith("0.3") else lines[0] == result
        if lines[0] == "sat":
            assert Fraction(limit) <= Fraction(lines[4]) <= Fraction("0.3")
    # Just what is asked, and nothing else: equality is found.
    assert run(asked(f"{head}{box}(assert (<= Y[0,0] 0.1)) (assert (== Y[0,0] 0.1))", tmp_path, path)) == 0
    assert capsys.readouterr().out.split()[0] in ("unknown", "timed-out")  # 0.1 is no float32


def test_contradictions_are_unsat(
    network: tuple[Path, lipbridge.Graph], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asked(HEAD + BOX + "(assert (> X[0,0] 1.0))", tmp_path, network[0])) == 0
    assert capsys.readouterr().out == "unsat\n"


WRONG = {
    "(assert (<= Y[0,3] 1.0))": "no entry [0, 3]",
    "(assert (<= Y[0] 1.0))": "no entry [0]",
    "(assert (<= Z[0,0] 1.0))": "`Z` is neither a number nor declared",
    "(assert (<= (* Y[0,0] Y[0,1]) 1.0))": "product of two variables",
    "(assert (<= (+ X[0,0] Y[0,1]) 1.0))": "inputs and outputs together",
    "(assert (<= (+ X[0,0] X[0,1]) 1.0))": "of several inputs",
    "(assert (<= Y[0,0] 1e3))": "`1e3` is neither",
    "(assert (<= Y[0,0] 1.0 2.0))": "compares two terms",
    "(assert (not (<= Y[0,0] 1.0)))": "`not` is not read",
    "(assert (<= Y[0,0] 1.0)) (check-sat)": "`check-sat` is not read",
    "(assert (<= Y[0,0] 1.0)": "ends before a bracket is closed",
    "(assert (<= Y[0,0] 1.0)))": "closed that was not opened",
    "(assert <= Y[0,0] 1.0)": "an assertion is one bracket",
    "(assert (/ Y[0,0] 1.0))": "`/` is not read",
    "(define-fun f () Real)": "`define-fun` is not read",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_understood_is_refused(
    network: tuple[Path, lipbridge.Graph], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    assert run(asked(HEAD + BOX + wrong, tmp_path, network[0])) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert WRONG[wrong] in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("real [1,2]", "float32 [1,2]", "--as-real"),
        ("real [1,2]", "int64 [1,2]", "of type int64"),
        ("[1,2]", "[2]", "shape"),
        ("[1,2]", "[1,3]", "has no bounds"),
        ("[1,3]", "[3,1]", "has no entry"),
        ("<2.0>", "<3.0>", "versions 1.0 and 2.0"),
        ("declare-output Y real [1,3])", 'declare-hidden H real [1] "h")', "`declare-hidden` is not read"),
        ("(declare-input", "(equal-to M)(declare-input", "`equal-to` is not read"),
        ("Y real", "X real", "declared twice"),
        ("declare-network N", "declare-network M", "give one file, that of `M`"),
    ],
)
def test_declarations_that_are_not_this_networks_are_refused(
    network: tuple[Path, lipbridge.Graph],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    why: str,
) -> None:
    text = (HEAD + BOX + FORMULAS[0]).replace(old, new, 1)
    assert run(asked(text, tmp_path, network[0])) == 2
    assert why in capsys.readouterr().err


def test_floats_are_taken_as_real_numbers_if_that_is_said(
    network: tuple[Path, lipbridge.Graph], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (HEAD + BOX + "(assert (>= Y[0,0] 99.0))").replace("real", "float32")
    assert run(asked(text, tmp_path, network[0], "--as-real")) == 0
    assert capsys.readouterr().out == "unsat\n"


def test_a_list_is_answered_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = lipbridge.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), tmp_path / "m.safetensors")
    out = tmp_path / "questions"
    command = ["export", str(model), "--to", "vnncomp", "--data", "iris", "--radius", "0.01,0.3", "--points", "3"]
    assert run([*command, "--out", str(out)]) == 0
    capsys.readouterr()
    expected = dict(line.split(",")[1:3] for line in (out / "expected.csv").read_text().splitlines()[1:])
    for name in ("instances.csv", "instances-2.0.csv"):
        assert run(["verify", str(out / name), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert len(rows) == 6
        for row in rows:
            assert row["result"] in (expected[row["query"]], "sat", "unsat")
            assert expected[row["query"]] in (row["result"], "unknown")
    (out / "instances.csv").write_text("onnx/network.onnx,vnnlib/none.vnnlib,5\n")
    assert run(["verify", str(out / "instances.csv"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["result"] == "error"
    assert "No such file" in row["detail"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a.onnx,b.vnnlib", "a network, a query and seconds"),
        ("../a.onnx,b.vnnlib,5", "not in the folder"),
        ("/etc/passwd.onnx,b.vnnlib,5", "not in the folder"),
        ("a.onnx,b.txt,5", "does not end in .vnnlib"),
        ("a.onnx,b.vnnlib,nan", "no number of seconds"),
        ("a.onnx,b.vnnlib,-1", "no number of seconds"),
        ("", "the list is empty"),
    ],
)
def test_lists_that_are_not_understood_are_refused(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "instances.csv"
    path.write_text(line + "\n")
    with pytest.raises(ModelFileError, match=why):
        query_format_of(path)[0].listed(path)


def _mutated(text: str, draw: random.Random) -> str:
    pieces = ["", "(", ")", "0", "7", "-", "1e9", "[", "Y[0,0]", "<=", "real", " ", "\x00", "é", "or", "\n", ";"]
    for _ in range(draw.choice([1, 1, 2])):
        i = draw.randrange(len(text) + 1)
        j = i + draw.choice([0, 0, 1, 1, 2, 5, 40])
        text = text[:i] + draw.choice([*pieces, text[i:j] * 2]) + text[j:]
    return text


def test_mutated_queries_are_refused_in_words_or_understood() -> None:
    """What is read is read as another reader of brackets has it, and is of the language."""
    draw = random.Random(0)
    grid = [Fraction(k, 8) for k in range(-9, 10)]
    read, told, others = 0, list[str](), list[str]()
    for count in range(1000):
        text = _mutated(HEAD + BOX + FORMULAS[count % len(FORMULAS)], draw)
        try:
            declared, assertions = declarations(text)
            ways = alternatives(declared, assertions)
        except LipbridgeError as error:
            told.append(str(error))
            continue
        read += 1
        assert declared.version == "2.0"
        try:  # whether it is of the language
            vnnlib.parse_query_string(text)
        except vnnlib.VNNLibException as error:  # 5 among real numbers is 5.0 to us
            others.append(str(error))
        asserted = [item[1] for item in words(text) if item[0] == "assert"]
        for _ in range(30):
            x = [draw.choice(grid) for _ in range(declared.input.size)]
            y = [draw.choice(grid) for _ in range(declared.output.size)]
            at = {f"{declared.input.name}[0,{i}]": v for i, v in enumerate(x)}
            at |= {f"{declared.output.name}[0,{i}]": v for i, v in enumerate(y)}
            assert any(obeys(way, x, y) for way in ways) == all(value(node, at) for node in asserted)
    assert 30 < read < 900
    assert all(line and "\n" not in line for line in told)
    assert {error["errorCode"] for text in others for error in json.loads(text)["errors"]} <= {"TypeMismatch"}


def test_mutated_lists_are_refused_in_words_or_understood(tmp_path: Path) -> None:
    draw = random.Random(1)
    path = tmp_path / "instances.csv"
    good = "onnx/a.onnx,vnnlib/b.vnnlib,60\nonnx/a.onnx,vnnlib/c.vnnlib,7.5\n"
    for _ in range(1000):
        path.write_bytes(_mutated(good, draw).encode("utf-8", "replace"))
        try:
            found = query_format_of(path)[0].listed(path)
        except ModelFileError:
            continue
        for line in found:
            assert line.network.is_relative_to(tmp_path.resolve())
            assert line.query.is_relative_to(tmp_path.resolve())
            assert line.network.suffix == ".onnx"
            assert line.seconds > 0.0


def test_supports_answers_every_capability_of_the_standard(capsys: pytest.CaptureFixture[str]) -> None:
    known = query_format_of(Path("q.vnnlib"))[0].capabilities()
    assert len(known) == 11
    for name, lines in known.items():
        assert run(["supports", f"--{name}"]) == 0
        assert capsys.readouterr().out.splitlines() == list(lines)
    assert run(["supports"]) == 2
    assert "be given one option" in capsys.readouterr().err


def test_the_command_prints_nothing_else(network: tuple[Path, lipbridge.Graph], tmp_path: Path) -> None:
    command = asked(HEAD + BOX + "(assert (>= Y[0,0] 99.0))", tmp_path, network[0], "--timeout", "30")
    done = subprocess.run([sys.executable, "-m", "lipbridge", *command], capture_output=True, text=True, check=True)
    assert done.stdout == "unsat\n"
    assert done.stderr == ""


def test_files_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "bomb.vnnlib.gz"
    packed.write_bytes(gzip.compress(b" " * (MOST_TEXT + 2), 1))
    cut = tmp_path / "cut.vnnlib.gz"
    cut.write_bytes(gzip.compress(b"(assert)")[:-6])
    binary = tmp_path / "b.vnnlib"
    binary.write_bytes(b"\xff\xfe\x00")
    cases = {packed: "more than", cut: "end-of-stream", binary: "no text", tmp_path / "none.vnnlib": "No such file"}
    for path, why in cases.items():
        assert run(["verify", str(path), "--network", "N=n.onnx"]) == 2
        told = capsys.readouterr().err
        assert why in told
        assert told.count(str(path)) == 1
