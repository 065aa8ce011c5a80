"""What names the contents of a dataset: equal for equal numbers, wherever its files are."""

from __future__ import annotations

import hashlib
import json
import sys
import weakref

import numpy as np

from lipbridge.data.datasets import Dataset

#: A dataset cannot change, so its digest is computed once.
_KNOWN: weakref.WeakKeyDictionary[Dataset, str] = weakref.WeakKeyDictionary()


def dataset_digest(dataset: Dataset) -> str:
    """The SHA-256, in 64 hex digits, of the inputs and labels with their shapes and dtypes, and the number of classes.

    Neither name nor place counts. Bytes are little-endian, whatever the machine.
    """
    if dataset not in _KNOWN:
        _KNOWN[dataset] = _digest(dataset)
    return _KNOWN[dataset]


def _digest(dataset: Dataset) -> str:
    tensors = [dataset.train_inputs, dataset.train_labels, dataset.test_inputs, dataset.test_labels]
    shapes = [[str(tensor.dtype), *tensor.shape] for tensor in tensors]
    total = hashlib.sha256(json.dumps([shapes, dataset.classes, list(dataset.input_shape)]).encode())
    for tensor in tensors:
        array = tensor.contiguous().numpy()
        native = array if sys.byteorder == "little" else array.byteswap()
        total.update(native.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
