"""Where adapters are kept: a folder for each digest, on a file system or in S3 (LYO_ADAPTERS_STORAGE).

Engines read LYO_ADAPTERS_DIR. In S3's case that is a worker's own, to which it fetches what it has to serve.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage, storages
from django.utils import timezone

from lyo import env

INCOMING = "incoming"  # holds what was uploaded and is still to be checked, in a folder for each upload


def storage() -> Storage:
    return storages["adapters"]


def names(folder: str) -> list[str]:
    """Of the files in a folder of the store; none where there is no such folder."""
    try:
        return sorted(storage().listdir(folder)[1])
    except FileNotFoundError:
        return []


def put(folder: str, source: Path) -> None:
    """Copy the files of the directory `source` to a folder of the store; those that are there stay."""
    there = set(names(folder))
    for path in sorted(source.iterdir()):
        if path.name not in there:
            with path.open("rb") as file:
                storage().save(f"{folder}/{path.name}", File(file))


def get(folder: str, target: Path) -> None:
    """Copy the files of a folder of the store to the directory `target`."""
    for name in names(folder):
        with storage().open(f"{folder}/{name}") as file, (target / name).open("wb") as copy:
            shutil.copyfileobj(file, copy)


def uploads(before: datetime) -> list[str]:
    """The folders of uploads in which nothing has changed since `before`."""
    try:
        folders = [f"{INCOMING}/{name}" for name in storage().listdir(INCOMING)[0]]
    except FileNotFoundError:
        return []
    return [folder for folder in folders if _changed_at(folder) < before]


def _changed_at(folder: str) -> datetime:
    """When the newest file of a folder was written; where there is none, the folder. Now, if it has just gone."""
    try:
        return max(storage().get_modified_time(f"{folder}/{name}".rstrip("/")) for name in names(folder) or [""])
    except FileNotFoundError:
        return timezone.now()


def delete(folder: str) -> None:
    for name in [*names(folder), ""]:
        storage().delete(f"{folder}/{name}".rstrip("/"))


def keep(digest: str) -> None:
    """Store the adapter that is in LYO_ADAPTERS_DIR, where that is not the store itself."""
    if not isinstance(storage(), FileSystemStorage):
        put(digest, env.ADAPTERS_DIR / digest)


def fetch(digest: str) -> None:
    """Have the adapter in LYO_ADAPTERS_DIR, if the store has it. Others may fetch it at the same time."""
    target = env.ADAPTERS_DIR / digest
    if target.is_dir() or isinstance(storage(), FileSystemStorage) or not names(digest):
        return
    with beside(target) as folder:
        get(digest, folder)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new folder that gets its name `target` when it is complete, unless another was first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".unfinished-") as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
