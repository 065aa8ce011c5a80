"""The tables of a study as papers have them: networks with their spread over seeds, bounds, certified accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lipbridge import text
from lipbridge.plot.networks import group_of, grouped, is_number, mean, names_of, norm_of, spread
from lipbridge.report.summaries import bounds_of, certified_tables, group_table

Row = Mapping[str, Any]
_QUANTITIES = {"lipschitz": "Lipschitz constant", "deviation": "Largest deviation from the centre / radius"}


@dataclass(frozen=True)
class PaperTable:
    """A table in words: ``{norm}`` in the caption stands for a norm; ``bold`` are places of cells (line, column)."""

    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    caption: str
    label: str
    norm: str = ""
    bold: frozenset[tuple[int, int]] = frozenset()

    @property
    def kept(self) -> list[int]:
        """The columns that are not empty in all lines."""
        return [place for place, _ in enumerate(self.columns) if any(line[place] for line in self.lines)]

    def cell(self, index: int, place: int) -> str:
        """A cell; a name that is that of the line above stands once."""
        again = place == 0 and index > 0 and self.lines[index - 1][0] == self.lines[index][0]
        return "" if again else self.lines[index][place]


def paper_tables(rows: Sequence[Row]) -> list[PaperTable]:
    """The networks, a table for each question, and certified accuracy."""
    found: list[PaperTable] = []
    if any(row.get("kind") in ("training", "model") for row in rows):
        found.append(_networks(rows))
    found += [_question(some, key) for key, some in _questions(rows).items()]
    for table in certified_tables(rows):
        lines = [
            [line["group"], line["verifier"], *(_interval(cell, 100) for cell in line["cells"])]
            for line in table["lines"]
        ]
        columns = ["network", "verifier", *(f"{radius:g}" for radius in table["radii"])]
        caption = "Certified accuracy in per cent in balls of {norm}, by radius."
        found.append(PaperTable(columns, lines, caption, f"certified-{table['norm']}", table["norm"]))
    return found


def _networks(rows: Sequence[Row]) -> PaperTable:
    lines = [
        [
            *(line["group"], line["norm"], str(line["seeds"]), _interval(line["accuracy"], 100)),
            *(_interval(line[key]) for key in ("bound", "tightness", "best")),
        ]
        for line in group_table(rows)
    ]
    columns = ["network", "norm", "seeds", "accuracy, %", "trivial bound", "tightness", "best bound"]
    return PaperTable(columns, lines, "Networks: mean and standard deviation over the seeds.", "networks")


def _questions(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    uppers = [row for row in bounds_of(rows) if row.get("side") != "lower"]
    return grouped(((row["quantity"], norm_of(row), row["region"]), row) for row in uppers)


def _question(rows: Sequence[Row], key: tuple[str, str, str]) -> PaperTable:
    quantity, norm, region = key
    names = names_of(group_of(row) for row in rows)
    lines: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for group, some in grouped((group_of(row), row) for row in rows).items():
        proven: dict[int, float] = {}
        for verifier, few in grouped((str(row.get("verifier_label") or row["verifier"]), row) for row in some).items():
            values = _values(few, "value")
            proved = bool(values) and all(row["proved"] for row in few if row["status"] == "ok")
            if proved and len(values) == len(few):
                proven[len(lines)] = mean(values)
            statuses = dict.fromkeys(str(row["status"]) for row in few)
            lines.append(
                [
                    names[group],
                    verifier,
                    _interval_of(values),
                    _interval_of(_values(few, "tightness")),
                    _time(few),
                    "" if not values else "yes" if proved else "no",
                    "" if set(statuses) == {"ok"} else ", ".join(statuses),
                ]
            )
        bold |= {(place, 2) for place, value in proven.items() if value <= min(proven.values()) * (1 + 1e-9)}
    columns = ["network", "verifier", "bound", "tightness", "time", "proved", "status"]
    where = "" if region == "everywhere" else f", {region}"
    caption = f"{_QUANTITIES.get(quantity, quantity)}, {{norm}}{where}."
    return PaperTable(columns, lines, caption, f"{quantity}-{norm}-{region}", norm, frozenset(bold))


def _interval(value: Mapping[str, float] | None, factor: float = 1.0) -> str:
    return text.interval(value["mean"], value["spread"], factor) if value else ""


def _interval_of(values: Sequence[float]) -> str:
    return text.interval(mean(values), spread(values)) if values else ""


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if is_number(row.get(key)) and row["status"] == "ok"]


def _time(rows: Sequence[Row]) -> str:
    times = _values(rows, "seconds")
    return text.seconds(mean(times)).replace("µ", "u") if times else ""


__all__ = ["PaperTable", "paper_tables"]
