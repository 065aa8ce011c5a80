"""The datasets that are known by name: what they hold, where they come from, and the sums of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipbridge.data.cifar import PUBLISHED
from lipbridge.data.idx import read_idx

#: Datasets that come inside scikit-learn, each with its description.
EMBEDDED: Mapping[str, str] = {
    "digits": "1797 images of 8 x 8 pixels, 10 classes",
    "iris": "150 flowers, 4 lengths each, 3 classes",
}

#: The four files of an IDX dataset: training images and labels, test images and labels.
TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
IDX_FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


@dataclass(frozen=True)
class Collection:
    """A published dataset of four IDX files.

    ``shapes`` and ``sha256`` (of the uncompressed file) have one entry for each of ``IDX_FILES``. ``mirrors`` are
    base URLs that serve the files under their names plus ``.gz``. ``system_folders`` are where a package of the
    operating system installs them, and ``system_command`` installs that package.
    """

    name: str
    description: str
    classes: int
    shapes: Mapping[str, tuple[int, ...]]
    sha256: Mapping[str, str]
    mirrors: tuple[str, ...]
    system_folders: tuple[Path, ...] = ()
    system_command: str = ""

    @property
    def how_to_get(self) -> str:
        """The commands that bring the dataset to this machine."""
        fetch = f"lipbridge data fetch {self.name}"
        return f"{fetch} (or: {self.system_command})" if self.system_command else fetch

    def read(self, name: str, path: Path) -> NDArray[np.uint8]:
        """The items of one of the ``IDX_FILES``, its shape and SHA-256 verified.

        Raises:
            DataError: missing, damaged, or not this dataset's file of that name.
        """
        return read_idx(path, self.shapes[name], sha256=self.sha256[name])


_MNIST_SHAPES = {
    TRAIN_IMAGES: (60000, 28, 28),
    TRAIN_LABELS: (60000,),
    TEST_IMAGES: (10000, 28, 28),
    TEST_LABELS: (10000,),
}

#: Datasets of IDX files that are found on this machine or fetched.
COLLECTIONS: Mapping[str, Collection] = {
    "mnist": Collection(
        name="mnist",
        description="60000 + 10000 images of 28 x 28 pixels, 10 handwritten digits",
        classes=10,
        shapes=_MNIST_SHAPES,
        sha256={
            TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "fashion-mnist": Collection(
        name="fashion-mnist",
        description="60000 + 10000 images of 28 x 28 pixels, 10 kinds of clothes",
        classes=10,
        shapes=_MNIST_SHAPES,
        # Of the files in Debian's package; their compressed forms have the MD5 sums that the authors publish.
        sha256={
            TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        mirrors=(
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
        system_command="apt install dataset-fashion-mnist",
    ),
}

#: Every name that ``load_dataset`` knows.
DATASET_NAMES: tuple[str, ...] = (*EMBEDDED, *COLLECTIONS, *PUBLISHED)
