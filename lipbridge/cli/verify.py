"""``lipbridge verify`` and ``lipbridge supports``: the command line that VNN-LIB 2.0 asks of a solver."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipbridge.cli.output import Cell, JsonOption, JsonRow, note, print_json, print_table
from lipbridge.errors import InvalidArgument, LipbridgeError, ModelFileError
from lipbridge.processes import stdout_to_stderr

if TYPE_CHECKING:
    from lipbridge.files.queries import Query, QueryFormat
    from lipbridge.files.solvers import Solver

#: Verdicts as the standard writes them.
WORDS = {"verified": "unsat", "falsified": "sat", "unknown": "unknown", "timeout": "timed-out"}
#: Seconds if nothing else is said.
SECONDS = 60


def verify(
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="A .vnnlib file, or a list of them, instances.csv.")],
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="The ONNX file of the network that the query calls NAME."),
    ] = None,
    timeout: Annotated[
        int | None, typer.Option(metavar="SECONDS", help=f"At most; {SECONDS}, or what the list says, if not given.")
    ] = None,
    as_real: Annotated[
        bool, typer.Option("--as-real", help="Take numbers that the query declares as floats as real ones.")
    ] = False,
    solver: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COMMAND",
            help="Ask another solver too, by VNN-LIB 2.0's command line; several times for several. What it says is "
            "checked, and told in a table.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Whether an input obeys a VNN-LIB query (1.0 or 2.0): unsat is a proof, sat comes with the input.

    The first line is unsat, sat, unknown or timed-out. Proofs hold over the real numbers, after rounding; an input of
    sat obeys the query in exact arithmetic and when the file is run. Bounds, a search, then branch and bound until the
    time is over. A list is answered in a table.
    """
    from lipbridge.files.queries import query_format_of

    began = time.perf_counter()
    if timeout is not None and timeout < 1:
        raise InvalidArgument("--timeout", "be at least 1", timeout)
    kind, many = query_format_of(query)
    kind.require()
    if many and network:
        raise InvalidArgument("--network", "not be given with a list, which names its networks", network)
    if many or solver:
        return _compared(kind, query, many, _networks(network or []), timeout, as_real, solver or [], as_json)
    networks = _networks(network or [])
    row, _ = _answered(kind, query, networks, began, timeout or SECONDS, as_real)
    if as_json:
        return print_json([row])
    typer.echo(row["result"])
    if row["assignment"]:
        typer.echo(row["assignment"])
    if row["detail"]:
        note(row["detail"])
    return None


def _networks(given: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for each in given:
        name, equals, file = each.partition("=")
        if not equals or not file:
            raise InvalidArgument("--network", "be NAME=FILE", each)
        if name in found:
            raise InvalidArgument("--network", "name each network once", each)
        found[name] = Path(file)
    return found


def _answered(
    kind: QueryFormat, query: Path, networks: Mapping[str, Path], began: float, seconds: float, as_real: bool
) -> tuple[dict[str, Any], Query]:
    """A row (result, assignment for sat, what is to be said of it, seconds), and the query as it was read."""
    from lipbridge.problem.property import Verdict
    from lipbridge.verifiers.properties import judge

    assignment, detail = None, ""
    with stdout_to_stderr():
        read = kind.read(query, networks, as_real=as_real)
        if read.asked is None:
            verdict, detail = Verdict.VERIFIED, "the query contradicts itself, whatever the network does"
        else:
            found = judge(read.graph, read.asked, tried=read.tried, dtype=read.dtype, deadline=began + 0.95 * seconds)
            verdict = found.verdict
            if found.counterexample is not None:
                assignment = None if read.tried is None else read.confirmed(found.counterexample)
                if assignment is None:
                    verdict = Verdict.UNKNOWN
                    detail = "an input obeys the query over the real numbers, but not when the file is run in floats"
    spent = time.perf_counter() - began
    if spent > seconds and assignment is None and verdict is Verdict.UNKNOWN:
        verdict = Verdict.TIMEOUT
    row = {
        "query": str(query),
        "result": WORDS[verdict],
        "assignment": assignment,
        "seconds": spent,
        "detail": detail or (verdict.advice if verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT) else ""),
    }
    return row, read


def _compared(
    kind: QueryFormat,
    path: Path,
    many: bool,
    networks: Mapping[str, Path],
    timeout: int | None,
    as_real: bool,
    solvers: Sequence[str],
    as_json: bool,
) -> None:
    """A row for each query and solver, ours first."""
    from lipbridge.files.queries import Listed
    from lipbridge.files.solvers import get_solver

    others = [get_solver(words) for words in solvers]
    rows: list[dict[str, Any]] = []
    lines = kind.listed(path) if many else [Listed(next(iter(networks.values()), path), path, SECONDS)]
    for line in lines:
        seconds = timeout or line.seconds
        named = {"": line.network} if many else networks
        began, read = time.perf_counter(), None
        try:
            row, read = _answered(kind, line.query, named, began, seconds, as_real)
        except (LipbridgeError, OSError) as error:
            if not many:
                raise
            row = {**_failed(error), "seconds": time.perf_counter() - began}
        found = [{"solver": "lipbridge", **row, "startup": None}]
        try:
            files = kind.named(line.query, named) if others else {}
            found += [_asked(each, line.query, files, seconds, read, str(row["result"])) for each in others]
        except ModelFileError as error:  # no solver can be told which network is meant
            found += [{"solver": each.name, **_failed(error)} for each in others]
        names = {"network": _near(line.network, path), "query": _near(line.query, path)}
        rows += [{**names, **each, **names} for each in found]
    if as_json:
        return print_json(rows)
    columns: dict[str, Cell] = {name: _shown(name) for name in ("network", "query", "solver", "result")}
    columns |= {"seconds": _shown("seconds"), "start": _shown("startup"), "": _shown("detail")}
    if not others:
        del columns["solver"]
    print_table(f"{path}", columns, rows)
    return None


def _failed(error: Exception) -> dict[str, Any]:
    return {"result": "error", "assignment": None, "detail": " ".join(str(error).split())}


def _shown(name: str) -> Cell:
    def cell(row: JsonRow) -> str:
        value = row.get(name)
        return f"{value:.2f}" if isinstance(value, float) else str(value or "")

    return cell


def _near(file: Path, path: Path) -> str:
    folder = path.parent.resolve()
    whole = file.resolve()
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(file)


def _asked(
    solver: Solver, query: Path, networks: Mapping[str, Path], seconds: float, read: Query | None, ours: str
) -> dict[str, Any]:
    """What another solver says, and whether that is true: against our proof, our counterexample, and its own."""
    from lipbridge.problem.verifier import Budget

    answer = solver.answer(query, networks, seconds, Budget(seconds=seconds).memory)
    detail, result = answer.detail, WORDS.get(answer.verdict, "error")
    if result == "sat" and read is not None:
        x = read.inputs(answer.assignment)
        if x is None:
            detail = "its counterexample cannot be read"
        else:
            why = read.failing(x)
            detail = f"its counterexample is none when the file is run: {why}" if why else ""
    if {ours, result} == {"sat", "unsat"}:
        why = "the opposite is proved" if ours == "unsat" else "a counterexample is known"
        detail = f"unsound: {why}" + (f"; {detail}" if detail else "")
    return {
        "solver": solver.name,
        "result": result,
        "assignment": answer.assignment or None,
        "seconds": answer.seconds,
        "startup": solver.startup(),
        "detail": detail,
    }


def supports(
    onnx_opset_versions: Annotated[bool, typer.Option("--onnx-opset-versions", help="The first and the last.")] = False,
    onnx_element_types: Annotated[bool, typer.Option("--onnx-element-types", help="Of sound proofs.")] = False,
    onnx_operators: Annotated[bool, typer.Option("--onnx-operators", help="Names of ONNX operators.")] = False,
    vnnlib_versions: Annotated[bool, typer.Option("--vnnlib-versions", help="The first and the last.")] = False,
    hidden_node_theories: Annotated[bool, typer.Option("--hidden-node-theories")] = False,
    multiple_input_output_theories: Annotated[bool, typer.Option("--multiple-input-output-theories")] = False,
    multiple_network_theories: Annotated[bool, typer.Option("--multiple-network-theories")] = False,
    multiple_node_comparison_theories: Annotated[bool, typer.Option("--multiple-node-comparison-theories")] = False,
    arithmetic_complexity_theories: Annotated[bool, typer.Option("--arithmetic-complexity-theories")] = False,
    optimised_disjunctive_reasoning: Annotated[bool, typer.Option("--optimised-disjunctive-reasoning")] = False,
    serialise_assignments: Annotated[bool, typer.Option("--serialise-assignments")] = False,
) -> None:
    """What verify can read, one capability at a time, as VNN-LIB 2.0 has it."""
    asked = [name.replace("_", "-") for name, given in locals().items() if given is True]
    if len(asked) != 1:
        raise InvalidArgument("supports", "be given one option, such as --vnnlib-versions", asked or "none")
    from lipbridge.files.queries import list_query_formats

    for kind in list_query_formats():
        known = kind.capabilities()
        if asked[0] in known:
            kind.require()
            typer.echo("\n".join(known[asked[0]]))


__all__ = ["supports", "verify"]
