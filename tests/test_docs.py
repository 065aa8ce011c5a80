"""README and guide: every Python block runs, every relative link leads somewhere, tables match the registries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lipbridge
from lipbridge.activations import registry
from lipbridge.files.solvers import list_solvers
from lipbridge.verifiers import list_verifiers

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # what a block registers ends with it
    exec(compile(block, "documentation", "exec"), {"__name__": "documentation"})
    capsys.readouterr()


def test_the_readme_example_is_ten_lines_and_keeps_its_word() -> None:
    block = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.DOTALL)[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    names: dict[str, object] = {}
    exec(compile(block, "README", "exec"), names)
    result, lower = names["result"], names["lower"]
    assert isinstance(result, lipbridge.TrainingResult)
    assert isinstance(lower, lipbridge.Bound)
    assert result.accuracy > 0.9
    assert result.bound.proved
    assert 1 <= result.bound.value / lower.value < 1.1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "guide" / "verifiers.md"], ids=lambda p: p.stem)
def test_verifiers_of_the_tables_are_those_of_the_registry(page: Path) -> None:
    text, heading, solvers = page.read_text().partition("## Solvers of queries")
    table = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    ours = {info.name for info in list_verifiers() if info.package == "lipbridge"}
    assert set(table) == ours
    if page.stem == "verifiers":
        assert heading
        rows = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", solvers, re.MULTILINE)
        named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
        assert named == {info.name for info in list_solvers() if info.package == "lipbridge"} - {"command"}


def test_install_commands_of_the_readme_are_those_of_the_registry() -> None:
    text = PAGES[0].read_text()
    for info in list_verifiers():
        if info.package == "lipbridge" and info.install:
            assert f"`{info.install}`" in text


def test_activations_of_the_guide_are_those_of_the_registry() -> None:
    text = (ROOT / "docs" / "guide" / "index.md").read_text()
    for name in lipbridge.activation_names():
        assert f"`{name}`" in text
