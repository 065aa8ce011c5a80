"""The lowest versions that pyproject.toml allows, as pip takes them: ``python tests/lowest.py sdp onnx milp report``.

``make lowest`` installs them and runs the fast tests. torch is left out: its lowest version would take gigabytes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

APART = ("torch", "lipbridge")


def lowest(extras: list[str]) -> list[str]:
    """``name==version`` of every requirement, and of those of the extras, that has a lower bound."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    found: list[str] = []
    for requirement in wanted:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([\w.]+)", requirement)
        if match and match[1] not in APART:
            found.append(f"{match[1]}=={match[2]}")
    return found


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))  # noqa: T201
