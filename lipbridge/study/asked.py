"""Which verifier a study asks which question of which networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lipbridge.disk.toml_lines import Path as Place
from lipbridge.frontend.capture import capture
from lipbridge.layers.layers import mlp
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.study.cells import Kind, Limits
from lipbridge.study.config import StudyFile
from lipbridge.study.engine.blank import WITNESS
from lipbridge.study.engine.wire import number_words
from lipbridge.study.faults import Faults
from lipbridge.study.file_tables import CertificatesTable, ProblemTable, StudyTable
from lipbridge.study.grid import matches
from lipbridge.study.names import chosen, label_of
from lipbridge.study.networks import Network
from lipbridge.study.words import question_words
from lipbridge.verifiers import Refusal, VerifierInfo, get_verifier, list_verifiers

Json = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A verifier with its options; ``cost`` puts cheap ones first."""

    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=lambda: {})
    seed: int = 0
    time: float | None = None
    memory: int | None = None
    cost: int = 0


@dataclass(frozen=True, eq=False)
class Asked:
    """One verifier, one question or radius, and the networks that it is about."""

    kind: Kind
    verifier: Choice
    words: Json
    networks: tuple[Network, ...]
    limits: Limits
    label: str
    #: How many test points are certified; None for a question, whose data are the centres of its balls or where the
    #: search starts.
    count: int | None = None
    on_data: bool = False

    def words_for(self, network: Network) -> Json:
        """The words of the cell about a network."""
        points = dict(network.data) if self.on_data and network.data is not None else None
        if points is not None and self.kind is Kind.CERTIFICATE:
            assert network.dataset is not None
            points["count"] = len(network.dataset.test_labels) if self.count is None else self.count
        verifier = self.verifier
        return {
            "source": network.source,
            "verifier": verifier.name,
            "verifier_label": verifier.label,
            "options": {name: number_words(value) for name, value in verifier.options.items()},
            "seed": verifier.seed,
            **self.words,
            "points": points,
        }


def asked(study: StudyFile, networks: Sequence[Network], faults: Faults, notes: list[str]) -> list[Asked]:
    """All of a study: the witness searches first, then cheap verifiers before dear ones, then certificates."""
    known = {info.name: info for info in list_verifiers()}
    found: list[Asked] = []
    for index, problem in enumerate(study.tables.problems):
        found += _questions(study.tables, ("problems", index), problem, networks, known, faults, notes)
    found.sort(key=lambda each: each.verifier.cost)
    for index, table in enumerate(study.tables.certificates):
        found += _certificates(study.tables, ("certificates", index), table, networks, known, faults, notes)
    return found


def _questions(
    tables: StudyTable,
    place: Place,
    problem: ProblemTable,
    networks: Sequence[Network],
    known: Mapping[str, VerifierInfo],
    faults: Faults,
    notes: list[str],
) -> Iterator[Asked]:
    p, q = problem.norm, problem.norm if problem.output_norm is None else problem.output_norm
    ball = problem.region
    region: Json | None = None
    name = f"l{p}" if p == q else f"l{p} to l{q}"
    about = _about(place, problem.networks, networks, ball is not None, faults, notes)
    if ball is not None:
        region = {"radius": ball.radius, "norm": p if ball.norm is None else ball.norm, "points": ball.points}
        name += f", {ball.quantity} in balls of {ball.radius:g}"
        _enough((*place, "region", "points"), ball.points, about, faults)
    words = question_words(p, q, region=region) if ball is None else question_words(p, q, ball.quantity, region)
    choices = _choices(tables, problem.verifiers, known)
    if problem.verifiers is None and all(table.name == WITNESS for table in tables.verifiers):
        choices = list(_able(choices, problem, notes))
    own = [choice for choice in choices if choice.name == WITNESS]
    search = own or _choices(tables, [WITNESS], known)
    for choice in [*search, *(choice for choice in choices if choice.name != WITNESS)]:
        yield Asked(
            kind=Kind.BOUND,
            verifier=choice,
            words={"question": words},
            networks=about,
            limits=_limits(tables, choice, problem),
            label=f"{choice.label}, {name}",
            on_data=choice.name == WITNESS or ball is not None,
        )


def _certificates(
    tables: StudyTable,
    place: Place,
    table: CertificatesTable,
    networks: Sequence[Network],
    known: Mapping[str, VerifierInfo],
    faults: Faults,
    notes: list[str],
) -> Iterator[Asked]:
    about = _about(place, table.networks, networks, True, faults, notes)
    if table.points is not None:
        _enough((*place, "points"), table.points, about, faults)
    for choice in _choices(tables, table.verifiers, known):
        for radius in dict.fromkeys(table.radii):
            yield Asked(
                kind=Kind.CERTIFICATE,
                verifier=choice,
                words={"norm": table.norm, "radius": float(radius)},
                networks=about,
                limits=_limits(tables, choice, table),
                label=f"certified by {choice.label}, l{table.norm}, radius {radius:g}",
                count=table.points,
                on_data=True,
            )


def _limits(tables: StudyTable, choice: Choice, own: ProblemTable | CertificatesTable) -> Limits:
    times, memories = (choice.time, own.time), (choice.memory, own.memory)
    return Limits(
        next((time for time in times if time is not None), tables.limits.time),
        next((memory for memory in memories if memory is not None), tables.limits.memory),
    )


def _about(
    place: Place,
    patterns: Sequence[str] | None,
    networks: Sequence[Network],
    on_data: bool,
    faults: Faults,
    notes: list[str],
) -> tuple[Network, ...]:
    """The networks that are meant; those without data are left out where it is needed, unless they are meant alone."""
    meant = [n for n in networks if patterns is None or any(matches(pattern, *n.names) for pattern in patterns)]
    bare = [network.cell.network for network in meant if network.data is None] if on_data else []
    if bare and len(bare) == len(meant):
        faults.add(place, f"asks about test points, and {', '.join(bare)} has no data; say it in [[models]]")
    elif bare:
        notes.append(f"{place[0]}[{place[1]}] leaves out {', '.join(bare)}, which has no data")
    return tuple(network for network in meant if network.cell.network not in bare)


def _enough(place: Place, count: int, networks: Sequence[Network], faults: Faults) -> None:
    for network in networks:
        if network.dataset is not None and count > (there := len(network.dataset.test_labels)):
            faults.add(place, f"should be at most {there}, the test points of {network.dataset.name}; found {count}")
            return


def _choices(tables: StudyTable, words: Sequence[str] | None, known: Mapping[str, VerifierInfo]) -> list[Choice]:
    """The verifiers that are named; without names those of the file, or else all that run by default."""
    if words is None:
        words = [label_of(table, tables.verifiers) for table in tables.verifiers if table.name != WITNESS]
    if not words:
        words = [info.name for info in known.values() if info.by_default and info.installed and info.name != WITNESS]
    found: dict[str, Choice] = {}
    for word in words:
        for table in chosen(word, tables.verifiers):
            label = label_of(table, tables.verifiers)
            facts = (table.name, label, table.options, table.seed, table.time, table.memory)
            found[label] = Choice(*facts, _cost(known.get(table.name)))
        if not chosen(word, tables.verifiers):
            found[word] = Choice(word, word, cost=_cost(known.get(word)))
    return list(found.values())


def _cost(info: VerifierInfo | None) -> int:
    if info is None or info.install:
        return 3
    return {WITNESS: 0, "trivial": 1}.get(info.name, 2)


def _able(choices: Sequence[Choice], problem: ProblemTable, notes: list[str]) -> Iterator[Choice]:
    """Of verifiers that nobody named those that take the question at all: asked about a small network."""
    graph = capture(mlp([2, 2, 2], "abs"))
    p, q = problem.norm, problem.norm if problem.output_norm is None else problem.output_norm
    question, ball = Question.everywhere(p, q), problem.region
    if ball is not None:
        region = Ball(torch.zeros(1, 2, dtype=torch.float64), ball.radius, p if ball.norm is None else ball.norm)
        question = Question.on(region, p, q, quantity=ball.quantity)
    for choice in choices:
        try:
            task = get_verifier(choice.name).prepare(Problem(graph, question))
        except Exception:  # its rows will tell
            task = None
        if isinstance(task, Refusal):
            notes.append(f"verifier {choice.name} is left out of {problem.name or f'l{p}'}: {task.reason}")
        else:
            yield choice


__all__ = ["WITNESS", "Asked", "Choice", "asked"]
