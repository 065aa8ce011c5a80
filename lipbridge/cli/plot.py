"""``lipbridge plot``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lipbridge.cli.output import note
from lipbridge.errors import InvalidArgument

Figure = Literal["frontier", "tightness", "certified", "training", "scaling", "ablation"]

#: The options that each figure takes.
_TAKES: dict[str, tuple[str, ...]] = {
    "frontier": ("--norm", "--bound"),
    "tightness": ("--norm",),
    "certified": ("--norm",),
    "training": (),
    "scaling": ("--norm",),
    "ablation": ("--factor", "--measure"),
}


def plot(
    figure: Annotated[
        Figure,
        typer.Argument(
            help="Accuracy against bound, tightness against time, certified accuracy against radius, epochs of "
            "training, time and tightness against width, or one setting switched (--factor)."
        ),
    ],
    folder: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Studies' folders, or files of rows; for training also folders that train wrote."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The file; .pdf, .svg or .png. One that exists is replaced.")],
    norm: Annotated[str | None, typer.Option("--norm", help="Only bounds in this norm, e.g. 2 or 2->inf.")] = None,
    bound: Annotated[
        Literal["trivial", "best"], typer.Option(help="Of the frontier: the trivial bound, or the least proved one.")
    ] = "trivial",
    factor: Annotated[str | None, typer.Option(help="Of an ablation: the setting, e.g. activation.")] = None,
    measure: Annotated[
        Literal["tightness", "bound", "accuracy"], typer.Option(help="Of an ablation: what it is about.")
    ] = "tightness",
) -> None:
    """Draw a figure for a paper from the rows of studies."""
    from lipbridge import plot as figures

    given = {"--norm": norm is not None, "--bound": bound != "trivial", "--factor": factor is not None}
    for option, value in (given | {"--measure": measure != "tightness"}).items():
        if value and option not in _TAKES[figure]:
            takers = " or ".join(name for name, options in _TAKES.items() if option in options)
            raise InvalidArgument(option, f"come with {takers}", figure)
    figures.require_suffix(out, "--out")
    figures.require_matplotlib()
    if figure == "training":
        drawn, _ = figures.training(_epochs(folder))
    else:
        from lipbridge.files.frames import load_all
        from lipbridge.plot.networks import norm_of

        rows = load_all(folder)
        norms = dict.fromkeys(norm_of(row) for row in rows if row.get("norm") is not None)
        if norm is not None and norm not in norms:
            raise InvalidArgument("--norm", f"be one that the rows have: {', '.join(norms) or 'none'}", norm)
        draw: dict[str, Callable[[], tuple[Any, Any]]] = {
            "frontier": lambda: figures.frontier(rows, bound=bound, norm=norm),
            "tightness": lambda: figures.tightness(rows, norm=norm),
            "certified": lambda: figures.certified(rows, norm=norm),
            "scaling": lambda: figures.scaling(rows, norm=norm),
            "ablation": lambda: figures.ablation(rows, factor=factor, measure=measure),
        }
        drawn, _ = draw[figure]()
    figures.save(drawn, out)
    note(f"figure: {out}")


def _epochs(folders: Sequence[Path]) -> list[Any]:
    """The epochs of runs, and of the trainings of studies."""
    from lipbridge.plot import history

    found: list[Any] = []
    for folder in folders:
        own = history(folder)
        networks = sorted(folder.glob("networks/*")) if folder.is_dir() and not own else []
        epochs = own or history(*networks)
        if not epochs:
            expected = "be a folder that train wrote, or a study's, with epochs in metrics.jsonl"
            raise InvalidArgument("DIR", expected, str(folder))
        study = folder.resolve().name if networks and len(folders) > 1 else ""
        found += [{"study": study, **row} for row in epochs]
    return found
