"""The report: complete, escaped, self-contained, and with a headline that its table bears out."""

from __future__ import annotations

from typing import Any

import pytest

from lipbridge import text
from lipbridge.machine import machine_facts
from lipbridge.report.headline import headline
from lipbridge.report.page import Network, render


def row(network: str = "net", verifier: str = "trivial", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        **{"network": network, "verifier": verifier, "method": "a method", "side": "upper", "value": 2.0},
        **{"proved": True, "norm": "2", "region": "everywhere", "quantity": "lipschitz", "seconds": 0.001},
        **{"status": "ok", "tightness": 1.25, "memory": 2**28, "total_seconds": 2.0, "detail": ""},
        **{"certified_accuracy": None, "extra": {}},
    }
    return values | changes


def page(rows: list[dict[str, Any]], history: list[dict[str, Any]] | None = None) -> str:
    names = dict.fromkeys(item["network"] for item in rows)
    return render(rows, [Network(name, "4–8–3, abs", 56, history=history or []) for name in names], machine_facts(1))


def test_the_headline_is_what_the_table_says() -> None:
    rows = [
        row("good", tightness=1.0123),
        row("bad", tightness=15.3),
        row("bad", "lipsdp", tightness=1.1, seconds=12.0),
    ]
    first, second = headline(rows)
    assert first == "The trivial bound of good is at most 1.2 % above the true l2 Lipschitz constant, and took 1 ms."
    assert "up to 15.3 times the truth" in second
    assert "lipsdp, the tightest verifier there, brings that to 10 % in 12 s" in second


def test_the_headline_compares_verifiers_on_one_question_alone() -> None:
    rows = [
        row("good", tightness=1.01),
        row("bad", tightness=1.1),
        row("bad", norm="inf", tightness=4.0),
        row("bad", "lipsdp", tightness=1.001),
    ]
    assert headline(rows)[1] == "That of bad in linf may be up to 4 times the truth."
    rows.append(row("bad", "geolip", norm="inf", tightness=1.5))
    assert "geolip, the tightest verifier there, brings that to 50 %" in headline(rows)[1]
    both = [row(tightness=1.02), row(verifier="geolip", norm="inf", tightness=1.001)]
    assert len(headline(both)) == 1  # nothing else bounds its l2 constant


def test_tightness_is_told_against_the_constant_where_it_is_known() -> None:
    rows = [row(tightness=1.25), row(verifier="exact", side="exact", value=1.6, tightness=1.0, seconds=3.0)]
    assert headline(rows)[0] == (
        "The trivial bound of net is 25 % above the true l2 Lipschitz constant, which is known exactly, and took 1 ms."
    )
    assert "measured against it: net" in " ".join(page(rows).split())
    unproved = [rows[0], rows[1] | {"proved": False}]
    elsewhere = [rows[0], rows[1] | {"region": "1 l2 ball, radius 1"}]
    for others in (rows[:1], unproved, elsewhere):
        assert "at most 25 % above" in headline(others)[0]
    assert "known exactly, and tightness" not in page(rows[:1])


@pytest.mark.parametrize("change", [{"status": "unsound", "tightness": 0.5}, {"proved": False}, {"tightness": None}])
def test_the_headline_rests_on_proved_bounds_alone(change: dict[str, Any]) -> None:
    assert headline([row(**change)]) == ["No verifier gave a proved upper bound of a Lipschitz constant."]


def test_a_card_says_the_norm_where_there_are_several() -> None:
    local = row(value=21.0, norm="inf", region="1 linf ball, radius 0.1", tightness=10.0)
    both = page([local, row(value=1.75, norm="2->inf", tightness=1.1)])
    assert "<dt>trivial bound, l2-&gt;inf</dt><dd>1.75</dd>" in both
    assert "<dt>trivial bound</dt>" in page([row()])


def test_names_and_messages_are_escaped() -> None:
    evil = "<script>alert(1)</script>&\"'"
    html = page([row(evil, evil, detail=evil, method=evil, status="failed"), row(evil, "trivial")])
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html
    assert html.count("</script>") == 2  # the rows, and our own


def test_an_unsound_value_is_told_at_the_top() -> None:
    html = page([row(verifier="liar", status="unsound", proved=False, tightness=0.5, detail="a witness proves 4")])
    assert 'role="alert"' in html
    assert "liar on net is unsound" in html
    assert html.index('role="alert"') < html.index("<table")


def test_missing_figures_leave_gaps_and_not_words() -> None:
    html = page([row(value=None, tightness=None, memory=None, status="timeout", proved=False)])
    assert "Raise the time limit" in html
    assert "None" not in html
    assert "nan" not in html.lower().split("<table")[1].split("</table>")[0]
    assert "<svg" not in html


def test_plots_take_the_colours_of_the_page() -> None:
    history = [{"epoch": e, "loss": 1.0 / e, "accuracy": 0.9, "bound": float(e)} for e in range(1, 50)]
    html = page([row(), row("other", "exact", tightness=1.0, seconds=100.0)], history)
    assert html.count("<svg") == 2  # tightness, training
    plots = "".join(part.split("</svg>")[0] for part in html.split("<svg")[1:])
    assert "var(--c0)" in plots
    assert "currentColor" in plots
    assert "#0101" not in plots
    assert "#0404" not in plots


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0012, "1.2 ms"), (3.25, "3.25 s"), (240.0, "4 min"), (None, ""), (float("nan"), "")],
)
def test_times_are_readable(value: float | None, expected: str) -> None:
    assert text.seconds(value) == expected


def test_each_verifier_of_the_table_is_told() -> None:
    made = page([row(), row(verifier="lipsdp"), row(verifier="of-somebody-else")])
    part = made.partition("What each verifier is")[2].partition("Where it ran")[0]
    assert "product of the layers" in part
    assert "built in" in part
    assert "lipbridge[sdp]" in part
    assert "eclipse" not in part  # it was not run
    assert "Nothing is known here of: of-somebody-else." in part
