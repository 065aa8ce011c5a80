"""``lipbridge verifiers``: what is installed, what is not, and the command that installs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipbridge.cli.output import JsonOption, note, print_json, print_table

if TYPE_CHECKING:
    from lipbridge.verifiers import VerifierInfo


def verifiers(
    name: Annotated[
        str | None, typer.Argument(help="Only this one, with its options; or `install`, with the NAME of a solver.")
    ] = None,
    installed: Annotated[
        str | None, typer.Argument(metavar="NAME", help="After install: the solver to be installed.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Install without asking.")] = False,
    pip: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="After install: handed to pip, e.g. --pip=--extra-index-url=URL."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List all verifiers and how to install what is missing, or one verifier and its options, or install a solver.

    Those of other packages are found by their entry points in the group `lipbridge.verifiers`. An option is set by
    `--option VERIFIER.NAME=VALUE` of bound and compare. Solvers answer queries (`verify --solver NAME`); `install NAME`
    puts one, with all that it needs, into a Python environment of its own, in the user's cache or
    `$LIPBRIDGE_VERIFIERS`, and says its size first.
    """
    from lipbridge.errors import InvalidArgument, UnknownName
    from lipbridge.files.solvers import list_solvers
    from lipbridge.verifiers import list_verifiers

    if name == "install":
        return _install(installed, list(pip or []), yes=yes)
    for given, option in ((installed, "NAME"), (pip, "--pip"), (yes, "--yes")):
        if given:
            raise InvalidArgument(option, "stand after `install`", given)
    solvers = [vars(info) for info in list_solvers() if name in (None, info.name)]
    if name is not None and solvers:
        return _tell_solvers(solvers, as_json=as_json)

    infos = list_verifiers()
    rows = [_json(info) for info in infos if name in (None, info.name)]
    if not rows:
        known = [info.name for info in [*infos, *list_solvers()]]
        raise UnknownName("verifier", str(name), known)
    if as_json:
        print_json(rows)
        return None
    print_table(
        "Verifiers" if name is None else f"Verifier {name}",
        {
            "name": lambda row: row["name"],
            "bounds": lambda row: row["summary"],
            "norms": lambda row: row["norms"],
            "proved": lambda row: "yes" if row["proved"] else "no",
            "installed": lambda row: "yes" if row["installed"] else "no",
            "install with": lambda row: "" if row["installed"] else row["install"],
            "package": lambda row: row["package"],
        },
        rows,
    )
    if name is None:
        return _tell_solvers(solvers, as_json=False)
    if not rows[0]["options"]:
        return note(f"{name} has no options.")
    print_table(
        f"Options of {name}, set by --option {name}.NAME=VALUE",
        {
            "option": lambda option: option["name"],
            "type": lambda option: option["type"],
            "default": lambda option: "" if option["default"] is None else str(option["default"]),
            "what it is": lambda option: option["help"],
        },
        rows[0]["options"],
    )
    return None


def _tell_solvers(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        return print_json(rows)
    print_table(
        "Solvers of queries, for verify --solver",
        {
            "name": lambda row: row["name"],
            "what it is": lambda row: row["summary"],
            "installed": lambda row: "yes" if row["installed"] else "no",
            "install with, or how to ask": lambda row: "" if row["installed"] else row["install"],
            "package": lambda row: row["package"],
        },
        rows,
    )
    return None


def _install(name: str | None, options: list[str], *, yes: bool) -> None:
    """Make the environment of a solver, once its size was agreed to."""
    from lipbridge.errors import InvalidArgument
    from lipbridge.files.solvers import environment_of

    if name is None:
        raise InvalidArgument(
            "NAME", "name the solver to be installed, as in `lipbridge verifiers install marabou`", ""
        )
    environment = environment_of(name)
    if environment.ready:
        return note(f"{name} is installed: {environment.folder}")
    packages = ", ".join([*environment.packages, *environment.alone])
    note(f"{name} ({environment.licence}) takes {environment.size}, in {environment.folder}: {packages}")
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidArgument("--yes", "be given where nobody can be asked", "no terminal")
        typer.confirm("Install it?", abort=True, err=True)
    environment.make(options)
    return note(f"{name} is installed. Ask it with: lipbridge verify QUERY --network N=FILE --solver {name}")


def _json(info: VerifierInfo) -> dict[str, Any]:
    row = {key: value for key, value in vars(info).items() if key != "options"}
    options = [
        {"name": option.name, "type": option.type_name, "default": option.default, "help": option.help}
        for option in info.options
    ]
    return {**row, "options": options}
