"""Statements that random modules are made of, as templates; their fields are in :mod:`tests.support.fuzz_draft`.

``COMMON`` holds what networks use and a bound may exist for, with arguments of every kind, ``LAYERS`` torch's layers
and some of :mod:`tests.support.fuzz_layers`, ``RARE`` the rest of torch's surface: jumps, products, statistics, random
numbers, what mixes a batch. They stand in text files, one statement a line: a template, or a name for the table of
figures, a colon and a template. One that starts with ``nn.`` or ``L.`` makes a layer in ``__init__``. Lines of the
module are parted by ``;; ``, and ``<y>`` is the result.
"""

from __future__ import annotations

from pathlib import Path


def statements(name: str) -> tuple[tuple[str, str], ...]:
    """Pairs of an operator's name and its template, from a file."""
    text = (Path(__file__).parent / "fuzz_statements" / f"{name}.txt").read_text(encoding="utf-8")
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        name, parted, rest = line.partition(": ")
        if parted and "(" not in name:
            found.append((name, rest))
        else:
            found.append((line.partition("(")[0], line))
    return tuple(found)


LAYERS, COMMON, RARE = statements("layers"), statements("common"), statements("rare")

_HAVE_WEIGHTS = ("{W}", "{scalar}", "{channel}", "{C}", "{last}", "L.", "Linear", "nn.Conv", "Norm", "PReLU")
#: Statements that make parameters.
TRAINABLE = tuple(
    (name, template) for name, template in LAYERS + COMMON if any(part in template for part in _HAVE_WEIGHTS)
)
