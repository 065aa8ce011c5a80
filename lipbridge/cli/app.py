"""The application: its commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from lipbridge.cli import (
    audit,
    bound,
    certify,
    check,
    compare,
    data,
    export,
    plot,
    study,
    sweep,
    train,
    verifiers,
    verify,
)
from lipbridge.cli.output import error_line
from lipbridge.errors import LipbridgeError, StudyFileError

OK, NO_VALUE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="lipbridge",
    help="Train networks whose Lipschitz bound you can read off, prove the bound, compare every verifier on it.",
    epilog="Exit codes: 0 done, 1 no verifier gave a value, or audit found a wrong one, 2 bad input, 130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("bound")(bound.bound)
app.command("check")(check.check)
app.command("compare")(compare.compare)
app.command("plot")(plot.plot)
app.command("audit")(audit.audit)
app.command("certify")(certify.certify)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("supports")(verify.supports)
app.command("verifiers")(verifiers.verifiers)
app.command("sweep")(sweep.sweep)
app.add_typer(study.app, name="study")
app.add_typer(data.app, name="data")


def _version(value: bool) -> None:
    if value:
        from lipbridge import __version__

        typer.echo(f"lipbridge {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(  # pyright: ignore[reportUnusedFunction]  # typer calls it
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: the console script, and ``python -m lipbridge``."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Whatever a user can cause is one line on stderr.

    An error that is none of these is a bug of ours and keeps its traceback.
    """
    try:
        code = get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="lipbridge", standalone_mode=False
        )
    except (KeyboardInterrupt, EOFError, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read the rows has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (LipbridgeError, OSError, _USAGE) as error:
        return _refuse(error)
    if code == INTERRUPTED:
        print(error_line("interrupted"), file=sys.stderr)  # noqa: T201
    return int(code or OK)


#: The root of the errors that the parser raises, in typer's own copy of click or in the package.
_USAGE: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _refuse(error: Exception) -> int:
    if isinstance(error, OSError) and not isinstance(error, LipbridgeError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    if hasattr(error, "format_message"):
        text = str(error.format_message())  # type: ignore[attr-defined]
    for line in error.lines if isinstance(error, StudyFileError) else [text]:
        print(error_line(line), file=sys.stderr)  # noqa: T201
    return BAD_INPUT
