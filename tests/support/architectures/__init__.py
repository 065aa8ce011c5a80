"""Public architectures in small widths, written from their papers in plain torch, with the idioms that people use.

Each is a function without arguments, registered with its paper and input shape; :func:`build` gives it seeded random
weights and the statistics of a network after some training.
"""

from __future__ import annotations

from tests.support.architectures import (
    attention,
    fields,
    generative,
    lipschitz,
    residual,
    sequences,
    tabular,
    vision,
    vnncomp,
)
from tests.support.architectures.entry import ARCHITECTURES, Architecture, build

_REGISTERED = (attention, fields, generative, lipschitz, residual, sequences, tabular, vision, vnncomp)

#: Those that are bounded; the others are refused for the reason that they state.
BOUNDED = [name for name, entry in ARCHITECTURES.items() if not entry.refused]

__all__ = ["ARCHITECTURES", "BOUNDED", "Architecture", "build"]
