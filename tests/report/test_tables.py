"""Tables for other programs and papers: complete, escaped, and the best proved value in bold."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lipbridge.report.exports import latex, markdown, write_csv, write_latex, write_markdown, write_parquet
from lipbridge.report.tables import paper_tables
from tests.support.study_rows import HOSTILE, bound, grid, hostile, strange, training

pandas = pytest.importorskip("pandas")


def test_csv_and_parquet_hold_every_row(tmp_path: Path) -> None:
    rows = hostile() + strange()
    frame = pandas.read_csv(write_csv(tmp_path / "a.csv", rows))
    pytest.importorskip("pyarrow")
    other = pandas.read_parquet(write_parquet(tmp_path / "a.parquet", rows))
    assert list(frame["network"]) == list(other["network"]) == [row["network"] for row in rows]
    assert list(frame.columns) == list(other.columns)
    assert str(other["value"].dtype) == "Float64"
    assert str(other["proved"].dtype) == "boolean"


def test_the_columns_do_not_depend_on_the_rows(tmp_path: Path) -> None:
    one = pandas.read_csv(write_csv(tmp_path / "a.csv", [training("n")])).columns
    two = pandas.read_csv(write_csv(tmp_path / "b.csv", [bound("n")])).columns
    assert list(one) == list(two)


def test_the_best_proved_value_is_bold() -> None:
    rows = [
        bound("n", "trivial", 5.0),
        bound("n", "lipsdp", 4.0),
        bound("n", "guess", 3.0, proved=False),
        bound("n", "liar", 1.0, status="unsound", proved=False),
        bound("n", "witness", 2.9, side="lower"),
    ]
    text = latex(rows)
    assert re.findall(r"\\textbf\{([^}]*)\}", text) == ["4"]
    assert "witness" not in text
    assert re.search(r"liar &\s+&\s+&.*unsound", text)


def test_seeds_are_means_with_spreads() -> None:
    rows = [training(f"n{s}", 0.9 + s / 100, 4.0 + s, group="n", seed=s) for s in (0, 1)]
    assert re.search(r"n & 2 & 2 & 90\.5 ± 0\.7 & 4\.5 ± 0\.7 &", latex(rows))


@pytest.mark.parametrize("rows", [hostile(), strange(), grid(seeds=2), grid(seeds=1, widths=("8,8", "9,9", "7,7"))])
def test_the_tables_are_whole(rows: list[dict[str, object]]) -> None:
    text = latex(rows)
    assert text.count("\\toprule") == text.count("\\begin{tabular}") + 2 * text.count("\\begin{longtable}")
    for kind in ("table", "tabular", "longtable"):
        assert text.count(f"\\begin{{{kind}}}") == text.count(f"\\end{{{kind}}}")
    for form, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body.splitlines():
            if line.endswith("\\\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(form) - 1, line
                assert not re.search(r"(?<!\\)[#$%_]", line), line
    assert all(ord(letter) < 0x2030 for letter in text)


def test_names_are_escaped() -> None:
    text = latex(hostile())
    assert r"\textbackslash textbf\{50 \%\} \#1 \{brace\} \textasciitilde tilde" in text
    assert HOSTILE[2] not in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_it_compiles(tmp_path: Path) -> None:
    write_latex(tmp_path / "tables.tex", grid(seeds=2) + strange() + hostile())
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,longtable}"
        "\\begin{document}\\input{tables}\\end{document}"
    )
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main"], cwd=tmp_path)
    assert done.returncode == 0


@pytest.mark.parametrize("rows", [hostile(), strange(), grid(seeds=2)])
def test_the_same_tables_in_markdown(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    text = write_markdown(tmp_path / "tables.md", rows).read_text()
    assert text == markdown(rows)
    columns = 0
    for line in text.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("|"):
            columns = columns or bars
            assert bars == columns, line
            assert "<" not in re.sub(r"\\<", "", line)
        else:
            columns = 0
    rules = [line for line in text.splitlines() if line and set(line) == set("| -")]
    assert len(rules) == len(paper_tables(rows))


def test_bold_in_markdown() -> None:
    text = markdown([bound("n", "trivial", 5.0), bound("n", "lipsdp", 4.0), bound("n", "guess", 3.0, proved=False)])
    assert re.findall(r"\*\*([^*]*)\*\*", text) == ["4"]
    assert text.startswith("Lipschitz constant, l_2.")
