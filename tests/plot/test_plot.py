"""The figures: what they show is what the rows say, wherever the rows come from, and on whatever axes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure

import lipbridge
from lipbridge import plot
from lipbridge.errors import InvalidArgument, NothingToDraw, UnknownName
from lipbridge.plot.networks import families, measured, norm_of, spread
from lipbridge.plot.tightness import EXACT
from lipbridge.text import interval
from tests.support.study_rows import bound, certificate, epochs, grid, hostile, strange, training

WIDE = {"penalties": (0.0, 0.05), "activations": ("abs",), "widths": ("16,16", "64,64", "1024,1024")}
FIGURES: dict[str, tuple[Callable[..., tuple[Any, Any]], list[dict[str, Any]], int]] = {
    "frontier": (plot.frontier, grid(), 1),
    "tightness": (plot.tightness, grid(), 1),
    "certified": (plot.certified, grid(), 1),
    "training": (plot.training, epochs("a") + epochs("b"), 3),
    "scaling": (plot.scaling, grid(**WIDE, verifiers=("trivial", "lipsdp")), 2),
    "ablation": (lambda rows, ax=None: plot.ablation(rows, ax, factor="penalty"), grid(), 1),
}


def lines(ax: Any) -> list[tuple[float, float]]:
    """All points of all lines."""
    return [(float(x), float(y)) for line in ax.get_lines() for x, y in zip(*line.get_data(), strict=True)]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png"])
def test_every_figure_is_written(name: str, suffix: str, tmp_path: Path) -> None:
    draw, rows, _ = FIGURES[name]
    figure, _ = draw(rows)
    data = plot.save(figure, tmp_path / f"f{suffix}").read_bytes()
    assert data.startswith({".pdf": b"%PDF", ".svg": b"<?xml", ".png": b"\x89PNG"}[suffix])
    assert data == plot.save(draw(rows)[0], tmp_path / f"g{suffix}").read_bytes(), "the same rows give the same file"
    if suffix == ".pdf":
        assert b"/Type3" not in data
        assert b"/TrueType" in data or b"/CIDFontType2" in data


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_takes_axes(name: str) -> None:
    draw, rows, count = FIGURES[name]
    figure = Figure(layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    given = axes if count > 1 else axes[0]
    found, drawn = draw(rows, given)
    assert found is figure
    assert (drawn if count > 1 else [drawn]) == axes
    assert not figure.legends
    with pytest.raises(InvalidArgument, match="ax"):
        draw(rows, [*axes, *axes])
    with pytest.raises(NothingToDraw, match="nothing to draw"):
        draw([])


@pytest.mark.parametrize("name", FIGURES)
def test_the_legend_covers_no_axes(name: str) -> None:
    draw, rows, count = FIGURES[name]
    rows = rows if count > 1 else [*rows, *strange()]
    figure, axes = draw(rows)
    figure.draw_without_rendering()
    for own in axes if count > 1 else [axes]:
        for found in figure.legends:
            box = found.get_window_extent()
            assert not box.overlaps(own.get_window_extent())
            assert box.x1 <= figure.bbox.x1 + 1


@pytest.mark.parametrize("name", FIGURES)
def test_matplotlib_is_as_it_was(name: str) -> None:
    before = dict(matplotlib.rcParams)
    draw, rows, _ = FIGURES[name]
    draw(rows)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["frontier", "tightness", "certified", "ablation"])
def test_names_are_text(name: str, tmp_path: Path) -> None:
    draw = {"ablation": lambda rows: plot.ablation(rows, factor="activation", measure="bound")}
    figure, _ = draw.get(name, getattr(plot, name))(hostile() if name != "ablation" else grid() + hostile())
    text = plot.save(figure, tmp_path / "f.svg").read_text()
    assert "<script>" not in text
    assert "<img" not in text


def test_the_frontier_has_the_mean_of_each_group_and_a_line_along_the_penalty() -> None:
    rows = [
        training(f"n{penalty}-{seed}", 0.9 + seed / 100, value, group=f"n{penalty}", settings={"penalty": penalty})
        for penalty, value in ((0.1, 2.0), (0.0, 6.0))
        for seed in (0, 1)
    ]
    _, ax = plot.frontier(rows)
    assert (2.0, pytest.approx(90.5)) in lines(ax)
    along = next(line for line in ax.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) == 2)
    assert list(along.get_xdata()) == [6.0, 2.0]


def test_the_frontier_has_the_bound_that_is_asked_for() -> None:
    rows = [training("n", 0.9, 4.0), bound("n", "lipsdp", 3.0), bound("n", "guess", 2.0, proved=False)]
    assert (4.0, 90.0) in lines(plot.frontier(rows)[1])
    assert (3.0, 90.0) in lines(plot.frontier(rows, bound="best")[1])
    with pytest.raises(InvalidArgument, match="bound"):
        plot.frontier(rows, bound="worst")  # type: ignore[arg-type]


def test_networks_of_two_studies_are_told_apart() -> None:
    rows = [training("n", 0.9, 4.0, study="one"), training("n", 0.8, 2.0, study="two")]
    assert [(m.study, m.accuracy, m.bound) for m in measured(rows)] == [("one", 0.9, 4.0), ("two", 0.8, 2.0)]
    figure, _ = plot.frontier(rows)
    assert legend(figure) == ["one: n", "two: n"]


def test_norms_are_not_mixed() -> None:
    rows = [model_in(norm) for norm in ("1", "2")]
    figure, _ = plot.frontier(rows)
    assert legend(figure) == ["n1, l1", "n2, l2"]
    assert not legend(plot.frontier(rows, norm=2)[0])
    several = [certificate("n", 0.5, 0.5), certificate("n", 0.5, 0.5, norm="inf")]
    with pytest.raises(InvalidArgument, match="norm"):
        plot.certified(several)
    assert plot.certified(several, norm="inf")[1].get_xlabel() == "radius, linf"


def model_in(norm: str) -> dict[str, Any]:
    return training(f"n{norm}", norm=norm)


def test_tightness_shows_what_is_exact_what_is_not_proved_and_what_is_wrong() -> None:
    figure, ax = plot.tightness(strange())
    assert {"not proved", "liar", "conv"} <= set(legend(figure))
    assert "witness" not in legend(figure), "it is what the others are measured against"
    words = [tick.get_text() for tick in ax.get_yticklabels()]
    assert words[:2] == ["unsound", "exact"]
    places = dict(zip(words, ax.get_yticks(), strict=True))
    values = [y for _, y in lines(ax)]
    assert places["exact"] in values
    assert places["unsound"] in values
    styles = {(line.get_markerfacecolor(), line.get_markeredgecolor()) for line in ax.get_lines()}
    assert ("#ffffff", "#d00000") in styles
    assert min(values) == places["unsound"] < places["exact"] < EXACT * 1e6


def test_tightness_of_many_groups_has_a_colour_for_each_family() -> None:
    figure, _ = plot.tightness(grid(penalties=tuple(x / 100 for x in range(12)), seeds=1))
    assert {"abs", "relu"} <= set(legend(figure))


def test_certified_curves_start_with_the_accuracy_and_have_a_band() -> None:
    rows = [certificate(f"n{seed}", 0.5, 0.5 + seed / 10, group="n", seed=seed, accuracy=0.9) for seed in (0, 1)]
    _, ax = plot.certified(rows)
    assert lines(ax)[:2] == [(0.0, 90.0), (0.5, pytest.approx(55.0))]
    assert len(ax.collections) == 1


def test_rows_of_compare_are_certified_too() -> None:
    row = bound("n", "jacobian", certified_accuracy=0.7, extra={"certified_radius": 0.1, "certified_points": 32})
    assert (0.1, 70.0) in lines(plot.certified([row])[1])


def test_scaling_marks_the_limits() -> None:
    figure, (time, _) = plot.scaling(FIGURES["scaling"][1])
    assert "ended by a limit" in legend(figure)
    assert any(line.get_marker() == "x" for line in time.get_lines())


def test_an_ablation_asks_for_its_factor() -> None:
    with pytest.raises(InvalidArgument, match="activation, penalty"):
        plot.ablation(grid())
    with pytest.raises(UnknownName, match="activation, penalty"):
        plot.ablation(grid(), factor="bias")
    with pytest.raises(InvalidArgument, match="measure"):
        plot.ablation(grid(), factor="penalty", measure="colour")  # type: ignore[arg-type]
    _, ax = plot.ablation(grid(penalties=(0.05,)))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["abs", "relu"]


def test_families_are_named_by_what_differs() -> None:
    items = [("s", "g", {"activation": "abs", "bias": flag, "penalty": 0.1, "data": "mnist"}) for flag in (True, False)]
    assert families(items) == ["bias", "no bias"]
    assert families([("s", "g", {}), ("t", "h", {})]) == ["s: g", "t: h"]


def test_the_spread_is_that_of_the_population() -> None:
    assert spread([1.0, 3.0]) == pytest.approx(2**0.5)
    assert spread([1.0]) == 0.0


def test_only_known_suffixes_are_written(tmp_path: Path) -> None:
    figure, _ = plot.frontier(grid())
    with pytest.raises(InvalidArgument, match=r"\.pdf, \.svg or \.png"):
        plot.save(figure, tmp_path / "f.docx")


def test_history_skips_a_damaged_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "lo')
    assert plot.history(tmp_path, tmp_path / "none") == [{"network": tmp_path.name, "epoch": 1, "loss": 2.0}]


def test_figures_do_not_wait_for_torch() -> None:
    assert lipbridge.plot.frontier is plot.frontier
    script = "import sys; from lipbridge import plot; plot.frontier; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_an_ablation_of_tightness_is_that_above_one() -> None:
    rows = [
        bound(f"n{flag}-{seed}", tightness=1.5 + flag + seed / 10, group=f"n{flag}", seed=seed, settings={"bias": flag})
        for flag in (False, True)
        for seed in (0, 1)
    ]
    _, ax = plot.ablation(rows)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["no bias", "bias"]
    assert {0.5, 1.5, 0.55, 1.55} <= {round(y, 6) for _, y in lines(ax)}


@pytest.mark.parametrize(
    ("row", "norm"),
    [
        ({"norm": "2", "output_norm": "2"}, "2"),
        ({"norm": "2", "output_norm": "inf"}, "2->inf"),
        ({"norm": "2->inf", "output_norm": "inf"}, "2->inf"),
        ({"norm": "inf"}, "inf"),
    ],
)
def test_both_norms_of_a_row_are_said_once(row: dict[str, str], norm: str) -> None:
    assert norm_of(row) == norm


def test_a_family_of_a_study_file_is_called_by_its_name() -> None:
    """Only what varies inside a family stands beside it."""
    settings = [
        {"family": "penalised", "penalty": 0.1, "widths": "8", "optimizer": "adam"},
        {"family": "penalised", "penalty": 0.2, "widths": "16", "optimizer": "adam"},
        {"family": "decayed", "penalty": 0.0, "widths": "8", "optimizer": "adamw", "weight_decay": 1.0},
    ]
    items = [("study", f"g{place}", each) for place, each in enumerate(settings)]
    assert families(items) == ["penalised, widths 8", "penalised, widths 16", "decayed, widths 8"]
    assert families(items[:1] + items[2:]) == ["penalised", "decayed"]


@pytest.mark.parametrize(
    ("middle", "error", "words"),
    [
        *((1.00000126, 7e-8, "1.00000"), (98.78, 0.07, "98.78 ± 0.07"), (0.0, 0.1, "0.00 ± 0.10")),
        *((2.921, 0.002, "2.921 ± 0.002"), (143512.0, 12.0, "143512 ± 12"), (4.0, 0.0, "4")),
    ],
)
def test_a_mean_has_the_digits_that_its_spread_leaves(middle: float, error: float, words: str) -> None:
    assert interval(middle, error) == words
