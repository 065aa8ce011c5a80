"""Weights from files of others: all of them as they are, or an error of one line; and nothing is ever executed."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.errors import InvalidArgument, LipbridgeError, ModelFileError
from lipbridge.files.state_files import load_state


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(network(7).state_dict())


def same(module: nn.Module, state: dict[str, Any]) -> bool:
    return all(torch.equal(value.double(), state[name].double()) for name, value in module.state_dict().items())


def refused(path: Path, module: nn.Module | None = None) -> str:
    module = module or network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ModelFileError) as caught:
        load_state(module, path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert same(module, before)
    return str(caught.value)


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
def test_every_format_whatever_its_name(name: str, kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    module = network()
    assert load_state(module, path) == []
    assert same(module, state)
    assert lipbridge.trivial_bound(module).value == lipbridge.trivial_bound(network(7)).value


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_checkpoints(key: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(network().parameters()).state_dict()
    torch.save({"epoch": 3, key: state, "optimizer": optimizer, "best": 0.9}, tmp_path / "c.pt")
    module = network()
    (note,) = load_state(module, tmp_path / "c.pt")
    assert repr(key) in note
    assert same(module, state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_prefixes_of_wrappers(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "c.pt")
    module = network()
    (note,) = load_state(module, str(tmp_path / "c.pt"))
    assert repr(prefix) in note
    assert same(module, state)


def test_a_prefix_that_is_the_modules_own_stays(state: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = nn.Module()
    wrapped.module = network()
    torch.save(wrapped.state_dict(), tmp_path / "c.pt")
    assert load_state(wrapped, tmp_path / "c.pt") == []


@pytest.mark.parametrize("wide", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_no_number_is_rounded(wide: torch.dtype, own: torch.dtype, tmp_path: Path) -> None:
    source = network(7).to(wide)
    torch.save(source.state_dict(), tmp_path / "c.pt")
    module = network().to(own)
    load_state(module, tmp_path / "c.pt")
    assert same(module, dict(source.state_dict()))
    assert next(module.parameters()).dtype is torch.promote_types(wide, own)


def test_what_changes_nothing_may_be_missing(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Old files have no counters of BatchNorm."""
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "c.pt")
    assert load_state(network(), tmp_path / "c.pt") == []


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def test_tied_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = Tied()
    safetensors.torch.save_model(source, str(tmp_path / "one.safetensors"))  # it keeps one of the names
    module = Tied()
    load_state(module, tmp_path / "one.safetensors")
    assert same(module, dict(source.state_dict()))
    apart = {name: value.clone() for name, value in source.state_dict().items()}
    apart["last.weight"] += 1.0
    torch.save(apart, tmp_path / "two.pt")
    with pytest.raises(ModelFileError, match="two names of one tensor"):
        load_state(Tied(), tmp_path / "two.pt")


# --- what is refused -------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "missing": (lambda s: s.pop("3.bias"), ["1 missing ('3.bias')"]),
    "unexpected": (lambda s: s.update(extra=torch.zeros(2)), ["1 unexpected ('extra')"]),
    "shape": (lambda s: s.update({"0.weight": torch.zeros(6, 8)}), ["'0.weight' has shape (6, 8)", "(8, 6)"]),
    "no axes": (lambda s: s.update({"0.weight": torch.zeros(())}), ["()"]),
    "expanded": (lambda s: s.update({"0.bias": torch.zeros(1).expand(2**40)}), ["'0.bias' has shape (1099511627776,)"]),
    "NaN": (lambda s: s.update({"3.bias": torch.full((3,), NAN)}), ["'3.bias'", "NaN"]),
    "infinity": (lambda s: s.update({"3.bias": torch.full((3,), INF)}), ["'3.bias'", "infinite"]),
    "integers": (lambda s: s.update({"3.bias": torch.zeros(3, dtype=torch.int8)}), ["'3.bias'", "int8"]),
    "complex": (lambda s: s.update({"3.bias": torch.zeros(3, dtype=torch.complex64)}), ["'3.bias'", "complex"]),
    "float8": (lambda s: s.update({"3.bias": torch.zeros(3).to(torch.float8_e4m3fn)}), ["'3.bias'", "float8"]),
    "sparse": (lambda s: s.update({"3.bias": torch.zeros(3).to_sparse()}), ["'3.bias'", "dense"]),
    "meta": (lambda s: s.update({"3.bias": torch.zeros(3, device="meta")}), ["'3.bias'", "dense"]),
    "a number": (lambda s: s.update({"3.bias": 5.0}), ["no state dict"]),
    "other names": (lambda s: [s.update({f"x{k}": s.pop(k)}) for k in list(s)], ["missing", "and", "more"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_state(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    change, words = CHANGES[name]
    change(state)
    torch.save(state, tmp_path / "c.pt")
    text = refused(tmp_path / "c.pt")
    assert all(word in text for word in words), text


class Evil:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"0.weight": Evil(mark)}, tmp_path / "a.pt")
    torch.save(network(), tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"0.weight": Evil(mark)}))
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Evil(mark), protocol=0))
    for name in "abcd":
        text = refused(tmp_path / f"{name}.pt")
        assert "state_dict" in text or "neither" in text
    assert not mark.exists()


def test_files_that_are_none(tmp_path: Path, state: dict[str, Tensor]) -> None:
    assert "No such file" in refused(tmp_path / "nothing.pt")
    assert "no regular file" in refused(tmp_path)
    for data in (b"", b"\x80", b"PK\x03\x04", b"text" * 100, b"\xff" * 20, b"\x08" + bytes(7) + b"{}", b"\x80\x02."):
        (tmp_path / "x.pt").write_bytes(data)
        refused(tmp_path / "x.pt")
    torch.jit.save(torch.jit.trace(nn.Linear(6, 3), torch.zeros(1, 6)), tmp_path / "s.pt")
    assert "torch.jit.load" in refused(tmp_path / "s.pt")
    for found in ([1, 2], 5, None, {}, {"a": {"b": 1}}, {1: torch.zeros(2)}, {"model": state, "net": state}):
        torch.save(found, tmp_path / "y.pt")
        assert "state dict" in refused(tmp_path / "y.pt")


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for entry in good.infolist():
            data = good.read(entry) if not entry.filename.endswith("data/0") else bytes(2**26)
            bad.writestr(zipfile.ZipInfo(entry.filename), data, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bad.pt").stat().st_size < 2**17
    assert "unfolds" in refused(tmp_path / "bad.pt")


@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
def test_damaged_bytes_never_raise_anything_else(kind: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    path, generator = tmp_path / "w.pt", random.Random(0)
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    data = path.read_bytes()
    for trial in range(150):
        changed = bytearray(data)
        if trial % 3 == 0:
            changed = changed[: generator.randrange(len(changed))]
        else:
            for _ in range(generator.choice([1, 4, 32])):
                changed[generator.randrange(len(changed))] = generator.randrange(256)
        path.write_bytes(bytes(changed))
        line = ""
        try:
            load_state(network(), path)
        except LipbridgeError as error:
            line = str(error)
        assert "\n" not in line


def test_modules_without_weights_of_their_own(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "c.pt")
    for module, word in (
        (nn.LazyLinear(3), "run it once"),
        (nn.Linear(2, 2, device="meta"), "numbers"),
        ("x", "Module"),
    ):
        with pytest.raises(InvalidArgument, match=word):
            load_state(module, tmp_path / "c.pt")  # type: ignore[arg-type]
