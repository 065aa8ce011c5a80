"""Finds verifiers through the entry-point group ``lipbridge.verifiers``: ours, and anybody's package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from lipbridge import checks
from lipbridge.errors import MissingDependency, UnknownName
from lipbridge.problem.options import Option, read_options
from lipbridge.problem.verifier import Verifier

GROUP = "lipbridge.verifiers"
_FACTS = (*Verifier.__annotations__, "load", "prepare")


@dataclass(frozen=True)
class VerifierInfo:
    """A row of ``lipbridge verifiers``: what is known of a verifier without running it.

    ``by_default`` is False for a verifier that comparisons run only if it is named, ``certifies`` says whether it can
    certify predictions, ``options`` are what a user may set.
    """

    name: str
    summary: str
    norms: str
    proved: bool
    installed: bool
    install: str
    package: str
    by_default: bool = True
    certifies: bool = False
    options: tuple[Option, ...] = ()


def list_verifiers() -> list[VerifierInfo]:
    """All registered verifiers, core ones first, and whether the tool behind each is installed."""
    return sorted((_info(point) for point in _points().values()), key=lambda info: (info.install != "", info.name))


def get_verifier(name: str) -> Verifier:
    """A verifier by name, ready to use.

    Raises:
        UnknownName: with the names that are registered.
        MissingDependency: with the command that installs what it needs.
    """
    return get_verifiers([name])[name]


def get_verifiers(names: Iterable[str]) -> dict[str, Verifier]:
    """Several verifiers by name, as :func:`get_verifier`; the entry points are read once."""
    points = _points()
    found: dict[str, Verifier] = {}
    for name in names:
        checks.instance(name, str, "name", "be the name of a verifier")
        if name not in points:
            raise UnknownName("verifier", name, sorted(points))
        verifier = _load(points[name])
        if _missing(verifier):
            raise MissingDependency(f"Verifier `{name}` needs {', '.join(_missing(verifier))}, which", verifier.install)
        found[name] = verifier
    return found


def require_options(names: Iterable[str], options: Mapping[str, Mapping[str, object]]) -> None:
    """Check that verifiers are there, also those that have options, and that they declare these.

    Raises:
        UnknownName, MissingDependency: as :func:`get_verifier`, and for an option that a verifier does not declare.
        InvalidArgument: for a value outside its option's domain.
    """
    for name, verifier in get_verifiers(dict.fromkeys([*names, *options])).items():
        read_options(name, verifier.options, options.get(name, {}))


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> Verifier:
    verifier = point.load()()
    lacking = [fact for fact in _FACTS if not hasattr(verifier, fact)]
    if lacking:
        words = f"Entry point {point.value!r} of group {GROUP!r} is no Verifier: it has no {', '.join(lacking)}."
        raise TypeError(words)
    return verifier


def _missing(verifier: Verifier) -> list[str]:
    return [package for package in verifier.requires if find_spec(package) is None]


def _info(point: EntryPoint) -> VerifierInfo:
    package = point.dist.name if point.dist else "unknown"
    try:
        verifier = _load(point)
    except Exception as error:  # a broken foreign package is a row, not the end of the list
        return VerifierInfo(point.name, f"broken: {error}", "", False, False, "", package)
    return VerifierInfo(
        verifier.name,
        verifier.summary,
        verifier.norms,
        verifier.proved,
        not _missing(verifier),
        verifier.install,
        package,
        verifier.by_default,
        verifier.certifies,
        tuple(verifier.options),
    )
