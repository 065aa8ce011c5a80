"""What the tables of a study's page hold: rows by question, groups with their spread over seeds, failures, settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lipbridge.plot.ablation import factors
from lipbridge.plot.certified import certificates
from lipbridge.plot.networks import (
    Measured,
    group_of,
    grouped,
    is_number,
    mean,
    measured,
    norm_of,
    setting_text,
    settings_of,
    settings_text,
    spread,
    varying_settings,
)
from lipbridge.vocabulary import Status

Row = Mapping[str, Any]
#: Ways in which a cell ended short; an unsound value has a place of its own on the page.
SHORT = tuple(status for status in Status if status not in (Status.OK, Status.UNSOUND))


def bounds_of(rows: Sequence[Row]) -> list[Row]:
    """The rows of bounds; those of ``compare`` have no kind."""
    return [row for row in rows if row.get("kind") in (None, "bound")]


def questions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The bounds by question (quantity, norm, region), in each by network, upper bounds by value, witness last."""
    found: list[dict[str, Any]] = []
    for (quantity, norm, region), mine in grouped(
        ((row["quantity"], norm_of(row), row["region"]), row) for row in bounds_of(rows)
    ).items():
        by_network = grouped((row["network"], row) for row in mine)
        ordered = [row for some in by_network.values() for row in sorted(some, key=_order)]
        found.append({"quantity": quantity, "norm": norm, "region": region, "rows": ordered})
    return found


def group_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each group of networks in each norm: its settings, and means with spreads over its seeds."""
    trained = {
        (row.get("study") or "", row["network"]): row for row in rows if row.get("kind") in ("training", "model")
    }
    lines: list[dict[str, Any]] = []
    for (study, group, norm), some in grouped(((m.study, m.group, m.norm), m) for m in measured(rows)).items():
        facts = [trained.get((study, item.network), {}) for item in some]
        parameters = next((fact["parameters"] for fact in facts if is_number(fact.get("parameters"))), None)
        lines.append(
            {
                "group": group,
                "norm": norm,
                "seeds": len(some),
                "architecture": next((str(fact["architecture"]) for fact in facts if fact.get("architecture")), ""),
                "parameters": parameters,
                "training": statistic(fact.get("seconds") for fact in facts if fact.get("kind") == "training"),
                "best": statistic(item.best for item in some),
                **_statistics(some),
            }
        )
    return lines


def ablations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A table for each setting with several values: networks by that value, those that agree in all others together."""
    networks = [network for network in measured(rows) if network.settings]
    found: list[dict[str, Any]] = []
    for factor in factors(rows):
        others = varying_settings([network.settings for network in networks])
        others = [key for key in others if key not in (factor, "seed")]
        lines: list[dict[str, Any]] = []
        keyed = [((m.norm, settings_text(m.settings, others)), m) for m in networks if factor in m.settings]
        for (norm, rest), some in grouped(keyed).items():
            by_level = grouped((setting_text(factor, m.settings[factor]), m) for m in some)
            if len(by_level) > 1:
                lines += [
                    {"others": rest, "norm": norm, "level": level, "seeds": len(few), **_statistics(few)}
                    for level, few in by_level.items()
                ]
        if lines:
            found.append({"factor": factor.replace("_", " "), "key": factor, "lines": lines})
    return found


def certified_tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A table for each norm: groups and verifiers by radius, with the spread over seeds."""
    found: list[dict[str, Any]] = []
    for norm, mine in grouped((norm_of(row), row) for row in certificates(rows)).items():
        radii = sorted({float(row["radius"]) for row in mine})
        lines: list[dict[str, Any]] = []
        for (group, verifier), some in grouped(((group_of(row)[1], row["verifier"]), row) for row in mine).items():
            by_radius = grouped((float(row["radius"]), row["certified_accuracy"]) for row in some)
            points = [int(row["points"]) for row in some if is_number(row.get("points"))]
            cells = [statistic(by_radius.get(radius, [])) for radius in radii]
            lines.append({"group": group, "verifier": verifier, "cells": cells, "points": max(points, default=None)})
        found.append({"norm": norm, "radii": radii, "lines": lines})
    return found


def failures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Cells that gave no value, those of one status and message together, the most frequent first."""
    short = [row for row in rows if row.get("status", "ok") in SHORT]
    found: list[dict[str, Any]] = []
    for (status, detail), some in grouped(((row["status"], row.get("detail") or ""), row) for row in short).items():
        where = dict.fromkeys(
            f"{row['verifier']} on {row['network']}"
            if row.get("verifier")
            else f"{row.get('kind')} of {row['network']}"
            for row in some
        )
        found.append(
            {
                **{"status": status, "detail": detail, "advice": advice(status), "count": len(some)},
                **{"where": list(where)[:4], "more": max(0, len(where) - 4)},
            }
        )
    return sorted(found, key=lambda item: -item["count"])


def setup(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was run, as far as the rows say it: cells, norms, settings, seeds, limits, options, time."""
    kinds = grouped((row.get("kind") or "bound", row) for row in rows)
    facts = [("cells", ", ".join(f"{len(some)} of kind {kind}" for kind, some in kinds.items()))]
    facts.append(("norms", ", ".join(f"l{norm}" for norm in dict.fromkeys(norm_of(r) for r in rows if r.get("norm")))))
    settings = [settings_of(row) for row in rows if settings_of(row)]
    for key in dict.fromkeys(key for item in settings for key in item if key != "seed"):
        values = dict.fromkeys(_text(item[key]) for item in settings if key in item)
        facts.append((key.replace("_", " "), "; ".join(values)))
    seeds = sorted({row["seed"] for row in rows if is_number(row.get("seed"))})
    facts.append(("seeds", ", ".join(f"{seed:g}" for seed in seeds)))
    for key, word, size, unit in (
        ("time_limit", "time limit", 1.0, "s"),
        ("memory_limit", "memory limit", 2.0**20, "MiB"),
    ):
        values = sorted({row[key] for row in rows if is_number(row.get(key))})
        facts.append((word, ", ".join(f"{value / size:g} {unit}" for value in values)))
    options = dict.fromkeys(
        f"{row.get('verifier_label') or row['verifier']}: {_text(row['options'])}" for row in rows if row.get("options")
    )
    facts.append(("options", "; ".join(options)))
    facts.append(("threads a cell", _numbers(rows, "threads")))
    return [(name, value) for name, value in facts if value]


def advice(status: str) -> str:
    """What a user can do about it."""
    return Status(status).advice


def load_of(rows: Sequence[Row]) -> str:
    """The load of the machines while the cells ran."""
    loads = [float(row["load"]) for row in rows if is_number(row.get("load"))]
    return f"{min(loads):.2g} to {max(loads):.2g} at the ends of the cells" if loads else ""


def statistic(values: Iterable[Any]) -> dict[str, float] | None:
    """Mean, spread and number of the values that are there; None without any."""
    known = [float(value) for value in values if is_number(value)]
    return {"mean": mean(known), "spread": spread(known), "count": len(known)} if known else None


def _statistics(networks: Sequence[Measured]) -> dict[str, Any]:
    return {key: statistic(getattr(item, key) for item in networks) for key in ("accuracy", "bound", "tightness")}


def _order(row: Row) -> tuple[bool, bool, float]:
    return row["side"] == "lower", row["value"] is None, row["value"] if row["value"] is not None else 0.0


def _numbers(rows: Sequence[Row], key: str) -> str:
    return ", ".join(f"{value:g}" for value in sorted({row[key] for row in rows if is_number(row.get(key))}))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(item)}" for key, item in value.items())  # type: ignore[reportUnknownVariableType]
    return str(value)
