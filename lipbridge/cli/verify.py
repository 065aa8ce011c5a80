"""``lipbridge verify`` and ``lipbridge supports``: the command line that VNN-LIB 2.0 asks of a solver."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipbridge.cli.output import Cell, JsonOption, JsonRow, note, print_json, print_table
from lipbridge.errors import InvalidArgument

if TYPE_CHECKING:
    from lipbridge.files.queries import QueryFormat

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
            metavar="NAME|COMMAND",
            help="Ask another solver too: one that `lipbridge verifiers` lists, or any command with VNN-LIB 2.0's "
            "command line; several times for several. What it says is checked, and told in a table.",
        ),
    ] = None,
    keep: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where queries are kept that a solver is wrong about.")
    ] = Path("contradictions"),
    as_json: JsonOption = False,
) -> None:
    """Whether an input obeys a VNN-LIB query (1.0 or 2.0): unsat is a proof, sat comes with the input.

    The first line is unsat, sat, unknown or timed-out. Proofs hold over the real numbers, after rounding; an input of
    sat obeys the query in exact arithmetic and when the file is run. Bounds, a search, then branch and bound until the
    time is over. A list is answered in a table.
    """
    from lipbridge.files.queries import query_format_of
    from lipbridge.study.verdicts import our_verdict

    began = time.perf_counter()
    if timeout is not None and timeout < 1:
        raise InvalidArgument("--timeout", "be at least 1", timeout)
    kind, many = query_format_of(query)
    kind.require()
    if many and network:
        raise InvalidArgument("--network", "not be given with a list, which names its networks", network)
    if many or solver:
        return _compared(kind, query, many, _networks(network or []), timeout, as_real, solver or [], keep, as_json)
    networks = _networks(network or [])
    row, _ = our_verdict(kind, query, networks, began, timeout or SECONDS, as_real=as_real)
    if as_json:
        return print_json([row.facts()])
    typer.echo(row.result)
    if row.assignment:
        typer.echo(row.assignment)
    if row.detail:
        note(row.detail)
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


def _compared(
    kind: QueryFormat,
    path: Path,
    many: bool,
    networks: Mapping[str, Path],
    timeout: int | None,
    as_real: bool,
    solvers: Sequence[str],
    keep: Path,
    as_json: bool,
) -> None:
    """A row for each query and solver, ours first."""
    from lipbridge.files.queries import Listed
    from lipbridge.files.solvers import get_solver
    from lipbridge.study.verdicts import verdicts

    others = [get_solver(words) for words in solvers]
    rows: list[dict[str, Any]] = []
    lines = kind.listed(path) if many else [Listed(next(iter(networks.values()), path), path, SECONDS)]
    for line in lines:
        named = {"": line.network} if many else networks
        seconds = timeout or line.seconds
        found = verdicts(kind, line, named, seconds, others, as_real=as_real, keep=keep, strict=not many)
        names = {"network": _near(line.network, path), "query": _near(line.query, path)}
        rows += [{**row.facts(), **names} for row in found]
    if as_json:
        return print_json(rows)
    columns: dict[str, Cell] = {name: _shown(name) for name in ("network", "query", "solver", "result")}
    columns |= {"seconds": _shown("seconds"), "start": _shown("startup"), "": _shown("detail")}
    if not others:
        del columns["solver"], columns["start"]
    print_table(f"{path}", columns, rows)
    return None


def _shown(name: str) -> Cell:
    def cell(row: JsonRow) -> str:
        value = row.get(name)
        return f"{value:.2f}" if isinstance(value, float) else str(value or "")

    return cell


def _near(file: Path, path: Path) -> str:
    folder = path.parent.resolve()
    whole = file.resolve()
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(file)


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
