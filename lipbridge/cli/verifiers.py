"""``lipbridge verifiers``: what is installed, what is not, and the command that installs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipbridge.cli.output import JsonOption, note, print_json, print_table

if TYPE_CHECKING:
    from lipbridge.verifiers import VerifierInfo


def verifiers(
    name: Annotated[str | None, typer.Argument(help="Only this one, with its options.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List all verifiers and how to install what is missing, or one verifier and its options.

    Those of other packages are found by their entry points in the group `lipbridge.verifiers`. An option is set by
    `--option VERIFIER.NAME=VALUE` of bound and compare.
    """
    from lipbridge.errors import UnknownName
    from lipbridge.verifiers import list_verifiers

    infos = list_verifiers()
    rows = [_json(info) for info in infos if name in (None, info.name)]
    if not rows:
        raise UnknownName("verifier", str(name), [info.name for info in infos])
    if as_json:
        print_json(rows)
        return
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
    if name is not None and not rows[0]["options"]:
        note(f"{name} has no options.")
    if name is None or not rows[0]["options"]:
        return
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


def _json(info: VerifierInfo) -> dict[str, Any]:
    row = {key: value for key, value in vars(info).items() if key != "options"}
    options = [
        {"name": option.name, "type": option.type_name, "default": option.default, "help": option.help}
        for option in info.options
    ]
    return {**row, "options": options}
