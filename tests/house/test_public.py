"""The public face: every name is there in a fresh process, is documented, and is what README and guide use."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lipbridge

ROOT = Path(__file__).parents[2]
STUB = ast.parse((ROOT / "lipbridge" / "__init__.pyi").read_text(encoding="utf-8"))
NAMES = sorted(
    [alias.asname for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names if alias.asname]
    + [node.name for node in STUB.body if isinstance(node, ast.FunctionDef)]
)
#: Modules of which the guide may use names that a plugin's author alone needs, or a user of the tool itself.
FOR_PLUGINS = (
    "lipbridge.verifiers",
    "lipbridge.files.benchmarks",
    "lipbridge.files.formats",
    "lipbridge.files.queries",
    "lipbridge.files.solver_processes",
    "lipbridge.files.solvers",
    "lipbridge.graph.nodes",
    "lipbridge.graph.graph",
    "lipbridge_adapters.lirpa.custom",
)


def test_the_stub_says_what_is_public() -> None:
    assert sorted(lipbridge.__all__) == NAMES
    assert sorted(dir(lipbridge)) == NAMES
    for name in (
        *("compare", "Points", "Question", "Side", "Status", "Quantity", "load_graph", "save_graph", "load_weights"),
        *("lipsdp_bounds", "read_onnx", "export_onnx", "read_mat", "LipbridgeError", "InvalidArgument", "UnknownName"),
    ):
        assert name in NAMES
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = lipbridge.nonesuch


def test_each_name_comes_first_in_a_fresh_process() -> None:
    """In one process each name alone would find modules that others have imported; here each is the first of all."""
    script = """
import sys
names = sys.argv[1:]
for name in names:
    for module in [m for m in sys.modules if m.split(".")[0] in ("lipbridge", "lipbridge_adapters")]:
        del sys.modules[module]
    import lipbridge
    assert getattr(lipbridge, name) is not None, name
    assert getattr(lipbridge, name) is getattr(lipbridge, name), name
"""
    done = subprocess.run([sys.executable, "-c", script, *NAMES], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["TrivialBoundPenalty", "fit", "compare", "rescale"])
def test_no_function_is_lost_to_a_module_of_its_name(first: str) -> None:
    script = f"""
import torch, lipbridge
lipbridge.{first}
model = torch.nn.Linear(2, 2)
if "{first}" == "TrivialBoundPenalty":
    lipbridge.TrivialBoundPenalty(model)
lipbridge.capture(model)
names = {NAMES!r}
modules = [name for name in names if isinstance(getattr(lipbridge, name), type(lipbridge))]
assert modules == ["plot"], modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("_")])
def test_every_public_name_is_documented(name: str) -> None:
    text = inspect.getdoc(getattr(lipbridge, name))
    assert text
    assert len(text) > 20


#: The page for who changes lipbridge itself.
INTERNAL = "architecture.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != INTERNAL], ids=lambda page: page.name)
def test_readme_and_guide_use_public_names_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lipbridge"):
                for alias in node.names:
                    public = node.module == "lipbridge" and alias.name in NAMES
                    assert public or node.module in FOR_PLUGINS, f"{page.name}: {node.module}.{alias.name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lipbridge":
                assert node.attr in NAMES, f"{page.name}: lipbridge.{node.attr}"
    for dotted in re.findall(r"`(lipbridge(?:_adapters)?(?:\.\w+)+)", text):
        if not dotted.endswith((".py", ".toml")) and dotted not in FOR_PLUGINS:
            name = dotted.split(".")[1] if dotted.startswith("lipbridge.") else ""
            groups = ("verifiers", "formats", "functions", "benchmarks", "queries", "solvers")  # of entry points
            assert name in NAMES or (name in groups and dotted.count(".") == 1), f"{page.name}: {dotted}"
