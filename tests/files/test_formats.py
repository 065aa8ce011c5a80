"""Formats by entry points: somebody else's is one file and one line, and what is wrong with it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.cli.app import run
from lipbridge.errors import InvalidArgument, MissingDependency, UnknownName
from lipbridge.files.formats import format_of, format_to_write, get_format, list_formats, without_suffix
from lipbridge.files.models import Reading, open_model, open_models

SOURCE = """
import numpy as np
import torch
from lipbridge.files.formats import Format
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Input


class Text(Format):
    name, title, summary, suffixes = "text", "plain text", "one dense layer", (".txt", ".w.txt")

    def read(self, path, *, input_shape=None, output=None):
        W = torch.tensor(np.loadtxt(path, ndmin=2))
        return Graph((Input("x", (), (W.shape[1],)), Dense("dense", (0,), (len(W),), W)), "net"), ("no bias is read",)

    def write(self, graph, path, dialect=None):
        np.savetxt(path, graph.nodes[-1].weight.numpy())
        return {"rows": graph.output_shape[0], "note": "use it well"}


class Absent(Text):
    name, suffixes, requires, install = "absent", (".none",), ("a_package_that_nobody_has",), "pip install it"


class NoFormat:
    pass
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Their package, installed, and in the folder that is returned one file."""
    (tmp_path / "their_formats.py").write_text(SOURCE)
    metadata = tmp_path / "their_formats-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-formats\nVersion: 1.0\n")
    points = {"text": "Text", "absent": "Absent", "broken": "Gone", "odd": "NoFormat"}
    lines = "\n".join(f"{name} = their_formats:{found}" for name, found in points.items())
    (metadata / "entry_points.txt").write_text(f"[lipbridge.formats]\n{lines}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "net.w.TXT").write_text("3 0\n0 4\n1 0\n")
    return tmp_path


def test_ours_are_registered_as_anybodys() -> None:
    found = {each.name: each for each in list_formats()}
    assert {"onnx", "mat"} <= set(found)
    assert found["onnx"].dialects == ("relu", "native")
    for path, name in (("a.onnx", "onnx"), ("b/A.ONNX.gz", "onnx"), ("c.mat", "mat"), ("a.onnx.txt", None)):
        fits = format_of(path, found.values())
        assert (fits and fits.name) == name
    assert without_suffix("b/A.ONNX.gz", found["onnx"]) == "A"
    assert without_suffix("b/model.v2.safetensors", None) == "model.v2"


def test_their_files_are_models(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_model(str(theirs / "net.w.TXT"))
    assert (opened.name, opened.graph.name, opened.notes) == ("net", "net", ("no bias is read",))
    assert lipbridge.trivial_bound(opened.graph).value == pytest.approx(4.0)
    with pytest.raises(InvalidArgument, match="an ONNX file or FILE"):
        open_models([str(theirs / "net.w.TXT")], Reading(input_shape=(2,)))
    with pytest.raises(InvalidArgument, match=r"`--output`.*ONNX file"):
        open_models([str(theirs / "net.w.TXT")], Reading(output="y"))
    assert run(["export", str(theirs / "net.w.TXT"), "--out", str(theirs / "copy.txt")]) == 0
    told = capsys.readouterr()
    assert told.out.endswith("use it well\n")
    assert "no bias is read" in told.err
    assert torch.equal(
        open_model(str(theirs / "copy.txt")).graph(torch.eye(2).double()), opened.graph(torch.eye(2).double())
    )


def test_what_is_wrong_is_told(theirs: Path) -> None:
    assert [each.name for each in list_formats()] == ["absent", "mat", "onnx", "text"]
    with pytest.raises(UnknownName, match="absent, broken, mat, odd, onnx, text"):
        get_format("pickle")
    with pytest.raises(UnknownName, match=r"text dialect 'relu'. Known: none"):
        get_format("text", "relu")
    with pytest.raises(AttributeError, match="Gone"):
        get_format("broken")
    with pytest.raises(TypeError, match="is no Format"):
        get_format("odd")
    with pytest.raises(InvalidArgument, match=r"`--to`.*absent, broken, mat"):
        format_to_write("net.bin", None, None)
    (theirs / "a.none").touch()
    with pytest.raises(MissingDependency, match=r"a_package_that_nobody_has is not installed.*pip install it"):
        open_model(str(theirs / "a.none"))


def test_weights_of_the_matlab_lipsdp_are_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    lipbridge.save(module, tmp_path / "net.safetensors")
    assert run(["export", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "net.mat")]) == 0
    assert "solve_sdp.py" in capsys.readouterr().out
    assert run(["bound", str(tmp_path / "net.mat"), "--json"]) == 0
    told = capsys.readouterr()
    assert "relu is taken" in told.err
    assert str(lipbridge.trivial_bound(lipbridge.capture(module, (2,))).value) in told.out
