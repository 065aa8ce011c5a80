"""Download a known dataset from public mirrors, verified before it is put in place."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipbridge.data import folders
from lipbridge.data.catalog import COLLECTIONS, EMBEDDED, IDX_FILES, Collection
from lipbridge.data.cifar import PUBLISHED
from lipbridge.data.folders import StrPath
from lipbridge.data.idx import file_error
from lipbridge.disk.temporary import temporary_folder
from lipbridge.errors import DataError, UnknownName

_TIMEOUT_SECONDS = 20
#: The largest download is 26 MB; a mirror that sends more than this is not serving the dataset.
_MAX_DOWNLOAD = 64 << 20


def fetch_dataset(
    name: str, folder: StrPath | None = None, *, mirrors: Sequence[str] | None = None, progress: bool = False
) -> Path:
    """Make sure that ``mnist`` or ``fashion-mnist`` is on this machine, and return the folder that holds it.

    With ``folder``, the files that it lacks are put there; a file that it has and that is not of the dataset is an
    error, and left alone. Without, a copy anywhere on the search path of :func:`load_dataset` will do, and a download
    goes to the user's cache, where a damaged file is replaced.

    ``mirrors`` are base URLs, tried in turn; the default is the public ones. ``progress`` shows a bar on stderr.
    Each file is verified by SHA-256 before it is moved into place in one step; on failure nothing is left behind.

    Raises:
        UnknownName: no such dataset.
        DataError: no mirror served it (says which URLs failed, why, and the folders looked in); the target folder
            cannot be written; a file of ``folder``, or of a folder that is searched before the cache, is damaged or
            of another dataset; nothing to fetch for an embedded dataset, or for cifar10.
        MissingDependency: pooch is not installed.
    """
    if name in EMBEDDED:
        raise DataError(f"Dataset {name} comes with scikit-learn: there is nothing to fetch.")
    if name in PUBLISHED:
        raise DataError(f"Dataset {name} is not downloaded by lipbridge. To get it, {PUBLISHED[name].how_to_get}.")
    if name not in COLLECTIONS:
        raise UnknownName("dataset", name, COLLECTIONS)
    collection = COLLECTIONS[name]
    target = folders.cache_folder(name) if folder is None else folders.as_folder(folder)
    search = folders.search(collection, folders.search_folders(collection) if folder is None else [target])
    if search.found is not None and search.found.folder != target:
        for file, path in search.found.paths.items():
            collection.read(file, path)
        return search.found.folder
    needed = _needed(collection, target, replace=folder is None)
    if not needed:
        return target
    urls = collection.mirrors if mirrors is None else mirrors
    try:
        failures = _download_all(collection, needed, target, urls, progress)
    except OSError as error:
        raise file_error(target, f"cannot be written ({error.strerror or error})") from None
    if failures is not None:
        raise DataError(
            f"Dataset {name} could not be fetched. Failed: {'; '.join(failures) or 'no mirrors given'}. "
            f"Looked in: {search.places or target}."
        )
    return target


def _needed(collection: Collection, target: Path, *, replace: bool) -> list[str]:
    """The files to download: those that are not there, and with ``replace`` those that are not right."""
    present = folders.idx_files(target)
    needed = [name for name in IDX_FILES if name not in present]
    for name, path in present.items():
        try:
            collection.read(name, path)
        except DataError as error:
            # Outside of our own cache it may be somebody's data under the usual names: never written over.
            if not replace:
                raise DataError(f"{error} Move it away to fetch {collection.name} into this folder.") from None
            needed.append(name)
    return needed


def _download_all(
    collection: Collection, needed: Sequence[str], target: Path, mirrors: Sequence[str], progress: bool
) -> list[str] | None:
    """Download and put in place. None when done, else what failed at each mirror."""
    # Staged on the target's own file system, so that the last step is a rename, and outside of it, so that a failure
    # leaves not even an empty folder.
    with temporary_folder(".lipbridge-fetch-", _existing_ancestor(target)) as staging:
        failures: list[str] = []
        for mirror in mirrors:
            try:
                _download_missing(collection, needed, mirror, staging, progress)
            except DataError as error:
                failures.append(str(error))
                continue
            _move(needed, staging, target)
            return None
    return failures


def _existing_ancestor(folder: Path) -> Path:
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if os.path.isdir(place))


def _download_missing(
    collection: Collection, needed: Sequence[str], mirror: str, staging: Path, progress: bool
) -> None:
    """Download from one mirror the needed files that are not staged yet."""
    for name in needed:
        staged = staging / f"{name}.gz"
        if not staged.exists():
            _download(collection, name, f"{mirror.rstrip('/')}/{name}.gz", staged, progress)


def _download(collection: Collection, name: str, url: str, staged: Path, progress: bool) -> None:
    part = staged.with_suffix(".part")
    # The downloader itself, not pooch.retrieve: that one logs to stderr and knows sums of compressed files only, which
    # differ between mirrors.
    downloader: Any = folders.import_pooch().HTTPDownloader(
        progressbar=progress, chunk_size=1 << 16, timeout=_TIMEOUT_SECONDS
    )
    with _LimitedFile(part, "wb") as file:
        try:
            downloader(url, file, None)
        except Exception as error:  # whatever the network stack raises is a reason to try the next mirror
            raise DataError(f"{url} ({_reason(error)})") from None
    try:
        collection.read(name, part)
    except DataError as error:
        raise DataError(f"{url} ({str(error).removeprefix(f'{part}: ').rstrip('.')})") from None
    os.replace(part, staged)


class _LimitedFile(io.FileIO):
    """A file that refuses to grow without end."""

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > _MAX_DOWNLOAD:
            raise DataError(f"it sends more than {_MAX_DOWNLOAD} bytes")
        return super().write(data)


def _reason(error: Exception) -> str:
    """A few words for the errors that users meet; the network stack's own run over many lines."""
    response: Any = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    if isinstance(error, DataError):
        return str(error)
    words = {"ConnectionError": "no connection", "ConnectTimeout": "timed out", "ReadTimeout": "timed out"}
    kind = type(error).__name__
    return words.get(kind) or f"{kind}: {' '.join(str(error).split())[:200]}"


def _move(needed: Sequence[str], staging: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    damaged = folders.idx_files(target)
    for name in needed:
        placed = target / f"{name}.gz"
        os.replace(staging / placed.name, placed)
        # A damaged file under another spelling would be found first.
        if name in damaged and damaged[name] != placed:
            damaged[name].unlink()
