"""hf:// models: fetched once, the commit told, and everything that can go wrong told in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lipbridge
from lipbridge.errors import InvalidArgument, MissingDependency
from lipbridge.files import hub
from lipbridge.files.hub import HubModel, is_hub
from lipbridge.files.models import open_models
from tests.support.hub_server import COMMIT, serving

#: huggingface_hub reads its settings when it is imported, so each test's are those of a process of its own.
SCRIPT = """
import json, sys
from lipbridge.errors import LipbridgeError
from lipbridge.files.models import open_model
answers = []
for text in sys.argv[1:]:
    try:
        model = open_model(text)
        answers.append([model.name, str(model.path), model.graph.output_shape[0], *model.notes])
    except LipbridgeError as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    torch.manual_seed(0)
    file = lipbridge.save(lipbridge.mlp([4, 3, 2]), tmp_path_factory.mktemp("model"))
    content = Path(file / "model.safetensors" if Path(file).is_dir() else file).read_bytes()
    files = {"us/nets/small/net.safetensors": content, "us/nets/broken.safetensors": b"no", "us/gated/x.onnx": b""}
    with serving(files) as address:
        yield address


def ask(*models: str, home: Path, **settings: str) -> list[list[object]]:
    pytest.importorskip("huggingface_hub")
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **settings}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *models], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_model_of_the_hub(endpoint: str, tmp_path: Path) -> None:
    name = "hf://us/nets/small/net.safetensors"
    found, tagged, pinned = ask(name, f"{name}@v1", f"{name}@{COMMIT}", home=tmp_path, HF_ENDPOINT=endpoint)
    assert found[0] == "net"
    assert found[2:] == [2, f"{name}: commit {COMMIT}"]
    assert Path(str(found[1])).is_relative_to(tmp_path)
    assert tagged[1] == pinned[1] == found[1]
    again, absent = ask(name, "hf://us/nets/none.onnx", home=tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1")
    assert again == found
    assert "or HF_HUB_OFFLINE is set, and the cache has no such file" in absent[1]


def test_what_goes_wrong_is_told(endpoint: str, tmp_path: Path) -> None:
    cases = {
        "hf://us/nonesuch/net.onnx": ["repository us/nonesuch is not there, or private", "HF_TOKEN"],
        "hf://us/gated/x.onnx": ["us/gated is gated", "ask for access"],
        "hf://us/nets/none.onnx": ["repository us/nets has no file none.onnx"],
        "hf://us/nets/small/net.safetensors@v2": ["has no revision 'v2'"],
        "hf://us/nets/broken.safetensors": ["broken.safetensors"],
    }
    answers = ask(*cases, home=tmp_path, HF_ENDPOINT=endpoint)
    for (kind, text), words in zip(answers, cases.values(), strict=True):
        assert kind == "ModelFileError"
        assert "\n" not in text
        for word in words:
            assert word in text
    ((kind, text),) = ask("hf://us/nets/none.onnx", home=tmp_path / "empty", HF_ENDPOINT="http://127.0.0.1:9")
    assert kind == "ModelFileError"
    assert "cannot be reached" in text


@pytest.mark.parametrize(
    "text",
    [
        "hf://us/nets",
        "hf://us",
        "hf://us/nets/",
        "hf://us/nets/a/../b.onnx",
        "hf://us/nets/x.py:make",
        "hf://us//a.onnx",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    assert is_hub(text)
    with pytest.raises(InvalidArgument, match=r"hf://OWNER/NAME/PATH\[@REVISION\]"):
        open_models([text])


def test_it_reads_as_it_is_written() -> None:
    for text in ("hf://us/nets/a/b.c.onnx", "hf://us/nets/b.onnx@refs/pr/1"):
        assert str(HubModel.parse(text)) == text
    assert not is_hub("hf:/us/nets/a.onnx")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(hub.importlib, "import_module", missing)
    with pytest.raises(MissingDependency, match=r"lipbridge\[hub\]"):
        open_models(["hf://us/nets/a.onnx"])
