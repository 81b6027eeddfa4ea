"""Adapters as one file: what others upload is unpacked with distrust, what is kept is packed for them."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any, NamedTuple

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
CONFIG, WEIGHTS = NEEDED = ("adapter_config.json", "adapter_model.safetensors")
META, CARD = "meta.json", "README.md"
NOTICES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "NOTICE", "NOTICE.txt", "NOTICE.md")
ALLOWED = {*NEEDED, META, CARD, *NOTICES}
MAX_MEMBERS = 64
HEADERS = 2**20  # bytes, of a tar file beside its members
PIECE = 2**20


class BadArchive(Exception):
    """Why an archive is refused, by the name of its member."""


class Entry(NamedTuple):
    name: str
    size: int
    is_file: bool
    file: IO[bytes] | None


def unpack(archive: IO[bytes], target: Path, limit: int) -> None:
    """Write the files of an adapter, a .zip or .tar.gz of at most `limit` bytes unpacked, to the directory `target`.

    They may lie in one folder of the archive. Nothing is written outside `target`; raises `BadArchive`.
    """
    mark = archive.read(4)
    archive.seek(0)
    try:
        if mark == ZIP:
            _write(_zip_entries(archive), target, limit)
        elif mark.startswith(GZIP):
            _write(_tar_entries(archive, limit), target, limit)
        else:
            raise BadArchive("It is neither a .zip nor a .tar.gz.")
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
    ) as error:
        raise BadArchive(f"It cannot be unpacked: {error}.") from error
    if missing := [name for name in NEEDED if not (target / name).exists()]:
        raise BadArchive(f"It has no {missing[0]}: pack the folder that PEFT's save_pretrained wrote.")


def pack(files: Iterable[tuple[str, IO[bytes]]], target: IO[bytes]) -> None:
    """Write a .zip, in which nothing is compressed: weights hardly can be."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, file in files:
            with closing(file), archive.open(name, "w", force_zip64=True) as member:
                while piece := file.read(PIECE):
                    member.write(piece)


def _write(entries: Iterator[Entry], target: Path, limit: int) -> None:
    folders: set[str] = set()
    left = limit
    for count, entry in enumerate(entries):
        if count >= MAX_MEMBERS:
            raise BadArchive(f"It has more than {MAX_MEMBERS} members.")
        folder, _, name = entry.name.rpartition("/")
        if entry.name.startswith("/") or "\\" in entry.name or ".." in entry.name.split("/"):
            raise BadArchive(f"{entry.name!r} leads out of the folder.")
        if not entry.is_file:
            raise BadArchive(f"{entry.name!r} is a link or a device: only files are taken.")
        if name not in ALLOWED:
            raise BadArchive(f"{entry.name!r} is not a file of an adapter, which are {', '.join(sorted(ALLOWED))}.")
        folders.add(folder)
        if "/" in folder.removeprefix("./") or len(folders) > 1 or (target / name).exists():
            raise BadArchive(f"{entry.name!r} is not in one folder with the others, each once.")
        left -= entry.size
        if left < 0 or entry.file is None:
            raise BadArchive(f"{entry.name!r} takes it past {limit / 2**20:g} MiB unpacked.")
        with (target / name).open("xb") as copy:
            written = 0
            while piece := entry.file.read(PIECE):
                written += len(piece)
                if written > entry.size:
                    raise BadArchive(f"{entry.name!r} is larger than it says.")
                copy.write(piece)


def _zip_entries(archive: IO[bytes]) -> Iterator[Entry]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = info.external_attr >> 28  # of a Unix file's mode; 0 where the packer was no Unix
            if not info.is_dir():
                with opened.open(info) as file:
                    yield Entry(info.filename, info.file_size, kind in (0, 0o10), file)


def _tar_entries(archive: IO[bytes], limit: int) -> Iterator[Entry]:
    bounded: Any = _Bounded(archive, limit + HEADERS)
    with tarfile.open(fileobj=bounded, mode="r|") as opened:
        for info in opened:
            if not info.isdir():
                yield Entry(info.name, info.size, info.isreg(), opened.extractfile(info) if info.isreg() else None)


class _Bounded(GzipFile):
    """Refuses to unpack more than `limit` bytes: tarfile reads headers whole, however long they say they are."""

    def __init__(self, archive: IO[bytes], limit: int) -> None:
        super().__init__(fileobj=archive, mode="rb")
        self._left = limit

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._left -= len(data)
        if self._left < 0:
            raise BadArchive("It grows past its limit when it is unpacked.")
        return data
