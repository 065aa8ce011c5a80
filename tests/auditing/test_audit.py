"""The audit: it finds what is unsound, finds nothing in what is ours, and whatever a verifier does is a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import lipbridge
from lipbridge.auditing.audit import JUDGE, ask, audit, chosen
from lipbridge.auditing.files import KNOWN, MODEL, load_instance, save_instance
from lipbridge.auditing.instance import Instance
from lipbridge.auditing.registry import FAMILIES, instances
from lipbridge.auditing.rows import AuditRow, Finding
from lipbridge.errors import InvalidArgument, ModelFileError, UnknownName
from lipbridge.files.container import load_tensors, save_tensors
from lipbridge.verifiers import Budget
from tests.support import unsound
from tests.support.audited import named

OURS = ("trivial", "witness", "jacobian", "exact", "lipsdp-fast", "eclipse-fast", JUDGE)
#: Families whose questions are quick, and hard for what is careless.
QUICK = ("paired-biases", "all-patterns", "corners", "planted", "tied-logits", "steep-slopes", "cancelling-biases")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory):
    """The package of unsound verifiers, installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(unsound.install(tmp_path_factory.mktemp("theirs"))))
        yield


def unsound_rows(rows: Sequence[AuditRow], verifier: str) -> dict[str, AuditRow]:
    return {row.instance: row for row in rows if row.verifier == verifier and row.status is Finding.UNSOUND}


# --- what it finds ---------------------------------------------------------------------------------------------------


def test_nothing_in_ours_quickly() -> None:
    asked = [found for number, found in enumerate(instances(QUICK)) if number % 4 == 0]
    rows = list(ask(asked, chosen(OURS), Budget(3.0), jobs=2))
    assert [row for row in rows if row.status is Finding.UNSOUND] == []
    for name in OURS:
        assert any(row.verifier == name and row.status is Finding.SOUND for row in rows), name
    assert all(row.status in (Finding.SOUND, Finding.REFUSED) for row in rows), rows


@pytest.mark.slow
def test_nothing_in_ours(tmp_path: Path) -> None:
    rows = audit(OURS, seconds=10.0, keep=tmp_path / "kept")
    assert [row for row in rows if row.status is Finding.UNSOUND] == []
    assert not (tmp_path / "kept").exists()
    for name in OURS:
        assert any(row.verifier == name and row.status is Finding.SOUND for row in rows), name


@pytest.mark.slow
def test_nothing_in_ours_of_other_seeds() -> None:
    for seed in (1, 2):
        rows = audit(OURS, ["nonnegative", "dead-and-duplicated", "shared-preactivation", "planted"], seed=seed)
        assert [row for row in rows if row.status is Finding.UNSOUND] == []


@pytest.fixture(scope="module")
def found(theirs: None) -> list[AuditRow]:
    """An audit of the unsound ones, without those that need foreign packages."""
    families = ["steep-slopes", "all-patterns", "corners", "tied-logits", "paired-biases"]
    return audit(["seqlip", "eclipse-nn", "certain", "lofty"], families, seconds=5.0)


def test_a_greedy_estimate_is_found(found: list[AuditRow]) -> None:
    rows = unsound_rows(found, "seqlip")
    assert {"three-2-l2", "four-2-l2", "five-2-l2"} <= set(rows)
    assert rows["three-2-l2"].value == pytest.approx(math.sqrt(120))
    assert rows["three-2-l2"].tightness == pytest.approx(math.sqrt(120 / 180))
    assert "a pair of inputs proves 13.416" in rows["three-2-l2"].detail


def test_ignored_activations_are_found(found: list[AuditRow]) -> None:
    rows = unsound_rows(found, "eclipse-nn")
    assert {"silu-one-l2", "gelu-one-l2", "silu-rotated-l2", "abs-pulse-l2"} <= set(rows)
    assert rows["silu-one-l2"].value == pytest.approx(1.0)
    assert "1.0998" in rows["silu-one-l2"].truth
    assert all(row.family == "steep-slopes" for row in rows.values())


def test_false_certificates_and_false_lower_bounds_are_found(found: list[AuditRow]) -> None:
    rows = unsound_rows(found, "certain")
    assert {"corner-9-class-lost", "cap-l2-class", "hair-lost-class"} <= set(rows)
    assert all(row.value == "certified" for row in rows.values())
    assert not any("held" in name for name in rows)
    assert set(unsound_rows(found, "lofty")) >= {"pair-l2", "nested-l2"}
    assert "at most" in unsound_rows(found, "lofty")["pair-l2"].detail


def test_the_default_of_auto_lirpa_is_found_and_the_adapter_is_not(theirs: None) -> None:
    if find_spec("auto_LiRPA") is None:
        pytest.skip("auto_LiRPA is not installed")
    rows = audit(["lirpa-default", "auto_lirpa"], ["shared-preactivation"])
    wrong = unsound_rows(rows, "lirpa-default")
    assert {"abs-46-linf-ball-deviation", "abs-46-class", "crelu-88-linf-ball-deviation"} <= set(wrong)
    assert unsound_rows(rows, "auto_lirpa") == {}
    assert any(row.verifier == "auto_lirpa" and row.status is Finding.SOUND for row in rows)


def test_the_network_mode_of_lipsdp_is_found_by_default() -> None:
    pytest.importorskip("cvxpy")
    assert "lipsdp-network" in chosen(None)
    wrong = unsound_rows(audit(["lipsdp-network"], ["paired-biases"]), "lipsdp-network")
    assert wrong["pair-l2"].value < 0.1


# --- whatever happens is a row ---------------------------------------------------------------------------------------


def test_a_hang_and_a_crash_cost_one_row_each(theirs: None) -> None:
    """Networks of four nodes are their trouble: those behind are answered by another process."""
    asked = [named(name) for name in ("silu-one-l2", "pair-l2", "silu-3-deep-l2", "tents-4-l2", "square-3-l2")]
    rows = list(ask(asked, chosen(["hangs", "crashes"]), Budget(2.0), jobs=2))
    assert len(rows) == 10
    for name, status, words in (("hangs", Finding.TIMEOUT, "limit of 2 s"), ("crashes", Finding.FAILED, "exit code 9")):
        own = {row.instance: row for row in rows if row.verifier == name}
        for trouble in ("pair-l2", "tents-4-l2"):
            assert own[trouble].status is status
            assert words in own[trouble].detail
            assert own[trouble].value is None
        for answered in ("silu-one-l2", "silu-3-deep-l2", "square-3-l2"):
            assert own[answered].status is Finding.SOUND


def test_rows_are_json(found: list[AuditRow]) -> None:
    rows = json.loads(json.dumps([row.to_json() for row in found], allow_nan=False))
    assert {"verifier", "family", "instance", "asked", "value", "truth", "status", "tightness", "seconds"} <= set(
        rows[0]
    )
    assert {row["status"] for row in rows} >= {"sound", "unsound", "refused"}


def test_names_that_there_are_not() -> None:
    with pytest.raises(UnknownName, match=r"nonesuch.*judge.*trivial"):
        audit(["nonesuch"])
    with pytest.raises(UnknownName, match=r"nonesuch.*corners"):
        audit(["trivial"], ["nonesuch"])
    for arguments in ({"seconds": 0.0}, {"jobs": 0}, {"seed": -1}):
        with pytest.raises(InvalidArgument):
            audit(["trivial"], ["corners"], **arguments)


def test_an_audit_that_is_left_ends_its_processes(theirs: None) -> None:
    rows = ask([named("silu-one-l2"), named("pair-l2")], chosen(["hangs", "trivial"]), Budget(300.0), jobs=2)
    assert next(rows).verifier == "trivial"
    rows.close()  # it returns, and does not wait for 300 s


# --- findings as files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pair-l2", "corner-4-linf-ball-deviation", "cap-l2-class", "twins-property", "no-tie"]
)
def test_instances_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    own = named(name)
    save_instance(own, tmp_path)
    again = load_instance(tmp_path)
    assert type(again) is type(own)
    assert (again.name, again.family, again.asked) == (own.name, own.family, own.asked)
    if isinstance(own, Instance) and isinstance(again, Instance):
        assert (again.least, again.most) == (own.least, own.most)
    assert (
        lipbridge.load_graph(tmp_path / MODEL).input_shape
        == (own.problem.graph if isinstance(own, Instance) else own.graph).input_shape
    )


def test_files_whose_inputs_do_not_prove_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=KNOWN):
        load_instance(tmp_path)
    for name, key, value in (
        ("pair-l2", "pair", torch.zeros(2, 1).double()),
        ("corner-2-class-lost", "counterexample", torch.zeros(2).double()),
        ("corner-2-lost", "counterexample", torch.zeros(2).double()),
    ):
        save_instance(named(name), tmp_path)
        tensors, facts = load_tensors(tmp_path / KNOWN)
        save_tensors(tmp_path / KNOWN, {**tensors, key: value}, facts)
        with pytest.raises(ModelFileError, match="no instance of an audit"):
            load_instance(tmp_path)
    save_instance(named("pair-l2"), tmp_path)
    tensors, facts = load_tensors(tmp_path / KNOWN)
    save_tensors(tmp_path / KNOWN, tensors, {**facts, "most": "1/2"})
    with pytest.raises(ModelFileError, match="its law allows"):
        load_instance(tmp_path)


def test_the_worst_finding_is_kept_and_shows_it_again(theirs: None, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    rows = audit(["lofty", "seqlip"], ["all-patterns"], seconds=5.0, keep=folder)
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["lofty-all-patterns-four-2-l2", "seqlip-all-patterns-three-2-l2"]
    readme = (folder / kept[1] / "README.txt").read_text()
    assert f"lipbridge audit --again {folder / kept[1]} --verifier seqlip" in readme
    assert "so too when it is asked alone" in readme
    again = load_instance(folder / kept[1])
    (row,) = list(ask([again], chosen(["seqlip"]), Budget(5.0), jobs=1))
    before = unsound_rows(rows, "seqlip")["three-2-l2"]
    assert (row.status, row.value, row.truth) == (Finding.UNSOUND, before.value, before.truth)


def test_every_family_of_the_issue_is_there() -> None:
    assert len(FAMILIES) == 14
    own = named("pair-l2")
    assert isinstance(own, Instance)
    assert own.most is not None
    assert own.least <= Fraction(1) <= own.most < Fraction(1 + 1e-11)
