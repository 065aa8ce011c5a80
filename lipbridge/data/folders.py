"""Where a dataset is looked for on this machine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipbridge.data.catalog import COLLECTIONS, IDX_FILES, TEST_LABELS, Collection
from lipbridge.data.cifar import ARCHIVE_FOLDER, Batches, Published, batches, problem_with
from lipbridge.errors import DataError, MissingDependency

#: Environment variable with a folder of datasets.
DATA_VARIABLE = "LIPBRIDGE_DATA"

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class FoundFiles:
    """A folder and the path of each of the four IDX files in it."""

    folder: Path
    paths: Mapping[str, Path]

    @property
    def bytes_on_disk(self) -> int:
        return sum(path.stat().st_size for path in self.paths.values())


@dataclass(frozen=True)
class Search:
    """What came of a search: the files or None, and each folder that was looked in before, with what it lacks."""

    found: FoundFiles | None
    looked_in: tuple[str, ...]

    @property
    def places(self) -> str:
        return "; ".join(self.looked_in)


def as_folder(folder: StrPath) -> Path:
    """A path with a leading ``~`` replaced by the home folder."""
    return Path(os.path.expanduser(folder))


def import_pooch() -> Any:
    """The pooch module, imported when it is first needed.

    Raises:
        MissingDependency: pooch is not installed.
    """
    try:
        return importlib.import_module("pooch")
    except ImportError:
        raise MissingDependency("pooch", "pip install pooch") from None


def cache_folder(name: str) -> Path:
    """The folder of the user's cache that fetched files of a dataset are put in."""
    return Path(import_pooch().os_cache("lipbridge")) / name


def search_folders(collection: Collection, folder: StrPath | None = None) -> list[Path]:
    """The folders that a dataset is looked for in, in order.

    They are the given folder, ``$LIPBRIDGE_DATA`` (each its subfolder NAME, then itself), the user's cache, and the
    folder of the operating system's package.
    """
    # The subfolder goes first: a root may hold another dataset under the very same file names.
    given = [place for root in _roots(folder) for place in (root / collection.name, root)]
    return list(dict.fromkeys([*given, cache_folder(collection.name), *collection.system_folders]))


def cifar_folders(published: Published, folder: StrPath | None = None) -> list[Path]:
    """The folders that a dataset in CIFAR-10's format is looked for in, in order.

    They are the given folder, ``$LIPBRIDGE_DATA`` (each its subfolder NAME, that of the archive, then itself), and the
    user's cache (with the archive's folder in it, or without).
    """
    subfolders = (published.name, ARCHIVE_FOLDER)
    given = [place for root in _roots(folder) for place in (*(root / name for name in subfolders), root)]
    cache = cache_folder(published.name)
    return list(dict.fromkeys([*given, cache, cache / ARCHIVE_FOLDER]))


def _roots(folder: StrPath | None) -> list[Path]:
    return [as_folder(root) for root in (folder, os.environ.get(DATA_VARIABLE)) if root]


def search(collection: Collection, folders: Iterable[Path]) -> Search:
    """Go through folders until one holds the four files of a dataset. Their content is verified when it is read."""
    looked_in: list[str] = []
    for folder in folders:
        paths = idx_files(folder)
        problem = _problem(folder, paths, collection)
        if not problem:
            return Search(FoundFiles(folder, paths), tuple(looked_in))
        looked_in.append(f"{folder} ({problem})")
    return Search(None, tuple(looked_in))


def search_cifar(published: Published, places: Iterable[Path]) -> tuple[Batches | None, str]:
    """The files of the first folder that has those of a dataset, and each folder before with what it lacks."""
    looked_in: list[str] = []
    for folder in places:
        found = batches(folder)
        problem = found if isinstance(found, str) else problem_with(found, published)
        if isinstance(found, Batches) and not problem:
            return found, "; ".join(looked_in)
        looked_in.append(f"{folder} ({problem})")
    return None, "; ".join(looked_in)


def idx_files(folder: Path) -> dict[str, Path]:
    """The IDX files of a folder by name; a file that is not there has no entry.

    Both spellings count (``train-images-idx3-ubyte`` and ``train-images.idx3-ubyte``), each plain or with ``.gz``.
    """
    candidates = {
        name: [folder / f"{stem}{suffix}" for suffix in ("", ".gz") for stem in (name, name.replace("-idx", ".idx"))]
        for name in IDX_FILES
    }
    found = {name: next(filter(os.path.isfile, paths), None) for name, paths in candidates.items()}
    return {name: path for name, path in found.items() if path is not None}


def missing_files(folder: Path, paths: Mapping[str, Path]) -> str:
    """What a folder lacks to be an IDX dataset, in words; empty if nothing."""
    if not os.path.isdir(folder):
        return "not a folder" if os.path.exists(folder) else "no such folder"
    missing = [name for name in IDX_FILES if name not in paths]
    if len(missing) == len(IDX_FILES):
        return "no IDX files"
    return f"no {', '.join(missing)}" if missing else ""


def _problem(folder: Path, paths: Mapping[str, Path], collection: Collection) -> str:
    missing = missing_files(folder, paths)
    if missing:
        return missing
    others = [other for other in COLLECTIONS.values() if other.name != collection.name]
    return next((f"holds {other.name}" for other in others if _is_of(paths[TEST_LABELS], other)), "")


def _is_of(test_labels: Path, collection: Collection) -> bool:
    """Whether these are the test labels of a collection. They are small, and different for each of them."""
    try:
        collection.read(TEST_LABELS, test_labels)
    except DataError:
        return False
    return True
