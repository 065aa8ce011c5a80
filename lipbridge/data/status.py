"""Which datasets are on this machine, and how to get the others."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from lipbridge.data.catalog import COLLECTIONS, EMBEDDED, Collection
from lipbridge.data.cifar import PUBLISHED, Published
from lipbridge.data.folders import cifar_folders, search, search_cifar, search_folders


@dataclass(frozen=True)
class DatasetStatus:
    """One row of ``lipbridge data list``.

    ``where`` is the folder or package that holds the dataset, None if it is not on this machine. ``bytes_on_disk`` is
    the size of its files there, None where it is not made of files. ``get`` is the command that gets it, empty if
    there is nothing to do.
    """

    name: str
    description: str
    where: str | None
    bytes_on_disk: int | None
    get: str


def dataset_status() -> list[DatasetStatus]:
    """One row for each dataset known by name. Files are looked for, not read: loading verifies them.

    Raises:
        MissingDependency: pooch is not installed.
    """
    embedded = [_embedded_status(name, description) for name, description in EMBEDDED.items()]
    batches = map(_published_status, PUBLISHED.values())
    return [*embedded, *map(_collection_status, COLLECTIONS.values()), *batches]


def _embedded_status(name: str, description: str) -> DatasetStatus:
    if importlib.util.find_spec("sklearn") is None:
        return DatasetStatus(name, description, None, None, "pip install scikit-learn")
    return DatasetStatus(name, description, "scikit-learn", None, "")


def _collection_status(collection: Collection) -> DatasetStatus:
    found = search(collection, search_folders(collection)).found
    if found is None:
        return DatasetStatus(collection.name, collection.description, None, None, collection.how_to_get)
    return DatasetStatus(collection.name, collection.description, str(found.folder), found.bytes_on_disk, "")


def _published_status(published: Published) -> DatasetStatus:
    found, _ = search_cifar(published, cifar_folders(published))
    if found is None:
        return DatasetStatus(published.name, published.description, None, None, published.how_to_get)
    return DatasetStatus(published.name, published.description, str(found.test.parent), found.bytes_on_disk, "")
