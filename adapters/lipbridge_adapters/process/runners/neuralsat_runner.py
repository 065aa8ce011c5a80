"""Runs NeuralSAT's main file: by the Python that has it, with its folder and then its own arguments.

It imports torchvision for an operator that no network here has; without it, an empty module stands in its place.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import types


def main(arguments: list[str]) -> None:
    """Run ``main.py`` of the folder that the first argument names."""
    try:
        importlib.import_module("torchvision")
    except Exception:  # not there, or not of this torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = types.ModuleType("torchvision")
    sys.path.insert(0, arguments[0])
    sys.argv = [os.path.join(arguments[0], "main.py"), *arguments[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
