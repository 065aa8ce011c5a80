"""Each key's line: the paths are those that tomllib reads, and each stands where it is named."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from lipbridge.disk.toml_lines import Path, key_lines

ODD = '''\
# a comment with [brackets] and a = b
name = "a # no comment [x]" # one
"quoted key" = 1
'literal "key"'.inner = 2
a.b . c = 3
long = """
[not.a.table]
key = "no key" \\"""
""""
raw = \'\'\'
[[neither]]
\'\'\'
inline = { x = 1, y = { z = [1, { w = "}" }] }, 'q r'.s = 2 }
numbers = [
  1, # one
  [2, 3],
  "],",

  1979-05-27 07:32:00,
]
empty = []
none = {}
[table]
key = 1e3
[ table . "sub table" ]
key = true
[[array]]
name = "first"
[array.grid]
penalty = [0.1, 0.2]
[[array.deep]]
x = 1
[[array.deep]]
x = 2
[[array]]
name = "second"
[array.grid]
penalty = [0.3]
[[array.deep]]
y = 3
[late.table]
z = 1979-05-27T07:32:00Z
[late]
w = inf'''


def paths(found: object, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in items:
        yield from paths(value, (*path, key))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_odd_file(end: str) -> None:
    text = ODD.replace("\n", end)
    lines = key_lines(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    rows = text.splitlines()
    for path, line in lines.items():
        if isinstance(path[-1], str):
            assert path[-1].replace('"', "") in rows[line - 1].replace('"', ""), path
    where = {
        ("inline", "y", "z", 1, "w"): 13,
        ("numbers", 1, 1): 16,
        ("numbers", 3): 19,
        ("table", "sub table", "key"): 26,
        ("array", 0): 27,
        ("array", 0, "grid", "penalty", 1): 30,
        ("array", 0, "deep", 1, "x"): 34,
        ("array", 1, "deep", 0, "y"): 40,
        ("late",): 41,
    }
    assert {path: lines[path] for path in where} == where


def test_nothing() -> None:
    assert key_lines("") == {}
    assert key_lines("# only a comment") == {}


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | words
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


@given(st.dictionaries(words, values, max_size=4), st.booleans())
def test_whatever_is_written(data: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(data, multiline_strings=multiline)
    assert set(key_lines(text)) == set(paths(tomllib.loads(text)))
