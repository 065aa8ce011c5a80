"""A dataset in memory, and the one function that loads it by name or from a folder."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipbridge import checks
from lipbridge.data.catalog import (
    COLLECTIONS,
    DATASET_NAMES,
    EMBEDDED,
    IDX_FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Collection,
)
from lipbridge.data.cifar import CLASSES, PUBLISHED, SHAPE, Batches, Published, batches, has_batches, read_batches
from lipbridge.data.folders import (
    FoundFiles,
    StrPath,
    as_folder,
    cifar_folders,
    idx_files,
    missing_files,
    search,
    search_cifar,
    search_folders,
)
from lipbridge.data.idx import file_error, idx_shape, read_idx
from lipbridge.errors import DataError, InvalidArgument, MissingDependency, UnknownName

#: Seed of the split of the embedded datasets: part of their definition, so never changed.
_SPLIT_SEED = 0
_TEST_SHARE = 0.25
#: What a name ends with that asks for a part of the training examples in the test set's place, and one in how many.
VALIDATION = ":validation"
_HELD_OUT = 6


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A classification dataset in memory, on the CPU. It checks itself when it is made.

    ``train_inputs`` [n, d] and ``test_inputs`` [m, d] hold one flattened example a row, with d the product of
    ``input_shape``; ``train_labels`` [n] and ``test_labels`` [m] are int64 in 0..classes-1. A Lipschitz constant is per
    unit of the inputs: for images one unit is the step from black (0) to white (1) of one pixel; ``units`` says it for
    each dataset. ``source`` is where the data was read.

    Numpy arrays are taken too, and inputs ``[n, *input_shape]``, which are flattened. Inputs are float32 or float64 and
    are kept as they are (float16 and bfloat16 become float32, exactly; if one part is float64, both are);
    :func:`lipbridge.fit` converts them to the dtype of the module. Labels of any whole type become int64.

    Raises:
        InvalidArgument: for a part that is empty, inputs and labels of different lengths, labels that are no whole
            numbers or lie outside 0..classes-1, NaN or infinite inputs, inputs of whole numbers (whose unit is
            unclear), shapes that do not fit ``input_shape``, or less than two classes.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int
    input_shape: tuple[int, ...]
    description: str = ""
    units: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for word in ("name", "description", "units", "source"):
            checks.instance(getattr(self, word), str, word, "be text")
        found: dict[str, object] = {
            "classes": checks.whole(self.classes, "classes", 2, 2**31),
            "input_shape": checks.shape(self.input_shape, "input_shape"),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        parts = {part: self._part(part) for part in ("train", "test")}
        wide = torch.promote_types(parts["train"][0].dtype, parts["test"][0].dtype)
        for part, (inputs, labels) in parts.items():
            object.__setattr__(self, f"{part}_inputs", inputs.to(wide))
            object.__setattr__(self, f"{part}_labels", labels)

    def _part(self, part: str) -> tuple[Tensor, Tensor]:
        """Inputs ``[n, d]`` and labels ``[n]`` of ``train`` or ``test``, checked."""
        name = f"{part}_inputs"
        inputs = checks.tensor(getattr(self, name), name)
        rows = inputs.shape[0] if inputs.ndim else 0
        if not rows:
            raise InvalidArgument(name, "hold at least one example", tuple(inputs.shape))
        if tuple(inputs.shape[1:]) not in ((self.features,), self.input_shape):
            spelt = ", ".join(map(str, self.input_shape))
            words = f"have shape (n, {self.features}), one flattened example a row, for input_shape ({spelt})"
            raise InvalidArgument(name, words, tuple(inputs.shape))
        inputs = checks.floating(inputs, name).reshape(rows, -1).cpu()
        name = f"{part}_labels"
        return inputs, checks.labels(getattr(self, name), name, rows, self.classes).cpu()

    @property
    def features(self) -> int:
        """The number d of features of one example."""
        return math.prod(self.input_shape)

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, train={len(self.train_labels)}, test={len(self.test_labels)}, "
            f"input_shape={self.input_shape}, classes={self.classes}, source={self.source!r})"
        )


def load_dataset(name_or_folder: StrPath, *, folder: StrPath | None = None) -> Dataset:
    """Load a dataset by its name, or from any folder that holds four IDX files or batches of CIFAR-10.

    - ``digits``: 1347 + 450 images of 8 x 8 pixels from scikit-learn, pixels k/16 in [0, 1].
    - ``iris``: 112 + 38 flowers from scikit-learn, four lengths in units of 8 cm, so all in [0, 1] and in proportion.
    - ``mnist``, ``fashion-mnist``: 60000 + 10000 images of 28 x 28 pixels, pixels k/255 in [0, 1]. Looked for in
      ``folder``, ``$LIPBRIDGE_DATA`` (each its subfolder of that name, then itself), the user's cache, and for
      fashion-mnist the folder of Debian's package; the SHA-256 of every file is verified.
    - a folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
      ``t10k-labels-idx1-ubyte`` (also as ``train-images.idx3-ubyte``, also with ``.gz``), pixels k/255 in [0, 1];
      the classes are 0 to the largest training label.
    - ``cifar10``: 50000 + 10000 colour images of 32 x 32 pixels, pixels k/255 in [0, 1], from CIFAR-10's binary files.
      Looked for in the same folders as mnist, also in their subfolder ``cifar-10-batches-bin``; sizes, labels and the
      number of images of each class are verified. Inputs are red, green and blue planes, one after the other.
    - a folder with ``data_batch_1.bin``, ... and ``test_batch.bin`` in that format, with any number of images.
    - any of these with ``:validation`` after it, e.g. ``mnist:validation``: a sixth of the training examples, always
      the same, stands as the test set and the others train. Settings are chosen there, so that the test set, which is
      left alone, still says something of them.

    The embedded datasets are split 75/25, stratified by class, always the same way.

    Raises:
        UnknownName: neither a name nor a folder.
        InvalidArgument: ``folder`` given for a dataset that is not looked for in folders; or no name or path.
        DataError: not found (says where it was looked for and the command that fetches it), damaged or inconsistent.
        MissingDependency: scikit-learn or pooch is needed and not installed.
    """
    # A name stays as it was typed: `Path` would drop the slash at its end, which says that it is a folder.
    checks.path(name_or_folder, "name_or_folder")
    name = os.fsdecode(name_or_folder)
    folder = None if folder is None else checks.path(folder, "folder")
    if name.endswith(VALIDATION) and not os.path.isdir(name):
        return _held_out(load_dataset(name.removesuffix(VALIDATION), folder=folder), name)
    if name in COLLECTIONS:
        return _load_collection(COLLECTIONS[name], folder)
    if name in PUBLISHED:
        return _load_published(PUBLISHED[name], folder)
    if folder is not None:
        named = ", ".join([*COLLECTIONS, *PUBLISHED])
        raise InvalidArgument("folder", f"be left out for anything but {named}", os.fspath(folder))
    if name in EMBEDDED:
        return _load_digits() if name == "digits" else _load_iris()
    return _load_folder(name)


def _held_out(dataset: Dataset, name: str) -> Dataset:
    """The training examples alone, a sixth of them as the test set, drawn by numpy's frozen generator."""
    count = len(dataset.train_labels)
    held = max(1, count // _HELD_OUT)
    if held == count:
        raise DataError(f"{name}: there is one training example, and two are needed to hold one out.")
    order = torch.as_tensor(np.random.RandomState(_SPLIT_SEED).permutation(count))
    test, train = order[:held].sort().values, order[held:].sort().values
    return replace(
        dataset,
        name=f"{dataset.name}{VALIDATION}",
        train_inputs=dataset.train_inputs[train],
        train_labels=dataset.train_labels[train],
        test_inputs=dataset.train_inputs[test],
        test_labels=dataset.train_labels[test],
        description=f"{count - held} + {held} of the training examples of: {dataset.description}",
    )


def _load_collection(collection: Collection, folder: StrPath | None) -> Dataset:
    result = search(collection, search_folders(collection, folder))
    if result.found is None:
        raise DataError(
            f"Dataset {collection.name} is not on this machine. Looked in: {result.places}. "
            f"Get it with: {collection.how_to_get}"
        )
    return _read_collection(collection, result.found)


def _read_collection(collection: Collection, files: FoundFiles) -> Dataset:
    """Read a known dataset from its files, with every shape and SHA-256 verified."""
    arrays = {name: collection.read(name, path) for name, path in files.paths.items()}
    return _assemble(collection.name, collection.description, collection.classes, arrays, files)


def _load_folder(name: str) -> Dataset:
    folder = as_folder(name)
    if not os.path.exists(folder) and not os.path.dirname(name):
        raise UnknownName("dataset", name, [*DATASET_NAMES, "or a folder of IDX or CIFAR-10 files"])
    paths = idx_files(folder)
    if has_batches(folder):
        if paths:
            raise file_error(folder, "it holds IDX files and CIFAR-10 batches, it should hold one dataset")
        return _load_batches(folder)
    missing = missing_files(folder, paths)
    if missing:
        words = f"{missing}. A dataset is a folder with {', '.join(IDX_FILES)}, each plain or .gz"
        raise file_error(folder, f"{words}, or with data_batch_1.bin, ... and test_batch.bin of CIFAR-10")
    train_images, train_labels = _read_pair(paths[TRAIN_IMAGES], paths[TRAIN_LABELS], (None, None))
    height, width = train_images.shape[1:]
    test_images, test_labels = _read_pair(paths[TEST_IMAGES], paths[TEST_LABELS], (height, width))
    arrays = {
        TRAIN_IMAGES: train_images,
        TRAIN_LABELS: train_labels,
        TEST_IMAGES: test_images,
        TEST_LABELS: test_labels,
    }
    classes = int(train_labels.max()) + 1
    if classes < 2:
        raise file_error(paths[TRAIN_LABELS], "every label is 0, at least two classes are needed")
    description = f"{len(train_labels)} + {len(test_labels)} images of {height} x {width} pixels, {classes} classes"
    return _assemble(folder.resolve().name, description, classes, arrays, FoundFiles(folder, paths))


def _load_published(published: Published, folder: StrPath | None) -> Dataset:
    found, places = search_cifar(published, cifar_folders(published, folder))
    if found is None:
        raise DataError(
            f"Dataset {published.name} is not on this machine. Looked in: {places}. To get it, {published.how_to_get}."
        )
    return _assemble_batches(published.name, found, (published.train, published.test))


def _load_batches(folder: Path) -> Dataset:
    found = batches(folder)
    if isinstance(found, str):
        raise file_error(folder, f"{found}. CIFAR-10 is a folder with data_batch_1.bin, ... and test_batch.bin")
    return _assemble_batches(folder.resolve().name, found)


def _assemble_batches(name: str, files: Batches, per_class: tuple[int | None, int | None] = (None, None)) -> Dataset:
    train_images, train_labels = read_batches(files.train, per_class[0])
    test_images, test_labels = read_batches([files.test], per_class[1])
    channels, height, width = SHAPE
    sizes = f"{len(train_labels)} + {len(test_labels)} images of {height} x {width} pixels in {channels} colours"
    return Dataset(
        name=name,
        train_inputs=_pixels(train_images),
        train_labels=_labels(train_labels),
        test_inputs=_pixels(test_images),
        test_labels=_labels(test_labels),
        classes=CLASSES,
        input_shape=SHAPE,
        description=f"{sizes}, {CLASSES} classes",
        units="each colour of each pixel in [0, 1], black to full",
        source=str(files.test.parent),
    )


def _read_pair(
    images: Path, labels: Path, size: tuple[int | None, int | None]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    # The headers are compared first: a mismatch costs no reading, however large the files claim to be.
    image_count, label_count = idx_shape(images)[0], idx_shape(labels)[0]
    if image_count != label_count:
        raise file_error(images, f"it holds {image_count} images, but {labels.name} holds {label_count} labels")
    return read_idx(images, (None, *size)), read_idx(labels, (None,))


def _assemble(
    name: str, description: str, classes: int, arrays: Mapping[str, NDArray[np.uint8]], files: FoundFiles
) -> Dataset:
    for part in (TRAIN_LABELS, TEST_LABELS):
        largest = int(arrays[part].max())
        if largest >= classes:
            raise file_error(files.paths[part], f"label {largest} is outside 0..{classes - 1}")
    _, height, width = arrays[TRAIN_IMAGES].shape
    return Dataset(
        name=name,
        train_inputs=_pixels(arrays[TRAIN_IMAGES]),
        train_labels=_labels(arrays[TRAIN_LABELS]),
        test_inputs=_pixels(arrays[TEST_IMAGES]),
        test_labels=_labels(arrays[TEST_LABELS]),
        classes=classes,
        input_shape=(1, height, width),
        description=description,
        units="pixels in [0, 1], black to white",
        source=str(files.folder),
    )


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    """Bytes [n, height, width] to float32 [n, height * width] in [0, 1]."""
    return torch.as_tensor(images.reshape(len(images), -1)).to(torch.float32).div_(255.0)


def _labels(labels: NDArray[Any]) -> Tensor:
    return torch.as_tensor(labels.astype(np.int64))


def _load_digits() -> Dataset:
    return _load_embedded("digits", 16.0, (1, 8, 8), "pixels in [0, 1], black to white")


def _load_iris() -> Dataset:
    # One factor for all four lengths keeps their proportions: a distance of 1 is 8 cm, in any direction.
    return _load_embedded("iris", 8.0, (4,), "lengths in units of 8 cm, in [0, 1]")


def _load_embedded(name: str, unit: float, input_shape: tuple[int, ...], units: str) -> Dataset:
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
        selection: Any = importlib.import_module("sklearn.model_selection")
    except ImportError:
        raise MissingDependency("scikit-learn", "pip install scikit-learn") from None
    raw: Any = getattr(datasets, f"load_{name}")()
    train_x, test_x, train_y, test_y = selection.train_test_split(
        raw.data / unit, raw.target, test_size=_TEST_SHARE, random_state=_SPLIT_SEED, stratify=raw.target
    )
    return Dataset(
        name=name,
        train_inputs=torch.as_tensor(train_x).to(torch.float32),
        train_labels=_labels(train_y),
        test_inputs=torch.as_tensor(test_x).to(torch.float32),
        test_labels=_labels(test_y),
        classes=len(raw.target_names),
        input_shape=input_shape,
        description=EMBEDDED[name],
        units=units,
        source="scikit-learn",
    )
