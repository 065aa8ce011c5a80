"""The page in a real browser: quiet, self-contained, sortable, and readable on a phone and on paper."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lipbridge.machine import machine_facts
from lipbridge.report.page import About, render
from tests.support.chromium import Browser, chromium
from tests.support.study_rows import bound, grid, hostile, strange

WIDE = {"penalties": (0.0, 0.05), "widths": ("16,16", "64,64"), "seeds": 2}
STUDIES: dict[str, list[dict[str, Any]]] = {
    "study": grid(**WIDE) + strange(),
    "hostile": hostile(),
    "compare": [{key: value for key, value in bound("net").items() if key not in ("kind", "group")}],
}
#: The width of A4 between its margins, in pixels.
PAPER = 703


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    about = About(
        "A study", "What it is about.", "lipbridge study run study.toml --out here", "local", 2, "name = 'x'\n" * 30
    )
    found: dict[str, Path] = {}
    for name, rows in STUDIES.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(
            render(rows, None, machine_facts(1), about if name == "study" else None), encoding="utf-8"
        )
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_quiet_and_loads_nothing(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    browser.complaints(), browser.requests()
    browser.open(pages[name])
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [pages[name].absolute().as_uri()]
    assert browser.run("return document.images.length") == 0
    names = browser.run("return [...document.querySelectorAll('[id]')].map((part) => part.id)")
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("width", [390, 768, 1200])
def test_the_page_never_scrolls_sideways(name: str, width: int, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[name], width)
    assert browser.run("return document.documentElement.scrollWidth") == width


def test_the_embedded_rows_are_the_rows(browser: Browser, pages: dict[str, Path]) -> None:
    for name, rows in STUDIES.items():
        browser.open(pages[name])
        found = json.loads(browser.run("return document.getElementById('rows').textContent"))
        assert found == [{key: value for key, value in row.items() if key != "witness"} for row in rows]


def test_tables_sort_by_number_and_back(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["study"])
    values = """
        const table = document.querySelector('table.bounds');
        const column = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent.startsWith('tightness'));
        const head = table.tHead.rows[0].cells[column];
        head.querySelector('button').click();
        const values = [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.v);
        return [head.getAttribute('aria-sort'), values];
    """
    for order, back in (("ascending", False), ("descending", True)):
        told, found = browser.run(values)
        assert told == order
        known = [float(value) for value in found if value]
        assert len(known) > 20
        assert known == sorted(known, reverse=back)
        assert all(not value for value in found[len(known) :]), "what has no value comes last"
    assert browser.run("return document.querySelectorAll('[aria-sort]').length") == 1


def test_tables_filter_by_all_words(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["study"])
    script = """
        const table = document.querySelector('table.bounds');
        const label = table.closest('details').querySelector('.filter');
        const field = label.querySelector('input');
        field.value = arguments[0];
        field.dispatchEvent(new Event('input'));
        return [label.querySelector('output').textContent, [...table.tBodies[0].rows].filter((r) => !r.hidden).length];
    """
    everything = sum(row["kind"] == "bound" for row in STUDIES["study"])
    wanted = sum(row.get("verifier") == "lipsdp-fast" and "relu" in row["network"] for row in STUDIES["study"])
    assert browser.run(script, "RELU lipsdp-fast") == [f"{wanted} of {everything} rows", wanted]
    assert browser.run(script, "") == [f"{everything} rows", everything]


def test_the_rows_are_saved(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    browser.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(pages["hostile"])
    for kind in ("csv", "json"):
        browser.run("document.querySelector(`[data-keep=${arguments[0]}]`).click()", kind)
        file = tmp_path / f"rows.{kind}"
        browser.driver.execute_async_script("setTimeout(arguments[0], 400)")
        assert file.exists(), list(tmp_path.iterdir())
    assert len(json.loads((tmp_path / "rows.json").read_text())) == len(STUDIES["hostile"])
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(tmp_path / "rows.csv")
    assert list(frame["network"]) == [row["network"] for row in STUDIES["hostile"]]
    assert browser.complaints() == []


@pytest.mark.parametrize("name", STUDIES)
def test_nothing_is_cut_on_paper(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[name])
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.print_at(PAPER)
    cut = browser.run("""
        const right = document.documentElement.clientWidth + 1;
        return [...document.querySelectorAll('main *')].filter((part) => {
            const box = part.getBoundingClientRect();
            return box.width > 0 && (box.right > right || box.left < -1) && !part.closest('svg');
        }).map((part) => `${part.tagName}.${part.className}: ${part.textContent.slice(0, 60)}`);
    """)
    assert cut == []
    squeezed = browser.run("""
        return [...document.querySelectorAll('thead th')].filter((head) => head.getBoundingClientRect().height > 60)
            .map((head) => head.textContent);
    """)
    assert squeezed == [], "a heading of a column is a tower of letters"
    hidden = browser.run("""
        return [...document.querySelectorAll('.filter, .tools')].filter((part) => part.offsetHeight > 0).length;
    """)
    assert hidden == 0
    assert browser.run("return document.querySelectorAll('details:not([open])').length") == 0


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext (Debian: poppler-utils)")
def test_no_heading_ends_a_page(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    for name, page in pages.items():
        browser.open(page)
        headings = browser.run("return [...document.querySelectorAll('h1, h2, summary')].map((part) => part.innerText)")
        file = browser.pdf(tmp_path / f"{name}.pdf")
        text = subprocess.run(["pdftotext", "-layout", file, "-"], capture_output=True, text=True, check=True).stdout
        lasts = [lines[-1].strip() for sheet in text.split("\f") if (lines := sheet.strip().splitlines())]
        orphans = [last for last in lasts if any(last == " ".join(heading.split()) for heading in headings)]
        assert orphans == [], name
        assert "Filter" not in text


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(dark: bool, browser: Browser, pages: dict[str, Path]) -> None:
    """At least 4.5 to 1, as the Web Content Accessibility Guidelines ask for, on cards and on the page."""
    browser.open(pages["study"], dark=dark)
    colours = browser.run("""
        const style = getComputedStyle(document.documentElement);
        return Object.fromEntries(arguments[0].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    """, ["page", "card", "text", "soft", "accent", "good", "bad", "warn"])  # fmt: skip
    for ground in ("page", "card"):
        for name in ("text", "soft", "accent", "good", "bad", "warn"):
            assert contrast(colours[ground], colours[name]) >= 4.5, (ground, name)


def contrast(one: str, two: str) -> float:
    low, high = sorted(luminance(colour) for colour in (one, two))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_without_script_everything_is_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["study"])
        shown = browser.command("DOM.getDocument", depth=-1)
        assert "lipsdp-fast" in json.dumps(shown)
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
