"""The tests' own house: helpers stand in tests/support, and folders mirror the package's."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
#: Folders of tests that mirror no folder of the package.
OWN = {"adapters", "house", "mutants", "soundness", "support"}


def imported(path: Path) -> list[str]:
    """Dotted names of the modules that a file imports, wherever it does."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return names + [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_no_test_imports_from_another(path: Path) -> None:
    borrowed = [name for name in imported(path) if name.rpartition(".")[2].startswith("test_")]
    assert not borrowed, f"{path} imports from {borrowed}: what two files need belongs into tests/support"


def test_folders_mirror_the_package() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    package = {path.name for path in (ROOT / "lipbridge").iterdir() if (path / "__init__.py").exists()}
    assert folders - OWN <= package
    adapters = {path.name for path in (ROOT / "adapters" / "lipbridge_adapters").iterdir() if path.is_dir()}
    tested = {path.name for path in (ROOT / "tests" / "adapters").iterdir() if path.is_dir()}
    assert tested - {"__pycache__"} <= adapters
