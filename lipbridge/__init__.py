"""lipbridge: train networks whose Lipschitz bound you can read off, prove the bound, compare every verifier on it.

The public names stand here once. Each is imported when it is first used, so that ``import lipbridge`` and the command
line's help do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "Activation": "activations",
    "Ball": "bounds",
    "Bound": "bounds",
    "Budget": "verifiers",
    "Graph": "graph",
    "Problem": "bounds",
    "Sinusoidal": "layers",
    "Verifier": "verifiers",
    "Witness": "bounds",
    "activation": "activations",
    "activation_module": "activations",
    "activation_names": "activations",
    "capture": "capture",
    "get_verifier": "verifiers",
    "list_verifiers": "verifiers",
    "mlp": "layers",
    "operator_norm": "norms",
    "proved_operator_norm": "rigor",
    "trivial_bound": "bounds",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lipbridge' has no attribute {name!r}")
    value: object = getattr(import_module(f"lipbridge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


if TYPE_CHECKING:
    from lipbridge.activations import Activation, activation, activation_module, activation_names
    from lipbridge.bounds import Ball, Bound, Problem, Witness, trivial_bound
    from lipbridge.capture import capture
    from lipbridge.graph import Graph
    from lipbridge.layers import Sinusoidal, mlp
    from lipbridge.norms import operator_norm
    from lipbridge.rigor import proved_operator_norm
    from lipbridge.verifiers import Budget, Verifier, get_verifier, list_verifiers
