"""What a study's table says, in a sentence or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lipbridge.text import number, seconds

Row = Mapping[str, Any]


def exactly_known(rows: Sequence[Row]) -> set[tuple[Any, ...]]:
    """Network and question (quantity, norm, region) of each constant that a verifier found exactly, and proved.

    Its witness reaches it, so that tightness there is measured against the constant itself.
    """
    known = (row for row in rows if row["side"] == "exact" and row["proved"] and row["status"] == "ok")
    return {question_of(row) for row in known}


def question_of(row: Row) -> tuple[Any, ...]:
    """Network, quantity, norm and region of a row."""
    return row["network"], row["quantity"], row["norm"], row["region"]


def headline(rows: Sequence[Row]) -> list[str]:
    """The trivial bound where it is tightest, and what the best verifier makes of it where it is loosest."""
    uppers = [
        row
        for row in rows
        if row["quantity"] == "lipschitz"
        and row["region"] == "everywhere"
        and row["side"] != "lower"
        and row["status"] == "ok"
        and row["proved"]
        and row["tightness"] is not None
    ]
    trivial = sorted((row for row in uppers if row["verifier"] == "trivial"), key=_tightness)
    if not trivial:
        return [_without_trivial(uppers)]
    first, last = trivial[0], trivial[-1]
    above = _above(first, question_of(first) in exactly_known(rows))
    sentences = [f"The trivial bound of {first['network']} is {above}, and took {seconds(first['seconds'])}."]
    others = [row for row in uppers if row["verifier"] != "trivial"]
    if last is not first and last["tightness"] > 1.05 * first["tightness"]:
        where = last["network"] if last["norm"] == first["norm"] else f"{last['network']} in l{last['norm']}"
        sentences.append(f"That of {where} {_loose(last)}{_best_there(last, others)}.")
    else:
        sentences.append(_saved(first, others))
    return [sentence for sentence in sentences if sentence]


def _without_trivial(uppers: Sequence[Row]) -> str:
    if not uppers:
        return "No verifier gave a proved upper bound of a Lipschitz constant."
    best = min(uppers, key=_tightness)
    return f"The tightest bound is that of {best['verifier']} on {best['network']}: {_above(best)}."


def _above(row: Row, exact: bool = False) -> str:
    excess = 100 * (row["tightness"] - 1)
    true = f"the true l{row['norm']} Lipschitz constant"
    if excess < 0.005:
        return f"proved equal to {true} to four digits"
    if exact:
        times = f"{number(row['tightness'], 3)} times" if excess >= 100 else f"{number(excess, 2)} % above"
        return f"{times} {true}, which is known exactly"
    return (
        f"at most {number(excess, 2)} % above {true}"
        if excess < 100
        else f"{number(row['tightness'], 3)} times {true} or less"
    )


def _loose(row: Row) -> str:
    return f"may be up to {_excess(row)}" + (" above the truth" if row["tightness"] < 2 else " the truth")


def _excess(row: Row) -> str:
    if row["tightness"] < 2:
        return f"{number(100 * (row['tightness'] - 1), 2)} %"
    return f"{number(row['tightness'], 3)} times"


def _best_there(row: Row, others: Sequence[Row]) -> str:
    mine = [other for other in others if question_of(other) == question_of(row)]
    if not mine:
        return ""
    best = min(mine, key=_tightness)
    if best["tightness"] >= row["tightness"]:
        return f", and no other verifier does better ({best['verifier']} took {seconds(best['seconds'])})"
    name, time = best["verifier"], seconds(best["seconds"])
    return f"; {name}, the tightest verifier there, brings that to {_excess(best)} in {time}"


def _saved(row: Row, others: Sequence[Row]) -> str:
    mine = [other for other in others if question_of(other) == question_of(row)]
    if not mine:
        return ""
    best = min(mine, key=_tightness)
    gain = 100 * (1 - best["tightness"] / row["tightness"])
    word = f"lowers it by {number(gain, 2)} %" if gain > 0.005 else "does not lower it"
    return f"The tightest verifier, {best['verifier']}, {word} in {seconds(best['seconds'])}."


def _tightness(row: Row) -> float:
    return float(row["tightness"])
