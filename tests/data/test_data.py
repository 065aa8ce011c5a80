"""The IDX reader, the datasets, the search order and the download, all on files that the tests write."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipbridge.data import (
    DATASET_NAMES,
    Dataset,
    dataset_status,
    fetch_dataset,
    folders,
    idx,
    idx_shape,
    load_dataset,
    read_idx,
)
from lipbridge.data.catalog import (
    COLLECTIONS,
    IDX_FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Collection,
)
from lipbridge.data.cifar import ARCHIVE_FOLDER, PUBLISHED, RECORD, TEST_BATCH, Published, read_batches
from lipbridge.errors import DataError, InvalidArgument, LipbridgeError, MissingDependency, UnknownName

SHARED_DATA = Path(os.environ.get(folders.DATA_VARIABLE) or Path(__file__).parents[3] / "shared" / "data")


def idx_bytes(array: np.ndarray) -> bytes:
    """The plain IDX file of a uint8 array, written independently of the reader."""
    return struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape) + array.tobytes()


def small_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """A dataset of 12 + 6 images of 4 x 5 pixels in 3 classes."""
    rng = np.random.default_rng(seed)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (12, 4, 5), dtype=np.uint8),
        TRAIN_LABELS: np.arange(12, dtype=np.uint8) % 3,
        TEST_IMAGES: rng.integers(0, 256, (6, 4, 5), dtype=np.uint8),
        TEST_LABELS: np.arange(6, dtype=np.uint8) % 3,
    }


def write_dataset(folder: Path, arrays: dict[str, np.ndarray], *, zipped: bool = True, dotted: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        data = idx_bytes(array)
        spelled = name.replace("-idx", ".idx") if dotted else name
        path = folder / (f"{spelled}.gz" if zipped else spelled)
        path.write_bytes(gzip.compress(data) if zipped else data)
    return folder


def collection_of(name: str, arrays: dict[str, np.ndarray], **changes: object) -> Collection:
    collection = Collection(
        name=name,
        description="a small one",
        classes=3,
        shapes={file: array.shape for file, array in arrays.items()},
        sha256={file: hashlib.sha256(idx_bytes(array)).hexdigest() for file, array in arrays.items()},
        mirrors=(),
    )
    return dataclasses.replace(collection, **changes)


def failure(action: Callable[[], object], kind: type[LipbridgeError] = DataError) -> str:
    """The one line of the error that an action raises."""
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache, no data folder, and small datasets under the known names."""
    monkeypatch.delenv(folders.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(folders, "cache_folder", lambda name: tmp_path / "cache" / name)
    system = tmp_path / "system"
    small = {
        "mnist": collection_of("mnist", small_arrays(1)),
        "fashion-mnist": collection_of(
            "fashion-mnist", small_arrays(2) | {TEST_LABELS: np.zeros(6, np.uint8)}, system_folders=(system,)
        ),
    }
    for name, collection in small.items():
        monkeypatch.setitem(COLLECTIONS, name, collection)  # type: ignore[arg-type]
    cifar = Published("cifar10", "a small one", files=2, train=2, test=1, how_to_get="unpack it")
    monkeypatch.setitem(PUBLISHED, "cifar10", cifar)  # type: ignore[arg-type]
    return tmp_path


# The reader


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize("zipped", [False, True])
def test_read_idx_round_trip(tmp_path: Path, shape: tuple[int, ...], zipped: bool) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = idx_bytes(array)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if zipped else data)
    read = read_idx(path, shape, sha256=hashlib.sha256(data).hexdigest())
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)
    assert read.flags.writeable
    assert idx_shape(path) == shape
    assert np.array_equal(read_idx(path, (None,) * len(shape)), array)


def test_read_idx_crosses_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_CHUNK", 10)
    array = np.arange(250, dtype=np.uint8)
    (tmp_path / "file").write_bytes(idx_bytes(array))
    assert np.array_equal(read_idx(tmp_path / "file", (250,)), array)


LABELS = idx_bytes(np.arange(200, dtype=np.uint8))
FLIPPED = bytearray(gzip.compress(LABELS))
FLIPPED[-6] ^= 1

DAMAGED = {
    "empty": (b"", "truncated: 0 bytes"),
    "one byte": (b"\0", "truncated: 1 bytes"),
    "text": (b"hello, world", "not an IDX file: it starts with 0x6865"),
    "little-endian magic": (b"\x01\x08\0\0" + LABELS[4:], "not an IDX file"),
    "float items": (b"\0\0\x0d\x01" + LABELS[4:], "item type 0x0d is not supported"),
    "unknown item type": (b"\0\0\xff\x01" + LABELS[4:], "item type 0xff"),
    "cut in its sizes": (LABELS[:6], "ends within the sizes of its 1 dimensions"),
    "more dimensions than data": (b"\0\0\x08\xff" + LABELS[4:], "ends within the sizes of its 255 dimensions"),
    "no dimension": (b"\0\0\x08\0", "holds no items"),
    "a dimension of zero": (struct.pack(">HBBII", 0, 8, 2, 0, 2**32 - 1), "holds no items"),
    "another number of dimensions": (idx_bytes(np.zeros((10, 20), np.uint8)), "its shape is 10 x 20, it should be any"),
    "truncated": (LABELS[:-1], "its header promises 200 bytes, there can be at most 199"),
    "oversized header": (struct.pack(">HBBI", 0, 8, 1, 2**32 - 1), "above the limit"),
    "huge product of sizes": (b"\0\0\x08\xff" + b"\xff" * 1020, "promises more than 2^64 bytes"),
    "many dimensions of one": (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x", "1 x ... (255 dimensions)"),
    "trailing byte": (LABELS + b"\0", "more than the 200 bytes"),
    "gzip: only the magic": (b"\x1f\x8b", "gzip data is cut off"),
    "gzip: truncated": (gzip.compress(LABELS)[:-20], "gzip data is cut off"),
    "gzip: cut before its checksum": (gzip.compress(LABELS)[:-8], "gzip data is cut off"),
    "gzip: not a stream": (b"\x1f\x8b" + bytes(60), "damaged gzip data"),
    "gzip: wrong checksum": (bytes(FLIPPED), "damaged gzip data (CRC check failed"),
    "gzip: short data": (gzip.compress(LABELS[:-1]), "promises 200 bytes, it holds 199"),
    "gzip: trailing byte": (gzip.compress(LABELS + b"\0"), "more than the 200 bytes"),
    "gzip: trailing junk": (gzip.compress(LABELS) + b"junk", "damaged gzip data"),
    "gzip: header beyond any ratio": (gzip.compress(struct.pack(">HBBI", 0, 8, 1, 2**29)), "can be at most"),
}


@pytest.mark.parametrize(("data", "says"), DAMAGED.values(), ids=DAMAGED.keys())
def test_read_idx_refuses_damage(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(data)
    text = failure(lambda: read_idx(path, (None,)))
    assert text.startswith(f"{path}: ")
    assert says in text


def test_read_idx_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, tmp_path / "missing", pipe, tmp_path / ("x" * 5000), Path("a\0b")):
        assert "no such file" in failure(lambda path=path: read_idx(path, (None,)))


def test_an_unreadable_file_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(LABELS)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(idx, "open", refuse, raising=False)
    assert failure(lambda: read_idx(path, (200,))) == f"{path}: cannot be read (Permission denied)."


def test_the_error_is_one_line_even_if_the_file_name_is_not(tmp_path: Path) -> None:
    failure(lambda: read_idx(tmp_path / "two\nlines", (None,)))


def test_read_idx_names_a_wrong_checksum(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(LABELS)
    text = failure(lambda: read_idx(path, (None,), sha256="0" * 64))
    assert hashlib.sha256(LABELS).hexdigest()[:16] in text
    assert "damaged or belongs to another dataset" in text


def test_a_gzip_bomb_is_refused_quickly_in_little_memory(tmp_path: Path) -> None:
    bomb = gzip.compress(idx_bytes(np.zeros(1000, np.uint8)) + bytes(200 << 20))
    path = tmp_path / "bomb.gz"
    path.write_bytes(bomb)
    tracemalloc.start()
    start = time.perf_counter()
    text = failure(lambda: read_idx(path, (None,)))
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than the 1000 bytes" in text
    assert seconds < 5.0
    assert peak < 4 << 20


def check_reader_is_total(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for shape in ((None,), (None, None, None)):
        start = time.perf_counter()
        try:
            read_idx(path, shape)
        except DataError as error:
            text = str(error)
        else:
            text = f"{path}: read."
        assert text.startswith(f"{path}: ")
        assert "\n" not in text
        assert time.perf_counter() - start < 5.0


FUZZ = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(start=st.sampled_from([b"", b"\0\0\x08", b"\0\0\x08\x03", b"\x1f\x8b\x08\0"]), rest=st.binary(max_size=300))
def test_random_bytes_never_raise_anything_else(tmp_path: Path, start: bytes, rest: bytes) -> None:
    check_reader_is_total(tmp_path / "file", start + rest)
    check_reader_is_total(tmp_path / "file", gzip.compress(start + rest))


@FUZZ
@given(data=st.data(), zipped=st.booleans(), dimensions=st.sampled_from([1, 3]))
def test_mutated_files_never_raise_anything_else(
    tmp_path: Path, data: st.DataObject, zipped: bool, dimensions: int
) -> None:
    shape = (5,) * dimensions
    valid = idx_bytes(np.arange(5**dimensions, dtype=np.uint8).reshape(shape))
    mutated = bytearray(gzip.compress(valid, mtime=0) if zipped else valid)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(mutated)))
    check_reader_is_total(tmp_path / "file", bytes(mutated))
    check_reader_is_total(tmp_path / "file", bytes(mutated[:cut]))


# Datasets


def check_dataset(dataset: Dataset) -> None:
    """What holds for every dataset."""
    for inputs, labels in (
        (dataset.train_inputs, dataset.train_labels),
        (dataset.test_inputs, dataset.test_labels),
    ):
        assert inputs.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert inputs.shape == (len(labels), dataset.features)
        assert inputs.is_contiguous()
        assert 0.0 <= inputs.min() <= inputs.max() <= 1.0
        assert 0 <= labels.min() <= labels.max() < dataset.classes


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "classes"), [("digits", (1347, 450), (1, 8, 8), 10), ("iris", (112, 38), (4,), 3)]
)
def test_embedded_datasets(name: str, sizes: tuple[int, int], shape: tuple[int, ...], classes: int) -> None:
    first, second = load_dataset(name), load_dataset(name)
    check_dataset(first)
    assert (len(first.train_labels), len(first.test_labels)) == sizes
    assert (first.input_shape, first.classes) == (shape, classes)
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert torch.equal(first.test_labels, second.test_labels)
    shares = [labels.bincount() / len(labels) for labels in (first.train_labels, first.test_labels)]
    assert torch.allclose(*shares, atol=0.03)


def test_embedded_datasets_in_their_units() -> None:
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    for name, unit in (("digits", 16.0), ("iris", 8.0)):
        dataset = load_dataset(name)
        everything = torch.cat([dataset.train_inputs, dataset.test_inputs]) * unit
        raw = torch.from_numpy(getattr(sklearn_datasets, f"load_{name}")().data).float()
        assert torch.allclose(everything.sort(dim=0).values, raw.sort(dim=0).values)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_a_folder_of_idx_files(tmp_path: Path, zipped: bool, dotted: bool) -> None:
    arrays = small_arrays()
    folder = write_dataset(tmp_path / "mine", arrays, zipped=zipped, dotted=dotted)
    for dataset in (load_dataset(str(folder)), load_dataset(folder)):
        check_dataset(dataset)
        assert (dataset.name, dataset.classes, dataset.input_shape) == ("mine", 3, (1, 4, 5))
        assert dataset.source == str(folder)
        assert torch.equal((dataset.train_inputs * 255).round(), torch.tensor(arrays[TRAIN_IMAGES]).flatten(1).float())
        assert dataset.test_labels.tolist() == arrays[TEST_LABELS].tolist()
        assert "train=12, test=6" in repr(dataset)


def test_a_folder_that_lacks_a_file(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "mine", small_arrays())
    (folder / f"{TEST_LABELS}.gz").unlink()
    text = failure(lambda: load_dataset(folder))
    assert text.startswith(f"{folder}: no {TEST_LABELS}. ")
    assert "no IDX files" in failure(lambda: load_dataset(tmp_path))
    assert "no such folder" in failure(lambda: load_dataset(tmp_path / "missing"))
    assert "not a folder" in failure(lambda: load_dataset(folder / f"{TRAIN_LABELS}.gz"))


INCONSISTENT: dict[str, tuple[str, np.ndarray, str]] = {
    "fewer labels": (TRAIN_LABELS, np.arange(11, dtype=np.uint8), "12 images, but train-labels-idx1-ubyte.gz holds 11"),
    "more labels": (TEST_LABELS, np.zeros(7, np.uint8), "6 images, but t10k-labels-idx1-ubyte.gz holds 7"),
    "unseen class": (TEST_LABELS, np.array([0, 1, 2, 3, 0, 1], np.uint8), "label 3 is outside 0..2"),
    "one class": (TRAIN_LABELS, np.zeros(12, np.uint8), "at least two classes"),
    "another image size": (TEST_IMAGES, np.zeros((6, 5, 4), np.uint8), "6 x 5 x 4, it should be any x 4 x 5"),
    "flat images": (TRAIN_IMAGES, np.zeros((12, 20), np.uint8), "12 x 20, it should be any x any x any"),
    "labels with two dimensions": (TRAIN_LABELS, np.zeros((12, 2), np.uint8), "12 x 2, it should be any"),
}


@pytest.mark.parametrize(("name", "array", "says"), INCONSISTENT.values(), ids=INCONSISTENT.keys())
def test_inconsistent_files(tmp_path: Path, name: str, array: np.ndarray, says: str) -> None:
    folder = write_dataset(tmp_path / "mine", small_arrays() | {name: array})
    text = failure(lambda: load_dataset(folder))
    assert text.startswith(str(folder))
    assert says in text


def test_unknown_names_and_misplaced_folders(tmp_path: Path) -> None:
    assert "Known: digits, iris, mnist, fashion-mnist" in failure(lambda: load_dataset("imagenet"), UnknownName)
    for name in ("digits", "iris", str(tmp_path)):
        failure(lambda name=name: load_dataset(name, folder=tmp_path), InvalidArgument)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    script = "import sys, lipbridge.data; print({'sklearn', 'pooch', 'requests'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_missing_packages_name_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert "pip install scikit-learn" in failure(lambda: load_dataset("iris"), MissingDependency)
    assert "pip install pooch" in failure(lambda: fetch_dataset("mnist"), MissingDependency)


# Search order


def test_search_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_folder, root = home / "given", home / "root"
    monkeypatch.setenv(folders.DATA_VARIABLE, str(root))
    expected = [
        given_folder / "fashion-mnist",
        given_folder,
        root / "fashion-mnist",
        root,
        home / "cache" / "fashion-mnist",
        home / "system",
    ]
    assert folders.search_folders(COLLECTIONS["fashion-mnist"], given_folder) == expected
    assert folders.search_folders(COLLECTIONS["mnist"])[-1] == home / "cache" / "mnist"
    arrays = small_arrays(2) | {TEST_LABELS: np.zeros(6, np.uint8)}
    for folder in reversed(expected):
        write_dataset(folder, arrays)
        dataset = load_dataset("fashion-mnist", folder=given_folder)
        check_dataset(dataset)
        assert (dataset.name, dataset.source) == ("fashion-mnist", str(folder))


def test_not_found_lists_each_folder_and_the_command(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.DATA_VARIABLE, str(home / "root"))
    (home / "root").mkdir()
    text = failure(lambda: load_dataset("mnist", folder=home / "given"))
    for folder in folders.search_folders(COLLECTIONS["mnist"], home / "given"):
        assert f"{folder} (" in text
    assert f"{home / 'root'} (no IDX files)" in text
    assert text.endswith("Get it with: lipbridge data fetch mnist")


def test_a_folder_of_the_other_dataset_is_passed_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.DATA_VARIABLE, str(write_dataset(home / "root", small_arrays(1))))
    assert load_dataset("mnist").source == str(home / "root")
    assert f"{home / 'root'} (holds mnist)" in failure(lambda: load_dataset("fashion-mnist"))


def test_a_known_name_has_its_checksums_verified(home: Path) -> None:
    folder = write_dataset(home / "given", small_arrays(1) | {TRAIN_IMAGES: small_arrays(3)[TRAIN_IMAGES]})
    text = failure(lambda: load_dataset("mnist", folder=folder))
    assert text.startswith(f"{folder / TRAIN_IMAGES}.gz: the SHA-256")
    # The same files as a dataset of their own have no sum to compare with.
    assert load_dataset(folder).name == "given"


def test_a_known_name_has_its_shapes_verified_before_it_is_read(home: Path) -> None:
    folder = write_dataset(home / "given", small_arrays(1) | {TRAIN_IMAGES: np.zeros((12, 40, 50), np.uint8)})
    assert "12 x 40 x 50, it should be 12 x 4 x 5" in failure(lambda: load_dataset("mnist", folder=folder))


def test_status(home: Path) -> None:
    folder = write_dataset(home / "cache" / "mnist", small_arrays(1))
    rows = {row.name: row for row in dataset_status()}
    assert tuple(rows) == DATASET_NAMES
    assert rows["digits"].where == "scikit-learn"
    assert rows["mnist"].where == str(folder)
    assert rows["mnist"].bytes_on_disk == sum(path.stat().st_size for path in folder.iterdir())
    assert rows["mnist"].get == ""
    assert rows["fashion-mnist"].where is None
    assert rows["fashion-mnist"].get == "lipbridge data fetch fashion-mnist"


# CIFAR-10


def cifar_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Labels and images of a dataset of 10 + 10 + 10 records, by file."""
    rng = np.random.default_rng(seed)
    names = ("data_batch_1.bin", "data_batch_2.bin", TEST_BATCH)
    return {
        name: np.column_stack([rng.permutation(10), rng.integers(0, 256, (10, RECORD - 1))]).astype(np.uint8)
        for name in names
    }


def write_cifar(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in cifar_arrays(seed).items():
        (folder / name).write_bytes(array.tobytes())
    return folder


def test_a_folder_of_cifar_batches(tmp_path: Path) -> None:
    folder, arrays = write_cifar(tmp_path / "mine"), cifar_arrays()
    for dataset in (load_dataset(str(folder)), load_dataset(folder)):
        check_dataset(dataset)
        assert (dataset.name, dataset.classes, dataset.input_shape) == ("mine", 10, (3, 32, 32))
        assert dataset.source == str(folder)
        both = np.concatenate([arrays["data_batch_1.bin"], arrays["data_batch_2.bin"]])
        assert torch.equal((dataset.train_inputs * 255).round(), torch.tensor(both[:, 1:]).float())
        assert dataset.train_labels.tolist() == both[:, 0].tolist()
        assert dataset.test_labels.tolist() == arrays[TEST_BATCH][:, 0].tolist()
        # the first 1024 bytes are the red plane, row by row
        image = dataset.test_inputs[4].view(3, 32, 32)
        assert float(image[2, 5, 7]) == pytest.approx(arrays[TEST_BATCH][4, 1 + 2 * 1024 + 5 * 32 + 7] / 255)


def test_many_batches_are_read_in_order_of_their_numbers(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "mine")
    for number in range(1, 12):
        (folder / f"data_batch_{number}.bin").write_bytes(bytes([number % 10]) + bytes(RECORD - 1))
    assert load_dataset(folder).train_labels.tolist() == [number % 10 for number in range(1, 12)]


CIFAR_FAULTS: dict[str, tuple[str, bytes | None, str]] = {
    "no test": (TEST_BATCH, None, "no test_batch.bin. CIFAR-10 is a folder with"),
    "no first": ("data_batch_1.bin", None, "no data_batch_1.bin. CIFAR-10 is"),
    "empty": (TEST_BATCH, b"", "0 bytes are no whole number of records of 3073 bytes"),
    "cut": ("data_batch_2.bin", bytes(2 * RECORD - 1), "6145 bytes are no whole number"),
    "one byte more": (TEST_BATCH, bytes(RECORD + 1), "3074 bytes are no whole number"),
    "labels of CIFAR-100": (TEST_BATCH, bytes(RECORD) + b"\x0a" + bytes(RECORD - 1), "record 1 has the label 10"),
    "zipped": ("data_batch_1.bin", gzip.compress(bytes(RECORD)), "no whole number of records"),
}


@pytest.mark.parametrize(("name", "data", "says"), CIFAR_FAULTS.values(), ids=CIFAR_FAULTS.keys())
def test_damaged_batches(tmp_path: Path, name: str, data: bytes | None, says: str) -> None:
    folder = write_cifar(tmp_path / "mine")
    (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
    text = failure(lambda: load_dataset(folder))
    assert text.startswith(f"{folder}: " if data is None else f"{folder / name}: ")
    assert says in text


def test_batches_that_are_no_files_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar(tmp_path / "mine")
    (folder / "data_batch_3.bin").mkdir()
    assert len(load_dataset(folder).train_labels) == 20
    (folder / "data_batch_4.bin").write_bytes(bytes(RECORD))
    assert "no data_batch_3.bin" in failure(lambda: load_dataset(folder))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "missing", Path("a\0b")):
        assert "no such file" in failure(lambda path=path: read_batches([path]))
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", RECORD << 20)
    start = time.perf_counter()
    assert "above the limit" in failure(lambda: read_batches([tmp_path / "sparse"]))
    assert time.perf_counter() - start < 1.0
    monkeypatch.setattr("lipbridge.data.cifar.MAX_BYTES", 15 * RECORD)
    text = failure(lambda: load_dataset(write_cifar(tmp_path / "other")))
    assert text.startswith(str(tmp_path / "other" / "data_batch_2.bin"))


def test_a_folder_of_two_datasets_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(write_cifar(tmp_path / "mine"), small_arrays())
    assert "IDX files and CIFAR-10 batches" in failure(lambda: load_dataset(folder))


@FUZZ
@given(data=st.binary(max_size=300) | st.binary(min_size=439, max_size=439), repeat=st.integers(0, 14))
def test_random_batches_never_raise_anything_else(tmp_path: Path, data: bytes, repeat: int) -> None:
    path = tmp_path / "batch.bin"
    path.write_bytes((data * repeat)[: 2 * RECORD])
    size = path.stat().st_size
    if size == 0 or size % RECORD or max(path.read_bytes()[::RECORD]) > 9:
        assert failure(lambda: read_batches([path])).startswith(f"{path}: ")
    else:
        images, labels = read_batches([path])
        assert images.shape == (len(labels), RECORD - 1)


def test_cifar10_by_name_in_search_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.DATA_VARIABLE, str(home / "root"))
    cache = home / "cache" / "cifar10"
    expected = [
        *(home / "given" / "cifar10", home / "given" / ARCHIVE_FOLDER, home / "given"),
        *(home / "root" / "cifar10", home / "root" / ARCHIVE_FOLDER, home / "root"),
        *(cache, cache / ARCHIVE_FOLDER),
    ]
    assert folders.cifar_folders(PUBLISHED["cifar10"], home / "given") == expected
    text = failure(lambda: load_dataset("cifar10", folder=home / "given"))
    assert all(f"{folder} (no such folder)" in text for folder in expected)
    assert text.endswith("To get it, unpack it.")
    for folder in reversed(expected):
        write_cifar(folder)
        dataset = load_dataset("cifar10", folder=home / "given")
        check_dataset(dataset)
        assert (dataset.name, dataset.source) == ("cifar10", str(folder))
        status = {row.name: row for row in dataset_status()}["cifar10"]
        if folder == cache / ARCHIVE_FOLDER:
            assert (status.where, status.bytes_on_disk, status.get) == (str(folder), 30 * RECORD, "")


def test_cifar10_by_name_is_verified(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar(home / "cache" / "cifar10")
    records = cifar_arrays()["data_batch_1.bin"]
    records[0, 0] = (records[0, 0] + 1) % 10
    (folder / "data_batch_1.bin").write_bytes(records.tobytes())
    assert "images, it should have 2" in failure(lambda: load_dataset("cifar10"))
    assert load_dataset(folder).name == "cifar10"  # a folder's own numbers are its own
    write_cifar(folder)
    (folder / TEST_BATCH).write_bytes(bytes(range(1)) + bytes(RECORD - 1))
    assert f"{folder} (its test_batch.bin has not 10 images)" in failure(lambda: load_dataset("cifar10"))
    (folder / "data_batch_2.bin").unlink()
    assert "not 2 of 10 images each" in failure(lambda: load_dataset("cifar10"))
    assert "is not downloaded by lipbridge" in failure(lambda: fetch_dataset("cifar10"))


# Download


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[[Path], str]]:
    """A function that serves a folder on the loopback interface and returns its base URL."""
    servers: list[http.server.ThreadingHTTPServer] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def closed_url() -> str:
    """A URL that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_fetch_puts_the_files_in_the_cache(
    home: Path, serve: Callable[[Path], str], closed_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    mirror = serve(write_dataset(home / "mirror", small_arrays(1)))
    folder = fetch_dataset("mnist", mirrors=[closed_url, mirror])
    assert folder == home / "cache" / "mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in IDX_FILES)
    assert everything_below(home / "cache") == {folder, *folder.iterdir()}
    assert load_dataset("mnist").source == str(folder)
    assert fetch_dataset("mnist", mirrors=[closed_url]) == folder
    assert capfd.readouterr() == ("", "")


def test_fetch_into_a_folder_completes_it(home: Path, serve: Callable[[Path], str]) -> None:
    mirror = serve(write_dataset(home / "mirror", small_arrays(1)))
    target = write_dataset(home / "new" / "deep", {TRAIN_LABELS: small_arrays(1)[TRAIN_LABELS]}, zipped=False)
    assert fetch_dataset("mnist", target, mirrors=[mirror.rstrip("/")]) == target
    assert (target / TRAIN_LABELS).exists()
    assert not (target / f"{TRAIN_LABELS}.gz").exists()
    assert load_dataset("mnist", folder=target).source == str(target)


def test_fetch_with_no_network_says_what_failed_and_leaves_nothing(home: Path, closed_url: str) -> None:
    before = everything_below(home)
    text = failure(lambda: fetch_dataset("mnist", mirrors=[closed_url, closed_url + "other/"]))
    assert f"{closed_url}{TRAIN_IMAGES}.gz (no connection); {closed_url}other/{TRAIN_IMAGES}.gz (no connection)" in text
    assert f"Looked in: {home / 'cache' / 'mnist'} (no such folder)" in text
    assert str(home / "mine") in failure(lambda: fetch_dataset("mnist", home / "mine", mirrors=[closed_url]))
    assert "no mirrors given" in failure(lambda: fetch_dataset("mnist", mirrors=[]))
    assert everything_below(home) == before


def test_fetch_refuses_what_a_bad_mirror_serves(home: Path, serve: Callable[[Path], str]) -> None:
    wrong = write_dataset(home / "wrong", small_arrays(1) | {TEST_LABELS: np.ones(6, np.uint8)})
    partial = write_dataset(home / "partial", {TRAIN_IMAGES: small_arrays(1)[TRAIN_IMAGES]})
    before = everything_below(home)
    text = failure(lambda: fetch_dataset("mnist", mirrors=[serve(partial), serve(wrong), "nonsense://x"]))
    assert f"{TRAIN_LABELS}.gz (HTTP 404)" in text
    assert f"{TEST_LABELS}.gz (the SHA-256 of its" in text
    assert "nonsense://x" in text
    assert everything_below(home) == before


def test_fetch_stops_a_mirror_that_sends_without_end(
    home: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = serve(write_dataset(home / "mirror", small_arrays(1)))
    monkeypatch.setattr("lipbridge.data.fetch._MAX_DOWNLOAD", 100)
    assert "sends more than 100 bytes" in failure(lambda: fetch_dataset("mnist", mirrors=[mirror]))


def test_fetch_repairs_the_cache(home: Path, serve: Callable[[Path], str]) -> None:
    mirror = serve(write_dataset(home / "mirror", small_arrays(1)))
    cache = write_dataset(home / "cache" / "mnist", small_arrays(1), zipped=False)
    (cache / TRAIN_IMAGES).write_bytes((cache / TRAIN_IMAGES).read_bytes()[:-1])
    failure(lambda: load_dataset("mnist"))
    assert fetch_dataset("mnist", mirrors=[mirror]) == cache
    check_dataset(load_dataset("mnist"))


def test_fetch_never_writes_over_other_data(
    home: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = serve(write_dataset(home / "mirror", small_arrays(1)))
    mine = write_dataset(home / "mine", small_arrays(5))
    before = {path: path.read_bytes() for path in mine.iterdir()}
    assert "Move it away" in failure(lambda: fetch_dataset("mnist", mine, mirrors=[mirror]))
    monkeypatch.setenv(folders.DATA_VARIABLE, str(mine))
    failure(lambda: fetch_dataset("mnist", mirrors=[mirror]))
    assert {path: path.read_bytes() for path in mine.iterdir()} == before
    assert not (home / "cache").exists()


def test_fetch_into_what_is_not_a_folder(home: Path, serve: Callable[[Path], str]) -> None:
    mirror = serve(write_dataset(home / "mirror", small_arrays(1)))
    (home / "file").write_text("mine")
    assert failure(lambda: fetch_dataset("mnist", home / "file", mirrors=[mirror])).startswith(f"{home / 'file'}: ")
    assert (home / "file").read_text() == "mine"


def test_fetch_of_other_names(home: Path) -> None:
    assert "comes with scikit-learn" in failure(lambda: fetch_dataset("digits"))
    failure(lambda: fetch_dataset("imagenet"), UnknownName)


# The published files


@pytest.mark.parametrize(("name", "digits"), [("mnist", 5923), ("fashion-mnist", 6000)])
def test_published_files(name: str, digits: int) -> None:
    collection = COLLECTIONS[name]
    places = [SHARED_DATA / name, SHARED_DATA, *collection.system_folders]
    if folders.search(collection, places).found is None:
        pytest.skip(f"{name} is in none of {', '.join(map(str, places))}; set ${folders.DATA_VARIABLE}")
    dataset = load_dataset(name, folder=SHARED_DATA)
    check_dataset(dataset)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (60000, 10000)
    assert (dataset.input_shape, dataset.classes) == ((1, 28, 28), 10)
    assert int((dataset.train_labels == 0).sum()) == digits
    assert float(dataset.train_inputs.max()) == 1.0
