"""Contradictions as files: whatever is needed to see once more that a verifier or a solver was wrong."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import FileNotWritten
from lipbridge.files.container import save_tensors
from lipbridge.files.graphs import save_graph
from lipbridge.files.problems import save_problem
from lipbridge.files.solvers import Asked
from lipbridge.problem.bound import Witness
from lipbridge.study.requests import Request
from lipbridge.study.rows import Row

#: The files of a bound that a witness contradicts; the first is a MODEL of every command.
MODEL, PROBLEM, WITNESS = "model.safetensors", "problem.safetensors", "witness.safetensors"
README, AGAIN = "README.txt", "again.py"

#: Asks once more: it reads nothing but the files beside it.
_AGAIN = '''"""Asks a verifier once more, and evaluates the witness that contradicts it: python again.py"""

from pathlib import Path

from lipbridge.files.container import load_tensors
from lipbridge.files.problems import load_problem
from lipbridge.problem.bound import Witness
from lipbridge.search import witness_value
from lipbridge.verifiers import Budget, get_verifier

here = Path(__file__).parent
problem = load_problem(here / "problem.safetensors")
tensors, facts = load_tensors(here / "witness.safetensors")
budget = Budget(facts["seconds"], facts["memory"], facts["seed"], facts["options"])
verifier = get_verifier(facts["verifier"])
verifier.load()
bound = verifier.prepare(problem).bound(budget)
lower = witness_value(problem, Witness(tensors["points"], tensors.get("direction")))
print(f"{facts['verifier']} says {bound.side.value} {bound.value!r}; the witness proves {lower!r}")
'''


def keep_bound(folder: Path, request: Request, row: Row, witness: Witness) -> Path:
    """The network, the question, the witness, the row, and a script that asks again; returns their folder.

    Raises:
        FileNotWritten: if it cannot be made.
    """
    where = "" if row.region == "everywhere" else f"-{row.region}"
    plain = {name: value for name, value in sorted(request.budget.options.items()) if not isinstance(value, Tensor)}
    with_options = "".join(f"-{name}={value}" for name, value in plain.items())[:60]
    own = own_folder(folder, f"{request.network}-{request.verifier}-l{row.norm}-{row.quantity}{where}{with_options}")
    save_graph(request.problem.graph, own / MODEL)
    save_problem(request.problem, own / PROBLEM)
    tensors: dict[str, Tensor] = {"points": witness.points}
    if witness.direction is not None:
        tensors["direction"] = witness.direction
    facts = {"verifier": request.verifier, "seconds": request.budget.seconds, "memory": request.budget.memory}
    save_tensors(own / WITNESS, tensors, {**facts, "seed": request.budget.seed, "options": plain, "row": row.to_json()})
    write_atomically(own / AGAIN, _AGAIN.encode())
    told = [
        f"{request.verifier} on {request.network}: l{row.norm}, {row.quantity}, {row.region}",
        f"It says {row.side.value} {row.value!r}; {row.detail}.",
        "",
        f"{MODEL} is the network, {PROBLEM} the network with its question, {WITNESS} the inputs that contradict it.",
        f"To see it again: python {AGAIN}",
        "",
    ]
    write_atomically(own / README, "\n".join(told).encode())
    return own


def keep_query(folder: Path, asked: Asked, solvers: Sequence[str], rows: Sequence[Mapping[str, object]]) -> Path:
    """The query, its network, all rows, and the command that asks again; returns their folder.

    Args:
        folder: where the folder is made.
        asked: the query.
        solvers: who else was asked.
        rows: of all, ours first, ready for JSON.

    Raises:
        FileNotWritten: if it cannot be made.
    """
    own = own_folder(folder, f"{next(iter(asked.networks.values())).stem}-{asked.query.stem}")
    words = ["lipbridge", "verify", asked.query.name]
    try:
        shutil.copyfile(asked.query, own / asked.query.name)
        for name, file in asked.networks.items():
            shutil.copyfile(file, own / file.name)
            words += ["--network", f"{name}={file.name}"]
    except OSError as error:
        raise FileNotWritten(own, error) from error
    words.append("--as-real")
    for solver in solvers:
        words += ["--solver", solver]
    wrong = [f"- {row['solver']} says {row['result']}: {row['detail']}" for row in rows if row["unsound"]]
    told = ["A contradiction. Ask once more, in this folder:", "", f"    {shlex.join(words)}", "", *wrong, ""]
    write_atomically(own / README, "\n".join(told).encode())
    write_atomically(own / "verdicts.json", json.dumps(list(rows), indent=1).encode())
    return own


def own_folder(folder: Path, name: str) -> Path:
    """A folder of a name that files can have, made if it is not there.

    Raises:
        FileNotWritten: if it cannot be made.
    """
    own = folder / re.sub(r"[^\w.+-]+", "_", name)
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileNotWritten(own, error) from error
    return own


__all__ = ["AGAIN", "MODEL", "PROBLEM", "README", "WITNESS", "keep_bound", "keep_query", "own_folder"]
