"""From a study file to cells: which there are, in what order, and what their ids depend on."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import lipbridge
from lipbridge.errors import StudyFileError
from lipbridge.study.cells import Cell, Kind
from lipbridge.study.config import parse_study, read_study
from lipbridge.study.engine.work import options_of
from lipbridge.study.plan import Plan, make_plan
from tests.support.idx_files import write_dataset

ROOT = Path(__file__).parents[2]
STUDY = """
name = "small"
title = "A small study"
[limits]
time = 10
memory = "1G"
threads = 1
[[networks]]
name = "abs"
data = "iris"
seeds = 2
training = { epochs = 2 }
[networks.grid]
penalty = [0.02, 0.0]
[[problems]]
name = "everywhere"
verifiers = ["trivial", "mine"]
[[problems]]
verifiers = ["jacobian"]
networks = ["*=0.02-*"]
region = { radius = 0.1, points = 4 }
[[verifiers]]
name = "lipsdp-fast"
label = "mine"
options = { gap = 0.001 }
[[certificates]]
radii = [0.05, 0.1]
points = 30
"""


def planned(text: str = STUDY, path: str | Path = "small.toml") -> Plan:
    return make_plan(parse_study(text, path))


def ids(plan: Plan, kind: Kind | None = None) -> set[str]:
    return {cell.id for cell in plan.cells if kind in (None, cell.kind)}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned()


def test_the_cells_of_a_small_study(plan: Plan) -> None:
    of_first = [cell for cell in plan.cells if cell.network == "abs-penalty=0.02-seed=0"]
    assert [cell.label.partition(": ")[2] for cell in of_first] == [
        "train",
        "witness, l2",
        "witness, l2, lipschitz in balls of 0.1",
        "trivial, l2",
        "mine, l2",
        "jacobian, l2, lipschitz in balls of 0.1",
        "certified by trivial, l2, radius 0.05",
        "certified by trivial, l2, radius 0.1",
    ]
    assert len(plan.cells) == 2 * 8 + 2 * 6
    assert [network["group"] for network in plan.networks] == 2 * ["abs-penalty=0.02"] + 2 * ["abs-penalty=0.0"]
    assert [network["seed"] for network in plan.networks] == [0, 1, 0, 1]
    known: set[str] = set()
    for cell in plan.cells:
        assert set(cell.after) <= known  # each after those that it needs
        known.add(cell.id)
        assert (cell.limits.seconds, cell.limits.memory, cell.threads) == (
            86400.0 if cell.kind is Kind.TRAINING else 10.0,
            2**30,
            1,
        )


def test_the_words_say_all(plan: Plan) -> None:
    training, witness, _, trivial, mine, jacobian, certificate, _ = plan.cells[:8]
    assert training.words["settings"]["penalty"] == 0.02
    assert training.words["settings"]["epochs"] == 2
    assert training.words["settings"]["batch_size"] == 28  # of the recipe
    assert training.words["changes"]["widths"] == [32, 32]
    assert training.settings["penalty"] == 0.02
    assert training.settings["widths"] == "32,32"
    for cell in (witness, trivial, mine, jacobian, certificate):
        assert cell.after == (training.id,)
        assert cell.words["source"]["sha256"] == training.id
        assert (cell.network, cell.group, cell.seed) == ("abs-penalty=0.02-seed=0", "abs-penalty=0.02", 0)
    assert trivial.words["points"] is None
    assert witness.words["points"]["name"] == "iris"
    assert mine.words["verifier"] == "lipsdp-fast"
    assert mine.words["options"] == {"gap": 0.001}
    assert jacobian.words["question"]["region"] == {"radius": 0.1, "norm": 2, "points": 4}
    assert certificate.words["points"]["count"] == 30


def test_a_plan_is_json_and_back(plan: Plan) -> None:
    import json

    found = json.loads(json.dumps(plan.to_json()))
    assert [Cell.from_json(cell).id for cell in found["cells"]] == [cell.id for cell in plan.cells]
    assert found["tables"]["networks"][0]["name"] == "abs"
    assert Plan.from_json(found).to_json() == found


REORDERED = """
title = "Another title"
name = "other"
[[verifiers]]
name = "lipsdp-fast"
label = "theirs"
options = { gap = 0.001 }
[[certificates]]
points = 30
radii = [0.1, 0.05]
[[problems]]
verifiers = ["jacobian"]
networks = ["mod*=0.02-*"]
region = { points = 4, radius = 0.1 }
[[problems]]
verifiers = ["theirs", "trivial"]
[[networks]]
name = "mod"
data = "iris"
seeds = [1, 0]
training.epochs = 2
grid.penalty = [0.0, 0.02]
[engine]
kind = "slurm"
jobs = 7
[limits]
threads = 1
time = "10 s"
memory = 1024
"""


def test_order_labels_names_and_engine_change_no_id(plan: Plan) -> None:
    assert ids(planned(REORDERED)) == ids(plan)


#: What is changed in the file, and which cells are others then, by their labels.
CHANGES: list[tuple[str, str, Callable[[Cell], bool]]] = [
    ("epochs = 2", "epochs = 3", lambda cell: True),
    ("threads = 1", "threads = 2", lambda cell: True),
    ("penalty = [0.02, 0.0]", "penalty = [0.02, 0.1]", lambda cell: "=0.0-" in cell.network),
    ("gap = 0.001", "gap = 0.002", lambda cell: cell.words.get("verifier") == "lipsdp-fast"),
    ("radius = 0.1, points = 4", "radius = 0.2, points = 4", lambda cell: "balls" in cell.label),
    ("points = 30", "points = 31", lambda cell: cell.kind is Kind.CERTIFICATE),
    ("time = 10", "time = 11", lambda cell: cell.kind is not Kind.TRAINING),
    ('label = "mine"', 'label = "mine"\ntime = 5', lambda cell: cell.words.get("verifier") == "lipsdp-fast"),
    ("[[problems]]\nname", "[[problems]]\noutput_norm = 'inf'\nname", lambda cell: cell.label.endswith(", l2")),
]


@pytest.mark.parametrize(("before", "after", "depends"), CHANGES, ids=[after[:30] for _, after, _ in CHANGES])
def test_a_change_changes_the_cells_that_depend_on_it(
    before: str, after: str, depends: Callable[[Cell], bool], plan: Plan
) -> None:
    assert STUDY.count(before) == 1
    changed = ids(planned(STUDY.replace(before, after)))
    for cell in plan.cells:
        assert (cell.id not in changed) == depends(cell), cell.label


def test_a_recipe_that_changes_is_another_cell(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from lipbridge.study import networks

    other = networks.recipe

    def changed(*arguments: object) -> object:
        plan = other(*arguments)  # type: ignore[arg-type]
        return replace(plan, config=replace(plan.config, warmup=0.2))

    monkeypatch.setattr(networks, "recipe", changed)
    assert not ids(planned()) & ids(plan)


def test_paths_are_in_no_id(tmp_path: Path) -> None:
    here = tmp_path / "here"
    write_dataset(here / "data")
    torch.manual_seed(0)
    lipbridge.save(lipbridge.mlp([20, 4, 3]), here / "net.safetensors")
    (here / "net.py").write_text("from torch import nn\ndef make(shape, classes): return nn.Linear(20, classes)\n")
    text = """
limits.threads = 1
networks = [{ name = "own", data = "data", arch = "net.py:make", seeds = 1 }]
models = [
  { path = "net.safetensors", data = "data" },
  { path = "net.py:make", name = "fresh", weights = "weights.safetensors", data = "data" },
]
problems = [{ verifiers = ["trivial"] }]
certificates = [{ radii = [0.5] }]
"""
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3, 20), "bias": torch.zeros(3)}, here / "weights.safetensors")
    (here / "study.toml").write_text(text)
    shutil.copytree(here, tmp_path / "there")
    first, second = (make_plan(read_study(tmp_path / place / "study.toml")) for place in ("here", "there"))
    assert [cell.id for cell in first.cells] == [cell.id for cell in second.cells]
    assert len(first.cells) == 3 * 4
    (tmp_path / "there" / "net.py").write_text((here / "net.py").read_text() + "# changed\n")
    third = make_plan(read_study(tmp_path / "there" / "study.toml"))
    changed = {cell.network for cell in third.cells if cell.id not in ids(first)}
    assert changed == {"own", "fresh"}


def test_a_warm_start_follows_its_axis() -> None:
    text = STUDY.replace("seeds = 2", "seeds = 2\nwarm_start = 'penalty'").replace(
        "penalty = [0.02, 0.0]", "learning_rate = [0.1, 0.2]\npenalty = [0.3, 0.1, 0.2]"
    )
    text = re.sub(r'networks = \["[^"]*"\]\n', "", text)
    trained = {cell.network: cell for cell in planned(text).cells if cell.kind is Kind.TRAINING}
    by_id = {cell.id: cell.network for cell in trained.values()}
    for rate in ("0.1", "0.2"):
        for seed in (0, 1):
            chain = [trained[f"abs-learning_rate={rate}-penalty={penalty}-seed={seed}"] for penalty in (0.3, 0.1, 0.2)]
            assert chain[0].after == ()
            assert chain[0].words["start_from"] is None
            for before, cell in pairwise(chain):
                assert [by_id[each] for each in cell.after] == [before.network]
                assert cell.words["start_from"]["sha256"] == before.id


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            "points = 30",
            "points = 39",
            "certificates[0].points: should be at most 38, the test points of iris",
        ),
        ("points = 4", "points = 40", "problems[1].region.points: should be at most 38"),
        ("epochs = 2", "epochs = 2, shift = 1", "networks[0].training.shift: should be 0"),
        ("training =", "arch = 'conv-small'\ntraining =", "networks[0].arch: should be dense for iris"),
        (
            "penalty = [0.02, 0.0]",
            "arch = ['dense', 'conv-large']\npenalty = [0.02]",
            "networks[0].grid.arch: should",
        ),
        ('data = "iris"', 'data = "broken"', "networks[0].data: "),
    ],
)
def test_what_does_not_fit_the_data(before: str, after: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    with pytest.raises(StudyFileError, match=re.escape(words)) as caught:
        planned(STUDY.replace(before, after), tmp_path / "study.toml")
    assert re.match(rf"{tmp_path}/study.toml, line \d+, ", str(caught.value))


def test_verifiers_that_nobody_named_are_those_that_can() -> None:
    plan = planned("limits.threads = 1\nnetworks = [{ name = 'a', data = 'iris' }]\nproblems = [{ norm = 'inf' }]\n")
    asked = {cell.words["verifier"] for cell in plan.cells if cell.kind is Kind.BOUND}
    assert {"witness", "trivial", "jacobian"} <= asked
    assert not asked & {"lipsdp-fast", "exact"}
    assert any("lipsdp-fast is left out of linf" in note for note in plan.notes)


def test_options_of_the_witness_search_come_from_its_own_table() -> None:
    text = STUDY + "[[verifiers]]\nname = 'witness'\noptions = { rounds = 2 }\n"
    cells = [cell for cell in planned(text).cells if cell.words.get("verifier") == "witness"]
    assert len(cells) == 4 + 2
    assert all(cell.words["options"] == {"rounds": 2} for cell in cells)


def test_models_without_data_are_left_out_where_points_are_needed(tmp_path: Path) -> None:
    lipbridge.save(lipbridge.mlp([4, 4, 3]), tmp_path / "net.safetensors")
    text = STUDY.replace('networks = ["*=0.02-*"]\n', "") + "[[models]]\npath = 'net.safetensors'\n"
    plan = planned(text, tmp_path / "study.toml")
    assert [cell.label for cell in plan.cells if cell.network == "net"] == [
        "net: read",
        "net: witness, l2",
        "net: trivial, l2",
        "net: mine, l2",
    ]
    assert len([note for note in plan.notes if "leaves out net" in note]) == 2
    alone = re.sub(r"radii = ", "networks = ['net']\nradii = ", text)
    with pytest.raises(StudyFileError, match="asks about test points, and net has no data"):
        planned(alone, tmp_path / "study.toml")


def test_threads_that_are_not_given_are_the_cores_by_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipbridge.study import plan as module

    monkeypatch.setattr(module, "available_cores", lambda: 8)
    text = STUDY.replace("threads = 1\n", "[engine]\njobs = 2\n")
    plan = planned(text)
    assert {cell.threads for cell in plan.cells} == {4}
    assert any("threads is not given" in note for note in plan.notes)
    assert {cell.threads for cell in make_plan(parse_study(text), jobs=100).cells} == {1}
    slurm = planned(text.replace("jobs = 2", "kind = 'slurm'\ncpus = 3"))
    assert {cell.threads for cell in slurm.cells} == {3}


def test_a_network_that_stands_there_twice_is_told() -> None:
    again = STUDY.replace(
        "[[problems]]", "[[networks]]\nname = 'same'\ndata = 'iris'\ntraining.epochs = 2\n[[problems]]", 1
    )
    plan = planned(again)
    assert [network["name"] for network in plan.networks][-1] == "abs-penalty=0.0-seed=1"
    assert "network same is left out: it is the same as abs-penalty=0.02-seed=0" in plan.notes


def test_two_networks_of_one_name_are_refused(tmp_path: Path) -> None:
    """A witness of one must not judge the other."""
    for name, width in (("one", 4), ("two", 5)):
        net = f"nn.Sequential(nn.Linear(4, {width}), nn.ReLU(), nn.Linear({width}, 3))"
        (tmp_path / f"{name}.py").write_text(f"from torch import nn\ndef net(shape, classes):\n    return {net}\n")
    text = 'networks = [{ name = "n", data = "iris", grid.arch = ["one.py:net", "two.py:net"], training.shift = 0 }]'
    with pytest.raises(StudyFileError, match="two different networks would be called n-arch=net"):
        make_plan(parse_study(text, tmp_path / "study.toml"))


def test_an_infinite_option_is_a_word() -> None:
    """JSON cannot say it."""
    text = 'limits.threads = 1\nnetworks = [{ name = "n", data = "iris" }]\nproblems = [{ verifiers = ["witness"] }]\n'
    plan = make_plan(parse_study(f'{text}verifiers = [{{ name = "witness", options.seconds = inf }}]'))
    found = Cell.from_json(json.loads(json.dumps(plan.cells[-1].to_json(), allow_nan=False)))
    assert options_of(found, Path()) == {"seconds": math.inf}


def test_a_large_grid_is_told() -> None:
    rates = ", ".join(f"0.{k:04}" for k in range(1, 90))
    plan = planned(STUDY.replace("penalty = [0.02, 0.0]", f"learning_rate = [{rates}]\npenalty = [0.02, 0.0]"))
    assert any(re.search(r"the study has \d{4} cells", note) for note in plan.notes)
