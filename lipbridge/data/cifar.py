"""The binary format of CIFAR-10: a folder of ``data_batch_1.bin``, ``data_batch_2.bin``, ... and ``test_batch.bin``.

Each file is nothing but records of 3073 bytes: a label from 0 to 9, then 1024 red, 1024 green and 1024 blue pixels of a
32 x 32 image, row by row. Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and
https://www.cs.toronto.edu/~kriz/cifar.html. The files have no header, so what can be checked is their lengths and
labels, and for the published dataset the numbers of images of each class.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipbridge.data.idx import MAX_BYTES, file_error

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
CLASSES = 10
TEST_BATCH = "test_batch.bin"
#: The folder inside the published archive.
ARCHIVE_FOLDER = "cifar-10-batches-bin"
_BATCH = re.compile(r"data_batch_([1-9][0-9]{0,5})\.bin")


@dataclass(frozen=True)
class Published:
    """A dataset in this format that is known by name: images of each class in each file, and how to get it.

    ``train`` and ``test`` are the numbers of images of one class, equal for all classes; ``files`` the number of
    training files, ``per_file`` of images in each.
    """

    name: str
    description: str
    files: int
    train: int
    test: int
    how_to_get: str

    @property
    def per_file(self) -> int:
        """The number of images of one training file."""
        return self.train * CLASSES // self.files


#: The datasets of this format that are found on this machine by name. None is downloaded.
PUBLISHED: Mapping[str, Published] = {
    "cifar10": Published(
        "cifar10",
        "50000 + 10000 images of 32 x 32 pixels in 3 colours, 10 kinds of things",
        5,
        5000,
        1000,
        "unpack cifar-10-binary.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) in $LIPBRIDGE_DATA",
    )
}


@dataclass(frozen=True)
class Batches:
    """The files of a folder in this format: those to train on in order, and the one to test on."""

    train: tuple[Path, ...]
    test: Path

    @property
    def bytes_on_disk(self) -> int:
        """The files' sizes together."""
        return sum(path.stat().st_size for path in (*self.train, self.test))


def has_batches(folder: Path) -> bool:
    """Whether any file of a folder is named as this format's are."""
    return bool(_numbered(folder)) or os.path.isfile(folder / TEST_BATCH)


def batches(folder: Path) -> Batches | str:
    """The files of a folder, or what it lacks, in words."""
    if not os.path.isdir(folder):
        return "not a folder" if os.path.exists(folder) else "no such folder"
    train = _numbered(folder)
    has_test = os.path.isfile(folder / TEST_BATCH)
    if not train and not has_test:
        return "no CIFAR-10 batches"
    missing = [number for number in range(1, max(train, default=1) + 1) if number not in train]
    if missing:
        return f"no data_batch_{missing[0]}.bin"
    if not has_test:
        return f"no {TEST_BATCH}"
    return Batches(tuple(train[number] for number in sorted(train)), folder / TEST_BATCH)


def _numbered(folder: Path) -> dict[int, Path]:
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):  # not a folder, or a name that no file can have
        return {}
    matches = [match for match in map(_BATCH.fullmatch, names) if match]
    paths = {int(match[1]): folder / match[0] for match in matches}
    return {number: path for number, path in paths.items() if os.path.isfile(path)}


def problem_with(found: Batches, published: Published) -> str:
    """What keeps files from being those of a published dataset, by their number and sizes; empty if nothing."""
    expected = [published.per_file] * published.files
    sizes = [path.stat().st_size for path in found.train]
    if sizes != [count * RECORD for count in expected]:
        return f"its training files are not {published.files} of {published.per_file} images each"
    test = published.test * CLASSES
    return "" if found.test.stat().st_size == test * RECORD else f"its {TEST_BATCH} has not {test} images"


def read_batches(paths: Sequence[Path], per_class: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images ``(n, 3072)`` and labels ``(n,)`` of one or more files together, as uint8.

    Args:
        paths: the files.
        per_class: how many images of each class there must be; None where that is not known.

    Raises:
        DataError: for a file that is missing, empty, not whole records or beyond ``MAX_BYTES`` together, a label above
            9, or other numbers of images than ``per_class``. Always one line that names the file.
    """
    room, parts = MAX_BYTES, list[NDArray[np.uint8]]()
    for path in paths:
        parts.append(_records(path, room))
        room -= parts[-1].nbytes
    labels = np.concatenate([part[:, 0] for part in parts])
    images = np.concatenate([part[:, 1:] for part in parts])
    if per_class is not None:
        counts = np.bincount(labels, minlength=CLASSES)
        wrong = np.flatnonzero(counts != per_class)
        if len(wrong):
            fact = f"class {wrong[0]} has {counts[wrong[0]]} images, it should have {per_class}"
            raise file_error(paths[0] if len(paths) == 1 else paths[0].parent, fact)
    return images, labels


def _records(path: Path, room: int) -> NDArray[np.uint8]:
    """The records ``(n, 3073)`` of one file, their labels checked."""
    # A pipe or a device would block or never end: only regular files are opened.
    if not os.path.isfile(path):
        raise file_error(path, "no such file")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0 or size % RECORD:
                raise file_error(path, f"{size} bytes are no whole number of records of {RECORD} bytes")
            if size > room:
                raise file_error(path, f"with the files before it, it is above the limit of {MAX_BYTES} bytes")
            data = file.read(size)
    except OSError as error:
        raise file_error(path, f"cannot be read ({error.strerror or error})") from None
    if len(data) != size:
        raise file_error(path, f"it became shorter while it was read, {len(data)} bytes of {size}")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    wrong = np.flatnonzero(records[:, 0] >= CLASSES)
    if len(wrong):
        fact = f"record {wrong[0]} has the label {records[wrong[0], 0]}, CIFAR-10 has 0 to {CLASSES - 1}"
        raise file_error(path, f"{fact}: the file is damaged or in another format")
    return records
