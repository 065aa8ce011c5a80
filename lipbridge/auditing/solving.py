"""Properties put to solvers of queries, as files: they are processes of their own already."""

from __future__ import annotations

from pathlib import Path

from lipbridge.auditing.instance import PropertyInstance
from lipbridge.auditing.rows import AuditRow, judged_answer, no_answer
from lipbridge.errors import LipbridgeError
from lipbridge.files.formats import format_to_write
from lipbridge.files.queries import list_query_formats
from lipbridge.files.solvers import Asked, Solver
from lipbridge.study.verdicts import missed_by
from lipbridge.verifiers import Budget
from lipbridge.vocabulary import Status


def solved(name: str, solver: Solver, instance: PropertyInstance, folder: Path, limits: Budget) -> AuditRow:
    """What a solver says of a property.

    Refused is a network that its file cannot hold as it is, since the truth is that of the network.

    Args:
        name: of the row.
        solver: who is asked.
        instance: the property.
        folder: where its files are made.
        limits: of the answer.
    """
    try:
        asked = _written(instance, folder)
    except LipbridgeError as error:
        return no_answer(name, instance, Status.UNSUPPORTED, " ".join(str(error).split()))
    answer = solver.answer(asked, limits.seconds, limits.memory)
    return judged_answer(name, instance, answer, missed_by(asked.read, answer))


def _written(instance: PropertyInstance, folder: Path) -> Asked:
    kind = list_query_formats()[0]
    kind.require()
    network, query = folder / "network.onnx", folder / f"query{kind.suffixes[0]}"
    format = format_to_write(network, None, "native")
    format.require()
    written = format.write(instance.graph, network, "native")
    if written.get("rounding") != 0.0:
        raise LipbridgeError("its weights are rounded in a file, and the truth is of the weights as they are")
    kind.write(instance.asked_property, query, "2.0")
    networks = kind.named(query, {"": network})
    return Asked(query, networks, kind, kind.read(query, networks, as_real=True))


__all__ = ["solved"]
