"""Study files: what is read, and every fault with its line, its field, what was found and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lipbridge.errors import LipbridgeError, StudyFileError
from lipbridge.study.config import StudyFile, parse_study, read_study
from lipbridge.study.writing import study_text, sweep_file

ROOT = Path(__file__).parents[2]
SMALL = """
[[networks]]
name = "abs"
data = "iris"
"""


def faults(text: str, path: Path | str = "mine.toml") -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        parse_study(text, path)
    assert str(caught.value).count("\n") == 0
    assert isinstance(caught.value, LipbridgeError)
    return list(caught.value.faults)


def fault(text: str) -> str:
    (only,) = faults(text)
    return only


def test_a_small_file_has_defaults() -> None:
    study = parse_study(SMALL, "mine.toml")
    assert isinstance(study, StudyFile)
    assert (study.name, study.tables.title) == ("mine", "")
    assert study.tables.limits.time == 300
    assert study.tables.limits.memory == 8 * 2**30
    assert study.tables.engine.kind == "local"
    (networks,) = study.tables.networks
    assert (networks.seeds, networks.norm, networks.arch) == ([0], 2, "dense")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90", 90), ('"90 s"', 90), ('"5 min"', 300), ('"1.5 h"', 5400), ('"2 days"', 172800), ("0.5", 0.5)],
)
def test_times(value: str, seconds: float) -> None:
    assert parse_study(f"[limits]\ntime = {value}\n{SMALL}").tables.limits.time == seconds


@pytest.mark.parametrize(
    ("value", "size"), [('"8G"', 2**33), ('"512 MiB"', 2**29), ("512", 2**29), ('"1.5g"', 3 * 2**29)]
)
def test_sizes(value: str, size: int) -> None:
    assert parse_study(f"[limits]\nmemory = {value}\n{SMALL}").tables.limits.memory == size


#: What is added to the small file, the field and line of its fault, and words that tell of it. The line counts from
#: the addition.
CASES = [
    ("[limits]\ntime = '5 parsecs'", "line 2, limits.time", ["should be a time like", "'5 parsecs'"]),
    ("[limits]\ntime = 0", "line 2, limits.time", ["found 0"]),
    ("[limits]\nmemory = '8 bits'", "line 2, limits.memory", ["'512M'|\"512M\"", "found '8 bits'"]),
    ("[limits]\nthreads = 0", "line 2, limits.threads", ["at least 1; found 0"]),
    ("[limits]\nthread = 1", "line 2, limits.thread", ["unknown key 'thread', did you mean 'threads'"]),
    ("[engine]\nkind = 'slrum'", "line 2, engine.kind", ["'local', 'slurm' or 'submitit-local'", "'slrum'"]),
    ("[engine]\njobs = 'two'", "line 2, engine.jobs", ["whole number", "'two'"]),
    ("[engine]\njobs = true", "line 2, engine.jobs", ["whole number", "true"]),
    ("limits = 3", "limits", ["should be a table; found 3"]),
    ("[[networks]]\ndata = 'iris'", "line 1, networks[1].name", ["is missing"]),
    ("[[networks]]\nname = 'b'\ndata = 'irsi'", "line 3, networks[1].data", ["unknown dataset 'irsi'", "'iris'"]),
    ("[[networks]]\nname = 'b/c'\ndata = 'iris'", "line 2, networks[1].name", ["letters, digits"]),
    ("[[networks]]\nname = 'abs'\ndata = 'iris'", "line 2, networks[1].name", ["another one than that of networks[0]"]),
    ("[[networks]]\nname = 'b'\ndata = 'iris'\nnorm = 3", "line 4, networks[1].norm", ["1, 2 or inf; found 3"]),
    ("[[networks]]\nname = 'b'\ndata = 'iris'\narch = 'densee'", "line 4, networks[1].arch", ["did you mean 'dense'"]),
    ("[[networks]]\nname = 'b'\ndata = 'iris'\narch = 'no.py:f'", "line 4, networks[1].arch", ["a file that exists"]),
    ("[[networks]]\nname = 'b'\ndata = 'iris'\nseeds = 0", "line 4, networks[1].seeds", ["5 for 0 to 4", "found 0"]),
    ("[[networks]]\nname = 'b'\ndata = 'iris'\nseeds = [1, 1]", "line 4, networks[1].seeds", ["different"]),
    (
        "[networks.recipe]\nactivation = 'abz'",
        "line 2, networks[0].recipe.activation",
        ["activation 'abz', did"],
    ),
    ("[networks.recipe]\nactivaton = 'abs'", "line 2, networks[0].recipe.activaton", ["did you mean 'activation'"]),
    ("[networks.recipe]\nwidths = [3,\n0]", "line 2, networks[0].recipe.widths", ["whole numbers of at least 1"]),
    ("[networks.recipe]\nbias = 'no'", "line 2, networks[0].recipe.bias", ["True or False", "'no'"]),
    ("[networks.recipe]\ngain = 0", "line 2, networks[0].recipe.gain", ["above 0", "found 0"]),
    ("[networks.recipe]\nstart = 'ortogonal'", "line 2, networks[0].recipe.start", ["did you mean 'orthogonal'"]),
    ("[networks.recipe]\nepochs = 2", "line 2, networks[0].recipe.epochs", ["belongs into networks.training"]),
    ("[networks.training]\nepochs = 0", "line 2, networks[0].training.epochs", ["from 1 to", "found 0"]),
    ("[networks.training]\npenaly = 0", "line 2, networks[0].training.penaly", ["did you mean 'penalty'"]),
    ("[networks.training]\nseed = 0", "line 2, networks[0].training.seed", ["as seeds"]),
    ("[networks.training]\nnorm = 1", "line 2, networks[0].training.norm", ["stands in [[networks]] itself"]),
    ("[networks.grid]\npenalty = [1,\n  -1]", "line 3, networks[0].grid.penalty[1]", ["not negative; found -1"]),
    ("[networks.grid]\npenalty = [1, 1]", "line 2, networks[0].grid.penalty[1]", ["each value once; found 1 again"]),
    ("[networks.grid]\npenalty = []", "line 2, networks[0].grid.penalty", ["at least 1 item"]),
    ("[networks.grid]\npenalty = 1", "line 2, networks[0].grid.penalty", ["should be a list; found 1"]),
    (
        "[networks.training]\nepochs = 1\n[networks.grid]\nepochs = [1]",
        "line 4, networks[0].grid.epochs",
        ["say it once"],
    ),
    ("[[models]]\npath = 'no.onnx'", "line 2, models[0].path", ["a file that exists"]),
    ("[[models]]\npath = 'hf://us'", "line 2, models[0].path", ["hf://OWNER/NAME/PATH"]),
    ("[[models]]\npath = 'pyproject.toml'\nclasses = 3", "line 3, models[0].classes", ["FILE.py:NAME"]),
    ("[[models]]\npath = 'pyproject.toml'\nname = 'abs'", "line 3, models[0].name", ["no other network has"]),
    ("[[problems]]\nregion = 'here'", "line 2, problems[0].region", ['"everywhere"', "'here'"]),
    ("[[problems]]\nregion = { radius = -1 }", "line 2, problems[0].region.radius", ["above 0; found -1"]),
    ("[[problems]]\nregion = { radius = inf }", "line 2, problems[0].region.radius", ["finite"]),
    (
        "[[problems]]\nregion.quantity = 'slope'\nregion.radius = 1",
        "line 2, problems[0].region.quantity",
        ["lipschitz"],
    ),
    ("[[problems]]\nverifiers = ['trivail']", "line 2, problems[0].verifiers[0]", ["did you mean 'trivial'"]),
    ("[[problems]]\nnetworks = ['abs', 'asb*']", "line 2, problems[0].networks[1]", ["matches no network"]),
    ("[[verifiers]]\nname = 'lipsd'", "line 2, verifiers[0].name", ["unknown verifier 'lipsd', did you mean 'lipsdp'"]),
    (
        "[[verifiers]]\nname = 'lipsdp-fast'\noptions = { gap = 'x' }",
        "line 3, verifiers[0].options.gap",
        ["found 'x'"],
    ),
    ("[[verifiers]]\nname = 'trivial'\n[verifiers.options]\ngap = 1", "line 4, verifiers[0].options.gap", ["'gap'"]),
    ("[[verifiers]]\nname = 'trivial'\n[[verifiers]]\nname = 'trivial'", "line 3, verifiers[1].label", ["another one"]),
    ("[[certificates]]\nverifiers = ['trivial']", "line 1, certificates[0].radii", ["is missing"]),
    ("[[certificates]]\nradii = [0.0]", "line 2, certificates[0].radii[0]", ["above 0; found 0"]),
    (
        "[[certificates]]\nradii = [1]\nverifiers = ['lipsdp-fast']",
        "line 3, certificates[0].verifiers[0]",
        ["lipsdp-fast cannot certify predictions; these can: .*trivial"],
    ),
    (
        "[[networks]]\nname = 'b'\ndata = 'iris'\nwarm_start = 'penalty'",
        "line 4, networks[1].warm_start",
        ["none here"],
    ),
]


@pytest.mark.parametrize(("text", "place", "words"), CASES, ids=[place for _, place, _ in CASES])
def test_a_fault_is_told_with_its_place(text: str, place: str, words: list[str]) -> None:
    shift = SMALL.count("\n")
    if text.startswith(("limits =",)):
        text, whole = "", text + SMALL
    else:
        whole = SMALL + text
        place = re.sub(r"line (\d+)", lambda match: f"line {int(match[1]) + shift}", place)
    told = fault(whole)
    assert place in told
    for word in words:
        assert re.search(word if ".*" in word or "|" in word else re.escape(word), told), told


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    text = "[limits]\ntime = 0\n[[networks]]\nname = 'abs'\ndata = 'no'\nnorm = 3\n[networks.recipe]\nbias = 1\n"
    text += "[[problems]]\nverifiers = 'trivial'\n"
    told = faults(text)
    places = ["limits.time", "networks[0].data", "networks[0].norm", "networks[0].recipe.bias", "problems[0].verifiers"]
    assert [each.split(": ")[0].split(", ")[1] for each in told] == places


def test_a_grid_of_thousands_is_not_told_name_by_name() -> None:
    text = f"{SMALL}seeds = 5000\n[[problems]]\nnetworks = ['other']\n"
    (told,) = faults(text)
    assert "and 4971 more" in told
    assert len(told) < 1000


def test_no_more_than_ten_are_told() -> None:
    grid = ", ".join(str(-k) for k in range(1, 15))
    with pytest.raises(StudyFileError, match="and 4 more") as caught:
        parse_study(f"{SMALL}[networks.grid]\npenalty = [{grid}]")
    assert len(caught.value.faults) == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'a'\nname = 'b'", "at its end: Cannot overwrite a value"),
        ("[limits]\ntime = 5 min", "line 2, column"),
        ("[limits]\ntime = 5\n[limits]", r"\[limits\] stands there twice"),
        ("name = 'a", "line 1|at its end"),
        ("", r"neither a \[\[networks\]\] nor a \[\[models\]\]"),
        ("a = " + "[" * 5000, "nested too deeply|line 1|at its end"),
    ],
)
def test_what_is_no_study_at_all(text: str, words: str) -> None:
    assert re.search(words, fault(text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    for name, words in (("none.toml", "cannot be read"), ("latin.toml", "UTF-8"), (".", "cannot be read")):
        with pytest.raises(StudyFileError, match=words):
            read_study(tmp_path / name)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "net.py").write_text("")
    text = SMALL + "arch = 'net.py:make'\n"
    assert "a file that exists" in fault(text)
    study = parse_study(text, tmp_path / "sub" / "mine.toml")
    assert study.folder == tmp_path / "sub"
    kept = study.kept()
    assert kept.endswith(text)
    assert parse_study(kept, tmp_path / "copy.toml").folder == tmp_path / "sub"
    assert parse_study(kept, tmp_path / "copy.toml").kept() == kept
    assert parse_study(kept, tmp_path / "copy.toml").name == study.name == "mine"
    moved = parse_study(f"folder = 'sub'\n{text}", tmp_path / "mine.toml")
    assert parse_study(moved.kept(), "/elsewhere/copy.toml").folder == tmp_path / "sub"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    text = sweep_file("iris", [0.1, 0.2], [0, 3], 1, changes={"widths": (4, 4)}, settings={"momentum": (0.8, 0.9)})
    study = parse_study(text)
    (networks,) = study.tables.networks
    assert (networks.norm, networks.seeds, networks.recipe) == (1, [0, 3], {"widths": [4, 4]})
    assert networks.training == {"momentum": [0.8, 0.9]}
    assert networks.grid == {"penalty": [0.1, 0.2]}
    assert study_text(study.raw) == text
    warm = parse_study(sweep_file("iris", [1], 2, warm_start=True, engine={"jobs": 2}, limits={"threads": 1}))
    assert warm.tables.networks[0].warm_start == "penalty"
    assert warm.tables.engine.jobs == 2


def test_a_verifier_that_is_not_installed_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from lipbridge.study import file_checks
    from lipbridge.verifiers import list_verifiers

    listed = [replace(info, installed=info.name != "lipsdp", install="pip install it") for info in list_verifiers()]
    monkeypatch.setattr(file_checks, "list_verifiers", lambda: listed)
    study = parse_study(f"{SMALL}[[problems]]\nverifiers = ['lipsdp', 'trivial']")
    assert study.notes == ("verifier lipsdp is not installed, and its rows will say so; pip install it",)
