"""``lipbridge verifiers``: what is installed, what is not, and the command that installs it."""

from __future__ import annotations

from dataclasses import asdict

from lipbridge.cli.output import JsonOption, print_json, print_table


def verifiers(as_json: JsonOption = False) -> None:
    """List all verifiers, and how to install what is missing.

    Those of other packages are found by their entry points in the group `lipbridge.verifiers`.
    """
    from lipbridge.verifiers import list_verifiers

    rows = [asdict(info) for info in list_verifiers()]
    if as_json:
        print_json(rows)
        return
    print_table(
        "Verifiers",
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
