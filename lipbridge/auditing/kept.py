"""Findings as files: the network, the question, the inputs that contradict the claim, and how to see it again."""

from __future__ import annotations

from pathlib import Path

from lipbridge.auditing.files import KNOWN, MODEL, PROBLEM, save_instance
from lipbridge.auditing.instance import AnyInstance, Instance
from lipbridge.auditing.rows import AuditRow
from lipbridge.disk.atomic import write_atomically
from lipbridge.study.contradictions import own_folder

README = "README.txt"


def keep(folder: Path, instance: AnyInstance, row: AuditRow) -> Path:
    """Write a finding into a folder of its own; returns that.

    Raises:
        FileNotWritten: if it cannot be made.
    """
    own = own_folder(folder, f"{row.verifier}-{row.family}-{row.instance}")
    save_instance(instance, own)
    write_atomically(own / README, _told(own, instance, row).encode())
    return own


def _told(own: Path, instance: AnyInstance, row: AuditRow) -> str:
    lines = [
        f"{row.verifier} on {row.instance}, of the family {row.family}",
        f"asked:  {row.asked}",
        f"said:   {row.value}",
        f"truth:  {row.truth}",
        f"        {row.detail}",
        "",
        f"{MODEL}: the network, which every command of lipbridge takes.",
    ]
    if isinstance(instance, Instance):
        lines.append(f"{PROBLEM}: the network with the question.")
    what = "two inputs, `pair`, that prove the truth" if isinstance(instance, Instance) else "a counterexample"
    lines += [
        f"{KNOWN}: {what}, and the law's bound if there is one.",
        "",
        "To see it again, with the truth proved anew from these files:",
        f"    lipbridge audit --again {own} --verifier {row.verifier}",
    ]
    return "\n".join(lines) + "\n"


__all__ = ["README", "keep"]
