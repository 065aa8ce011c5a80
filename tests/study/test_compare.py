"""compare: every cell is a row whatever its verifier does, and no verifier's claim is taken on trust."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lipbridge
from lipbridge.errors import FileNotWritten, InvalidArgument, MissingDependency, UnknownName
from lipbridge.files.rows import load_rows
from lipbridge.study import Points, Row, compare
from lipbridge.study.single import certified_rows
from lipbridge.verifiers import Budget, get_verifier, list_verifiers
from lipbridge.vocabulary import as_norm
from tests.support import third_party

HOSTILE = (
    *("honest", "liar", "boaster", "crash", "leave", "raise", "hang", "greedy", "nothing", "nan", "local", "slow"),
    *("early", "neither", "elsewhere"),
)


@pytest.fixture(scope="module")
def network() -> lipbridge.Graph:
    torch.manual_seed(0)
    return lipbridge.capture(lipbridge.mlp([4, 6, 3], "abs", bias=False), name="net")


@pytest.fixture(scope="module")
def points(network: lipbridge.Graph) -> Points:
    torch.manual_seed(1)
    inputs = torch.randn(20, 4, dtype=torch.float64)
    return Points(inputs, network(inputs).argmax(1), count=5, radius=0.1)


@pytest.fixture(scope="module")
def their_verifiers(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(third_party.install(tmp_path_factory.mktemp("theirs"))))
        yield


@pytest.fixture(scope="module")
def rows(network: lipbridge.Graph, points: Points, their_verifiers: None) -> Mapping[str, Row]:
    """One study with all of them: each in a process of its own, under tight limits."""
    budget = Budget(seconds=2.0, memory=900 * 2**20)
    names = ["trivial", *HOSTILE]
    found = compare({"net": network}, names, points=points, budget=budget, options={"honest": {"factor": 3.0}})
    return {f"{row.verifier}/{row.quantity}": row for row in found}


def test_an_honest_verifier_has_its_value_and_tightness(rows: Mapping[str, Row]) -> None:
    trivial, honest = rows["trivial/lipschitz"], rows["honest/lipschitz"]
    assert (honest.status, honest.proved, honest.side, honest.norm) == ("ok", True, "upper", "2")
    assert honest.value == pytest.approx(3 * trivial.value)
    witness = rows["witness/lipschitz"]
    assert witness.side == "lower"
    assert honest.tightness == pytest.approx(honest.value / witness.value)
    assert trivial.tightness is not None
    assert trivial.tightness >= 1 - 1e-9


def test_seconds_leave_out_the_imports(rows: Mapping[str, Row]) -> None:
    row, theirs = rows["trivial/lipschitz"], rows["honest/lipschitz"]
    assert theirs.total_seconds is not None
    assert 0 < theirs.seconds < 0.5 < theirs.total_seconds  # in a process of its own
    assert row.total_seconds is not None
    assert row.seconds < row.total_seconds < theirs.total_seconds  # lipbridge's own share one
    assert row.memory is not None
    assert 50 * 2**20 < row.memory < 900 * 2**20


def test_a_lie_is_unsound_and_no_longer_proved(rows: Mapping[str, Row]) -> None:
    row = rows["liar/lipschitz"]
    assert (row.status, row.proved) == ("unsound", False)
    assert "witness proves" in row.detail
    assert row.tightness is not None
    assert row.tightness < 1


def test_what_a_witness_contradicts_is_kept(
    network: lipbridge.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network, the question and the witness, and a script that asks again and says the same."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    monkeypatch.syspath_prepend(str(third_party.install(theirs)))
    found = compare({"my net": network}, ["liar", "trivial"], isolate=False, keep=tmp_path / "kept")
    row = next(row for row in found if row.verifier == "liar")
    own = tmp_path / "kept" / "my_net-liar-l2-lipschitz"
    assert row.status == "unsound"
    assert row.detail.endswith(f"kept in {own}")
    assert [folder.name for folder in (tmp_path / "kept").iterdir()] == [own.name]
    assert lipbridge.trivial_bound(lipbridge.load_graph(own / "model.safetensors")).value == pytest.approx(
        lipbridge.trivial_bound(network).value, rel=1e-12
    )
    environment = {**os.environ, "PYTHONPATH": str(theirs)}
    said = subprocess.run([sys.executable, own / "again.py"], capture_output=True, text=True, env=environment)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"liar says upper {row.value!r}; the witness proves ")
    assert float(said.stdout.split()[-1]) > row.value
    assert "liar on my net" in (own / "README.txt").read_text()
    assert compare({"net": network}, ["liar"], isolate=False)[1].status == "unsound"  # nothing is kept unless asked for


def test_a_lower_bound_without_witness_discredits_nobody(rows: Mapping[str, Row]) -> None:
    assert rows["boaster/lipschitz"].value == 1e9
    assert rows["trivial/lipschitz"].status == "ok"
    assert rows["honest/lipschitz"].status == "ok"


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("crash", "failed", "SIGABRT: solver core: the last words"),
        ("leave", "failed", "exit code 7"),
        ("raise", "failed", "ZeroDivisionError: first line"),
        ("hang", "timeout", "limit of 2 s"),
        ("greedy", "memory", "limit of 900 MiB"),
        ("nothing", "failed", "NoneType, not a Bound"),
        ("early", "failed", "ZeroDivisionError: too early"),
        ("neither", "failed", "NoneType, neither a Task nor a Refusal"),
        ("elsewhere", "failed", "another question (lipschitz, l2, 1 l2 ball, radius 0.001)"),
        ("nan", "failed", "NaN"),
    ],
)
def test_whatever_happens_is_a_row(rows: Mapping[str, Row], name: str, status: str, words: str) -> None:
    row = rows[f"{name}/lipschitz"]
    assert row.status == status
    assert words in row.detail
    assert "\n" not in row.detail
    assert math.isnan(row.value)
    assert not row.proved
    assert row.to_json()["value"] is None
    assert row.tightness is None


def test_local_verifiers_are_measured_by_a_local_witness(rows: Mapping[str, Row]) -> None:
    local, witness, trivial = (rows[f"{name}/deviation"] for name in ("local", "witness", "trivial"))
    assert local.region == witness.region == trivial.region == "5 l2 balls, radius 0.1"
    assert local.tightness == pytest.approx(local.value / witness.value)
    assert trivial.tightness is not None
    assert trivial.tightness >= 1 - 1e-9
    assert witness.value <= rows["witness/lipschitz"].value * (1 + 1e-9)


def test_the_lipschitz_constant_in_balls_is_a_question_of_its_own(network: lipbridge.Graph, points: Points) -> None:
    asked = replace(points, lipschitz=True, count=1)
    options = {"witness": {"restarts": 4}}
    found = compare(
        {"net": network},
        ["trivial", "lipsdp-fast", "eclipse-fast"],
        points=asked,
        budget=Budget(seconds=2.0),
        options=options,
        isolate=False,
    )
    assert {row.quantity for row in found} == {"lipschitz"}
    local = {row.verifier: row for row in found if row.region == "1 l2 ball, radius 0.1"}
    everywhere = {row.verifier: row for row in found if row.region == "everywhere"}
    assert set(local) == set(everywhere) == {"witness", "trivial", "lipsdp-fast", "eclipse-fast"}
    for name in ("trivial", "lipsdp-fast", "eclipse-fast"):
        assert local[name].status == "ok"
        assert local[name].tightness == pytest.approx(local[name].value / local["witness"].value)
        assert local[name].value <= everywhere[name].value * (1 + 1e-9)
    assert local["trivial"].detail == "global, so it holds here"
    assert local["lipsdp-fast"].value < everywhere["lipsdp-fast"].value


def test_certified_accuracy_is_that_of_each_certifier(rows: Mapping[str, Row], points: Points) -> None:
    assert rows["local/deviation"].certified_accuracy == 1.0
    trivial = rows["trivial/lipschitz"]
    assert trivial.certified_accuracy is not None
    assert 0 <= trivial.certified_accuracy <= 1
    assert trivial.extra["certified_points"] == 5
    assert trivial.extra["certified_radius"] == 0.1


def test_a_bound_survives_a_certification_that_hangs(rows: Mapping[str, Row]) -> None:
    row = rows["slow/lipschitz"]
    assert (row.status, row.certified_accuracy) == ("ok", None)
    assert row.extra["certification"] == "stopped at the time limit"


def test_certify_gives_foreign_verifiers_a_process_of_their_own(
    network: lipbridge.Graph, points: Points, their_verifiers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs is stopped at the limit, and is a row."""
    for name in ("local", "slow"):
        monkeypatch.setattr(type(get_verifier(name)), "requires", ("math",))
    found = certified_rows(
        "net", network, "none", points.inputs, points.labels, [0.1], as_norm(2),
        ["trivial", "local", "slow"], Budget(seconds=1.0),
    )  # fmt: skip
    trivial, local, slow = found
    assert (trivial["detail"], local["detail"], local["certified_accuracy"]) == ("", "", 1.0)
    assert (slow["certified_accuracy"], slow["detail"]) == (None, "stopped at the limit of 1 s")


def test_here_and_apart_agree(network: lipbridge.Graph, rows: Mapping[str, Row]) -> None:
    here = {row.verifier: row for row in compare({"net": network}, ["trivial"], isolate=False)}
    assert here["trivial"].value == rows["trivial/lipschitz"].value


def test_here_exceptions_pass_and_refusals_are_rows(network: lipbridge.Graph, their_verifiers: None) -> None:
    for name in ("raise", "early"):
        with pytest.raises(ZeroDivisionError):
            compare({"net": network}, [name], isolate=False)
    rows = {row.verifier: row for row in compare({"net": network}, ["local"], isolate=False)}
    assert (rows["local"].status, rows["local"].detail) == ("unsupported", "deviation only")


def test_options_are_checked_before_anything_runs(network: lipbridge.Graph, their_verifiers: None) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a cell was started")

    shared = Budget(options={"restarts": 4})  # the witness search's, not the trivial bound's
    rows = compare({"net": network}, ["trivial"], budget=shared, isolate=False)
    assert {row.status for row in rows} == {"ok"}
    for arguments in (
        {"options": {"honest": {"factr": 2.0}}},
        {"options": {"trivial": {"factor": 2.0}}},
        {"budget": Budget(options={"gap": 1e-3})},
    ):
        with pytest.raises(UnknownName, match=r"factor|none|restarts"):
            compare({"net": network}, ["trivial", "honest"], progress=never, **arguments)
    with pytest.raises(InvalidArgument, match="factor"):
        compare({"net": network}, ["honest"], options={"honest": {"factor": "two"}}, progress=never)


def test_each_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one network, everywhere and on balls: one chain for each question, whoever asks."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2 * 16, 3)
    )
    graph = lipbridge.capture(module, (1, 6, 6))
    x = torch.randn(4, 1, 6, 6)
    counts = {"as_chain": 0, "lipsdp_of": 0, "entry_points": 0}

    def counted(module: str, name: str) -> None:
        function = getattr(importlib.import_module(module), name)

        def call(*args: object, **named: object) -> object:
            counts[name] += 1
            return function(*args, **named)

        monkeypatch.setattr(f"{module}.{name}", call)

    counted("lipbridge.lipsdp.dense_problem", "as_chain")
    counted("lipbridge.lipsdp.dense_problem", "lipsdp_of")
    counted("lipbridge.verifiers.registry", "entry_points")
    points = Points(x, graph(x.double()).argmax(1), count=4, radius=0.1, lipschitz=True)
    names = ["trivial", "eclipse-fast", "lipsdp-fast"]
    compare({"net": graph}, names, points=points, budget=Budget(seconds=5.0), isolate=False)
    assert counts == {"as_chain": 2, "lipsdp_of": 1 + (1 + 4), "entry_points": 1}


def test_unknown_and_missing_verifiers_are_found_before_anything_runs(
    network: lipbridge.Graph, their_verifiers: None
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a cell was started")

    with pytest.raises(UnknownName, match="nonesuch"):
        compare({"net": network}, ["trivial", "nonesuch"], progress=never)
    with pytest.raises(MissingDependency, match="pip install a-package"):
        compare({"net": network}, ["absent"], progress=never)


def test_points_that_do_not_fit_are_refused(network: lipbridge.Graph) -> None:
    with pytest.raises(InvalidArgument, match="inputs"):
        compare({"net": network}, ["trivial"], points=Points(torch.zeros(3, 5)), isolate=False)
    for wrong in ({"count": 0}, {"radius": math.nan}, {"radius": 0.0}):
        with pytest.raises(InvalidArgument):
            Points(torch.zeros(3, 4), **wrong)


def test_third_party_verifiers_are_found_and_broken_ones_are_listed(their_verifiers: None) -> None:
    infos = {info.name: info for info in list_verifiers()}
    assert get_verifier("honest").name == "honest"
    assert infos["honest"].package == "their-verifiers"
    assert infos["honest"].installed
    assert not infos["absent"].installed
    assert infos["broken"].summary.startswith("broken")


def test_no_process_is_left(rows: Mapping[str, Row]) -> None:
    """The hanging verifier had started a shell: it went with its process."""
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"sleep\x00300" in command for command in commands)


def test_rows_are_kept_as_they_come_and_gone_on_from(network: lipbridge.Graph, points: Points, tmp_path: Path) -> None:
    """What has its row is not run again, and the same witnesses judge it."""
    file, seen = tmp_path / "rows.jsonl", list[Row]()
    names = ["trivial", "jacobian"]
    first = compare({"net": network}, names, points=points, rows=file, ended=seen.append, jobs=2)
    assert {row.verifier for row in seen} == {"witness", *names}
    assert {row["verifier"] for row in load_rows(file)} == {"witness", *names}
    before = file.read_bytes()
    again = compare(
        {"net": network}, names, points=points, rows=file, resume=True, ended=lambda _: pytest.fail("it ran")
    )
    assert file.read_bytes() == before
    assert [row.to_json() for row in again] == [row.to_json() for row in first]
    more = list[Row]()
    compare({"net": network}, [*names, "eclipse-fast"], points=points, rows=file, resume=True, ended=more.append)
    assert [row.verifier for row in more] == ["eclipse-fast"]
    other = replace(network, nodes=network.nodes[:-1])
    compare({"net": other}, ["trivial"], rows=file, resume=True, ended=more.append)
    assert [row.verifier for row in more] == ["eclipse-fast", "witness", "trivial"]


def test_equal_networks_have_rows_of_their_own(network: lipbridge.Graph, tmp_path: Path) -> None:
    """They are done once. Limits without end are limits too."""
    options, file = {"witness": {"seconds": 0.2}}, tmp_path / "rows.jsonl"
    endless = Budget(math.inf, math.inf)  # type: ignore[arg-type]
    both = {"one": network, "two": network}
    found = compare(both, ["trivial"], budget=endless, options=options, jobs=2, rows=file)
    assert [(row.network, row.status) for row in found] == [("one", "ok")] * 2 + [("two", "ok")] * 2
    assert found[0].value == found[2].value
    again = compare({"three": network}, ["trivial"], budget=endless, options=options, rows=file, resume=True)
    assert [(row.network, row.seconds) for row in again] == [("three", row.seconds) for row in found[:2]]


def test_rows_go_to_no_other_file(network: lipbridge.Graph, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text("name = 'mine'\n")
    with pytest.raises(InvalidArgument, match="a file of rows"):
        compare({"net": network}, ["trivial"], rows=file)
    assert file.read_text() == "name = 'mine'\n"


def test_rows_need_cells(network: lipbridge.Graph, tmp_path: Path) -> None:
    for arguments in ({"resume": True}, {"rows": tmp_path / "r", "isolate": False}, {"jobs": 0}, {"rows": tmp_path}):
        with pytest.raises((InvalidArgument, FileNotWritten)):
            compare({"net": network}, ["trivial"], **arguments)


def test_an_infinite_value_comes_back_infinite(their_verifiers: None) -> None:
    module = lipbridge.mlp([2, 2, 2], "abs", bias=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(100.0)
    networks, options = {"large": lipbridge.capture(module)}, {"honest": {"factor": 1e308}}
    apart, here = (compare(networks, ["honest"], options=options, isolate=isolate)[-1] for isolate in (True, False))
    assert apart.value == here.value == math.inf
    assert (apart.status, apart.extra) == (here.status, here.extra)
    assert apart.to_json()["value"] is None
