"""The page about the house: its picture is the contract's, its examples are short, and every folder has its line."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "architecture.md").read_text(encoding="utf-8")


def storeys():
    spec = importlib.util.spec_from_file_location("storeys", ROOT / "docs" / "storeys.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_drawn_from_the_contract() -> None:
    drawn = storeys()
    assert drawn.PICTURE.read_text(encoding="utf-8") == drawn.drawing(), "run python docs/storeys.py"


def test_the_contract_names_every_folder_and_the_page_tells_of_each() -> None:
    named = {name for row in storeys().storeys() for name in row}
    folders = {path.parent.name for path in (ROOT / "lipbridge").glob("*/__init__.py")}
    assert folders <= named
    for folder in folders:
        assert re.search(rf"\b{folder}\b", PAGE), folder


def test_each_thing_that_can_be_added_has_a_short_example() -> None:
    kinds = re.findall(r"^## How to add an? (.*)$", PAGE, re.MULTILINE)
    assert kinds == ["activation", "layer", "kind of node", "norm", "verifier", "format"]
    for name in ("architecture", "verifiers", "files"):
        page = (ROOT / "docs" / "guide" / f"{name}.md").read_text(encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            assert len([line for line in block.splitlines() if line.strip()]) <= 40
