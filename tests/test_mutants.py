"""The runner of changes tells a noticed change from an unnoticed one, a hanging one, and a stale list."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.changes import LISTS, ROOT, StaleList, read, remember, remembered

CODE = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n"
TESTS = "from lipbridge.tiny import double\n\n\ndef test_double():\n    assert double(3) == 6\n"
LIST = """
file = "lipbridge/tiny.py"
tests = ["tests/test_tiny.py"]
[[change]]
name = "seen"
kind = "logic"
before = "2 * x"
after = "3 * x"
[[change]]
name = "unseen"
kind = "rounding"
before = "x / 2"
after = "x / 3"
[[change]]
name = "hangs"
kind = "logic"
before = "    return 2 * x"
after = "    while True: pass"
[[change]]
name = "no test of that name"
kind = "logic"
before = "x / 2"
after = "x / 4"
tests = ["tests/test_tiny.py::test_half"]
"""
RUN = """
import json, sys
from pathlib import Path
from tests.mutants import runner
from tests.mutants.changes import read
root = Path(sys.argv[1])
with runner.copies(root, 2) as copies:
    changes = [c for c in read([root / "tiny.toml"], root, json.loads(sys.argv[2])) if c.name != sys.argv[3]]
    outcomes = runner.run(changes, copies, 4.0, lambda outcome: None)
print(json.dumps({o.change.name: [o.noticed, o.broken, o.by] for o in outcomes}))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in {"lipbridge/tiny.py": CODE, "tests/test_tiny.py": TESTS, "tiny.toml": LIST}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    return tmp_path


def outcomes_of(tree: Path, noticed_by: dict, less: str = "") -> dict:
    command = [sys.executable, "-c", RUN, str(tree), json.dumps(noticed_by), less]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def test_the_test_that_noticed_it_before_runs_first_and_decides_nothing(tree):
    """One that passes by now, one that is gone, and one of another list."""
    more = "\n\ndef test_later():\n    assert double(1) == 2\n\n\ndef test_always():\n    pass\n"
    (tree / "tests/test_tiny.py").write_text(TESTS + more)
    expected = {"test_later": "test_later", "test_always": "test_double", "test_gone": "test_double"}
    for likely, by in expected.items():
        known = {"seen": f"tests/test_tiny.py::{likely}", "unseen": "tests/test_tiny.py::test_always"}
        outcomes = outcomes_of(tree, {"lipbridge/tiny.py": known}, less="hangs")
        assert outcomes["seen"] == [True, False, f"tests/test_tiny.py::{by}"]
        assert outcomes["unseen"][:2] == [False, False]
    (other,) = [
        c for c in read([tree / "tiny.toml"], tree, {"lipbridge/tiny.py": {"seen": "a.py::b"}}) if c.name == "seen"
    ]
    assert other.likely is None


def test_what_noticed_a_change_is_remembered(tree, tmp_path):
    path = tmp_path / "noticed_by.json"
    changes = read([tree / "tiny.toml"], tree)
    remember([(changes[0], "a.py::b")], path)
    remember([(changes[1], "a.py::c"), (changes[0], "a.py::d")], path)
    assert remembered(path) == {"lipbridge/tiny.py": {"seen": "a.py::d", "unseen": "a.py::c"}}


def test_outcomes(tree):
    outcomes = outcomes_of(tree, {})
    assert outcomes["seen"] == [True, False, "tests/test_tiny.py::test_double"]
    assert outcomes["unseen"][:2] == [False, False]
    assert outcomes["hangs"][:2] == [True, False]
    assert outcomes["no test of that name"][:2] == [False, True]
    assert (tree / "lipbridge/tiny.py").read_text() == CODE


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('before = "2 * x"', 'before = "x"', "occurs 4 times"),
        ('before = "2 * x"', 'before = "gone"', "occurs 0 times"),
        ('after = "3 * x"', 'after = "2 * x"', "seen"),
        ('name = "unseen"', 'name = "seen"', "one name"),
        ('kind = "rounding"', 'kind = "odd"', "kind"),
        ("test_tiny.py::test_half", "test_none.py::test_half", "there is no"),
    ],
)
def test_a_stale_list_is_an_error(tree, old, new, match):
    path = tree / "tiny.toml"
    path.write_text(LIST.replace(old, new))
    with pytest.raises(StaleList, match=match):
        read([path], tree)


def test_the_lists_fit_the_tree():
    read(sorted(LISTS.glob("*.toml")))
