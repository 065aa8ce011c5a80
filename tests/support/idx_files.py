"""Small IDX datasets on disk."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from lipbridge.data.catalog import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS


def write_dataset(folder: Path, train: int = 12, test: int = 6, seed: int = 0) -> Path:
    """``train`` + ``test`` images of 4 x 5 pixels in three classes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for name, labels, count in ((TRAIN_IMAGES, TRAIN_LABELS, train), (TEST_IMAGES, TEST_LABELS, test)):
        for file, array in ((name, rng.integers(0, 256, (count, 4, 5))), (labels, (np.arange(count) + 1) % 3)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
            (folder / file).write_bytes(header + array.astype(np.uint8).tobytes())
    return folder
