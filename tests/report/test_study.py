"""The report of a study: every kind of row has its place, and it is made from the folder alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lipbridge.machine import machine_facts
from lipbridge.report.page import render
from lipbridge.report.pictures import write_figures
from lipbridge.report.study import write_study_report
from lipbridge.report.summaries import ablations, failures, group_table
from tests.support.study_rows import bound, certificate, epochs, grid, model, strange, training

MACHINE = machine_facts(1)


def study(folder: Path) -> Path:
    """A study's folder, as a run leaves it."""
    rows = grid(penalties=(0.0, 0.05), seeds=2, widths=("16,16", "64,64"))
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "plan.json").write_text(
        json.dumps({"name": "toy", "title": "A toy & its box", "description": "All of it."})
    )
    (folder / "study.toml").write_text('name = "toy"\n')
    run = {"date": "2026-11-27", "command": "x", "engine": "local", "jobs": 2, "machine": MACHINE}
    (folder / "runs.jsonl").write_text(json.dumps(run) + "\n")
    network = folder / "networks" / rows[0]["network"]
    network.mkdir(parents=True)
    (network / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs("x")))
    return folder


def test_the_folder_is_all_it_needs(tmp_path: Path) -> None:
    folder = study(tmp_path / "toy")
    html = write_study_report(folder, figures=[folder / "figures"]).read_text()
    for words in (
        *("A toy &amp; its box", "All of it.", "lipbridge study run study.toml --out", "local, 2 jobs at once"),
        *(
            "Accuracy against the proved bound",
            "Certified accuracy",
            "How cost and tightness grow",
            "One setting at a time",
        ),
        *("Every bound", "What was run", "What each verifier is", "Where it ran", "BLAS", "2603.28113", "widths"),
    ):
        assert words in html, words
    assert "What gave no value" not in html
    written = {path.name for path in (folder / "figures").iterdir()}
    assert {"frontier.png", "tightness.pdf", "certified-l2.png", "scaling.pdf", "training.png"} <= written


def test_a_study_that_has_hardly_begun_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps(training("n", None, None, status="failed", detail="no")) + "\n{torn"
    )
    html = write_study_report(tmp_path).read_text()
    assert "What gave no value" in html
    assert "None" not in html.split("<main>")[1].split("<script")[0]
    assert render([], None, MACHINE)


def test_a_history_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "loss": 1.0, "accuracy": 0.5}) + "\n")
    folder = tmp_path / "study"
    folder.mkdir()
    for place in ("../secret", str(tmp_path / "secret")):
        (folder / "rows.jsonl").write_text(json.dumps(training("n", folder=place)) + "\n")
        assert "Training</h2>" not in write_study_report(folder).read_text()


def test_facts_of_convolutional_and_unknown_networks() -> None:
    html = render(strange()[:5], None, MACHINE)
    assert "1×8×8–8×6×6–10, relu, MaxPool" in html
    assert "810 parameters" in html
    assert "None" not in html.split("<main>")[1].split("<script")[0]


def test_groups_have_means_over_their_seeds() -> None:
    rows = [training(f"n{s}", 0.9 + s / 10, 4.0 + s, group="n", seed=s) for s in (0, 1)]
    (line,) = group_table(rows)
    assert line["seeds"] == 2
    assert line["accuracy"]["mean"] == pytest.approx(0.95)
    assert line["bound"]["spread"] == pytest.approx(0.5**0.5)


def test_an_ablation_puts_side_by_side_what_agrees_in_all_else() -> None:
    rows = [
        training(f"n{bias}{activation}", settings={"bias": bias, "activation": activation, "data": "digits"})
        for bias in (True, False)
        for activation in ("abs", "relu")
    ]
    tables = {table["factor"]: table["lines"] for table in ablations(rows)}
    assert set(tables) == {"bias", "activation"}
    assert [(line["others"], line["level"]) for line in tables["bias"]] == [
        ("abs", "bias"),
        ("abs", "no bias"),
        ("relu", "bias"),
        ("relu", "no bias"),
    ]


def test_failures_of_one_message_stand_together() -> None:
    rows = [bound(f"n{i}", "tool", None, status="failed", detail="SIGSEGV") for i in range(9)]
    rows += [bound("n", "tool", None, status="timeout", detail="300 s"), bound("m", "liar", 1.0, status="unsound")]
    first, second = failures(rows)
    assert (first["count"], first["detail"], len(first["where"]), first["more"]) == (9, "SIGSEGV", 4, 5)
    assert second["status"] == "timeout"


def test_rows_of_every_kind_alone_make_a_page() -> None:
    for rows in ([training("n")], [model("n")], [bound("n")], [certificate("n", 0.5, 0.5)]):
        assert "</html>" in render(rows, None, MACHINE)


def test_figures_are_written_beside(tmp_path: Path) -> None:
    names = [path.name for path in write_figures(tmp_path / "new", grid(seeds=2), suffix=".svg")]
    assert "frontier.svg" in names
    assert "ablation-penalty.svg" in names
    assert write_figures(tmp_path, []) == []


def test_ten_thousand_rows_take_seconds() -> None:
    rows = grid(
        seeds=45,
        penalties=(0.0, 0.01, 0.02, 0.03, 0.05, 0.1),
        widths=("64,64", "128,128"),
        radii=(0.1, 0.2, 0.3, 0.4, 0.5),
    )
    assert len(rows) > 10_000
    start = time.process_time()
    html = render(rows, None, MACHINE)
    assert time.process_time() - start < 20  # 3 s on a quiet core
    assert html.count("<tr") > 4000
