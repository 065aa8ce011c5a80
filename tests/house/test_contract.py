"""What the contract of import-linter in pyproject.toml cannot see: modules that are named in strings."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_core_names_no_adapter_not_even_in_a_string() -> None:
    """No ``import_module`` of a text, no list of entry points, no docstring: core is complete without the adapters."""
    files = [file for file in (ROOT / "lipbridge").rglob("*") if file.suffix in (".py", ".pyi", ".j2")]
    assert len(files) > 100
    naming = [str(file.relative_to(ROOT)) for file in files if "lipbridge_adapters" in file.read_text()]
    assert naming == []
