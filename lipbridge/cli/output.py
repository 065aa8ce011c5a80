"""What a command shows: rows as one JSON array, or as tables for people; progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Annotated, Any

import typer

from lipbridge.errors import FileNotWritten

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON array of rows, and nothing else.")]

JsonRow = Mapping[str, Any]
Cell = Callable[[JsonRow], str]


def error_line(text: str) -> str:
    """One line for stderr."""
    return f"error: {' '.join(text.split())}"


def note(text: str) -> None:
    """A line for people, on stderr; what is in a file of somebody's gives no orders to the terminal."""
    told = "".join(c if c.isprintable() else " " for c in text)
    print(" ".join(told.split()), file=sys.stderr)  # noqa: T201


def print_json(rows: Sequence[JsonRow]) -> None:
    """One JSON array; what is not a finite number is null."""
    text = json.dumps(list(rows), indent=2, allow_nan=False)
    with _named_stdout():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def print_table(title: str, columns: Mapping[str, Cell], rows: Sequence[JsonRow]) -> None:
    """A table; columns that are empty in all rows are left out. Off a terminal it is as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    if not console.is_terminal:
        console.width = 400
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    shown = {name: values for name, values in cells.items() if any(values)}
    for name, values in shown.items():
        numeric = all(value[:1] in "0123456789-+<>=≤≥" for value in values if value)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for index in range(len(rows)):
        table.add_row(*(Text(values[index]) for values in shown.values()))
    with _named_stdout():
        console.print(table)
        sys.stdout.flush()


@contextlib.contextmanager
def _named_stdout() -> Generator[None]:
    """A full disk behind ``> FILE`` is told as such: the system does not say which file it was."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FileNotWritten("standard output", error) from error


@contextlib.contextmanager
def spinner() -> Generator[Callable[[str], None]]:
    """A function that shows what is being done, on stderr, if that is a terminal; nothing remains of it."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(text)
