"""The families, by name. Each makes its instances from a seed; the analytic ones are the same for every seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

from lipbridge.auditing.families.logits import cancelling_biases, tied_logits
from lipbridge.auditing.families.nonnegative import (
    contractive_convolutions,
    dead_and_duplicated,
    nonnegative,
    subnormal_and_huge,
)
from lipbridge.auditing.families.patterns import all_patterns, corners, exclusive_patterns, paired_biases
from lipbridge.auditing.families.planted import planted
from lipbridge.auditing.families.polynomials import polynomials
from lipbridge.auditing.families.shared import shared_preactivation
from lipbridge.auditing.families.slopes import steep_slopes
from lipbridge.auditing.instance import AnyInstance, PropertyInstance
from lipbridge.errors import UnknownName

FAMILIES: dict[str, Callable[[int], Iterator[AnyInstance]]] = {
    "nonnegative": nonnegative,
    "dead-and-duplicated": dead_and_duplicated,
    "steep-slopes": steep_slopes,
    "shared-preactivation": shared_preactivation,
    "planted": planted,
    "exclusive-patterns": exclusive_patterns,
    "all-patterns": all_patterns,
    "corners": corners,
    "paired-biases": paired_biases,
    "contractive-convolutions": contractive_convolutions,
    "polynomials": polynomials,
    "subnormal-and-huge": subnormal_and_huge,
    "tied-logits": tied_logits,
    "cancelling-biases": cancelling_biases,
}


@cache
def _of(family: str, seed: int) -> tuple[AnyInstance, ...]:
    return tuple(FAMILIES[family](seed))


def instances(families: Iterable[str] | None = None, seed: int = 0) -> list[AnyInstance]:
    """All instances of some families, of all if none are named.

    Raises:
        UnknownName: with the families that there are.
    """
    names = list(FAMILIES) if families is None else list(dict.fromkeys(families))
    for name in names:
        if name not in FAMILIES:
            raise UnknownName("family", name, FAMILIES)
    return [instance for name in names for instance in _of(name, seed)]


def property_instances(families: Iterable[str] | None = None, seed: int = 0) -> list[PropertyInstance]:
    """Those that are properties: of some families, of all if none are named."""
    return [instance for instance in instances(families, seed) if isinstance(instance, PropertyInstance)]


__all__ = ["FAMILIES", "instances", "property_instances"]
