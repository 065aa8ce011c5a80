"""Datasets: two embedded ones, MNIST, Fashion-MNIST, CIFAR-10, any folder in their formats. Nothing is unpickled."""

from lipbridge.data.catalog import DATASET_NAMES
from lipbridge.data.datasets import Dataset, load_dataset
from lipbridge.data.digest import dataset_digest
from lipbridge.data.fetch import fetch_dataset
from lipbridge.data.idx import idx_shape, read_idx
from lipbridge.data.status import DatasetStatus, dataset_status

__all__ = [
    "DATASET_NAMES",
    "Dataset",
    "DatasetStatus",
    "dataset_digest",
    "dataset_status",
    "fetch_dataset",
    "idx_shape",
    "load_dataset",
    "read_idx",
]
