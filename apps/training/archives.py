"""Adapters as one file: what others upload is unpacked with distrust, what is kept is packed for them."""

import bz2
import gzip
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from io import SEEK_END
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

CONFIG, WEIGHTS = NEEDED = ("adapter_config.json", "adapter_model.safetensors")
META, CARD = "meta.json", "README.md"
NOTICES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "NOTICE", "NOTICE.txt", "NOTICE.md")
ALLOWED = {*NEEDED, META, CARD, *NOTICES}
SMALL = 2**20  # bytes, of every file but the weights
MAX_MEMBERS = 2000  # a Trainer's folder has a dozen for each checkpoint, and macOS makes two of each
MAX_NAME = 300  # characters
HEADERS = 2**20  # bytes, of a tar file between two members
DIRECTORY = 2**20  # bytes, of a zip file's list of members
PIECE = 2**20
DRIVE = re.compile(r"[A-Za-z]:")


class BadArchive(Exception):
    """Why an archive is refused, by the name of its member."""


class Entry(NamedTuple):
    """A member. open: to be called before the next is asked for."""

    name: str
    size: int
    is_file: bool
    open: Callable[[], IO[bytes] | None]


def unpack(archive: IO[bytes], target: Path, limit: int) -> list[str]:
    """Write the files of an adapter, a .zip, .tar, .tar.gz or .tar.bz2 of at most `limit` bytes unpacked, to the
    directory `target`; returns the names of the members that are none and were skipped.

    The files lie in the folder of the archive that has an adapter_config.json and is nearest to the top: below it are a
    Trainer's checkpoints. Nothing is written outside `target`; raises `BadArchive`.
    """
    entries = _reader(archive, limit)
    try:
        names = [_checked(entry) for entry in entries()]
        folder = _folder(names)
        return _write(entries(), folder, target, limit)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
        ValueError,
    ) as error:
        raise BadArchive(f"It cannot be unpacked: {error}.") from error


def _reader(archive: IO[bytes], limit: int) -> Callable[[], Iterator[Entry]]:
    """What reads the members of an archive, as often as it is called."""
    archive.seek(0)
    head = archive.read(263)
    if head.startswith(b"PK\x03\x04"):
        return lambda: _zip_entries(archive)
    if head.startswith(b"\x1f\x8b"):
        return lambda: _tar_entries(gzip.GzipFile(fileobj=_rewound(archive)), limit)
    if head.startswith(b"BZh"):
        return lambda: _tar_entries(bz2.BZ2File(_rewound(archive)), limit)
    if head[257:262] == b"ustar":
        return lambda: _tar_entries(_rewound(archive), limit)
    raise BadArchive("It is neither a .zip nor a .tar, .tar.gz or .tar.bz2.")


def _rewound(archive: IO[bytes]) -> IO[bytes]:
    archive.seek(0)
    return archive


def _checked(entry: Entry) -> str:
    """The member's name, if it is one that may be unpacked, or skipped."""
    name = entry.name
    if name.startswith("/") or DRIVE.match(name) or ".." in name.split("/"):
        raise BadArchive(f"{name!r} leads out of the folder.")
    if not entry.is_file:
        raise BadArchive(f"{name!r} is a link or a device: only files are taken.")
    return name


def _folder(names: list[str]) -> str:
    """That of the adapter: beside the rest of what a packer or a trainer leaves."""
    folders = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == CONFIG and not _is_junk(name)}
    if not folders:
        raise _missing(CONFIG, names)
    depth = min(map(_depth, folders))
    nearest = sorted(folder for folder in folders if _depth(folder) == depth)
    if len(nearest) > 1:
        raise BadArchive(f"It has an adapter in {nearest[0]!r} and in {nearest[1]!r}: pack one of them.")
    if (weights := "/".join(filter(None, (nearest[0], WEIGHTS)))) not in names:
        raise _missing(WEIGHTS, names)
    return weights.removesuffix(WEIGHTS).rstrip("/")


def _depth(folder: str) -> int:
    return len([part for part in folder.split("/") if part != "."]) if folder else 0


def _missing(name: str, names: list[str]) -> BadArchive:
    others = sorted(other.rpartition("/")[2] for other in names if "adapter_model" in other and not _is_junk(other))
    found = f", but {others[0]}, which is not opened" if others and name == WEIGHTS else ""
    return BadArchive(f"It has no {name}{found}: pack the folder that PEFT's save_pretrained wrote, with safetensors.")


def _is_junk(name: str) -> bool:
    """What macOS adds to every archive."""
    *folders, last = name.split("/")
    return "__MACOSX" in folders or last.startswith("._")


def _write(entries: Iterator[Entry], folder: str, target: Path, limit: int) -> list[str]:
    skipped: list[str] = []
    left = limit
    for entry in entries:
        _checked(entry)
        where, _, name = entry.name.rpartition("/")
        if where != folder or name not in ALLOWED:
            skipped.append(entry.name)
            continue
        if (target / name).exists():
            raise BadArchive(f"{entry.name!r} is there twice.")
        left -= entry.size
        if left < 0 or (name != WEIGHTS and entry.size > SMALL):
            most = limit if left < 0 else SMALL
            raise BadArchive(f"{entry.name!r} takes it past {most / 2**20:g} MiB unpacked.")
        _copy(entry, target / name)
    return skipped


def _copy(entry: Entry, path: Path) -> None:
    file = entry.open()
    if file is None:
        raise BadArchive(f"{entry.name!r} cannot be read.")
    with file, path.open("xb") as copy:
        written = 0
        while piece := file.read(PIECE):
            written += len(piece)
            if written > entry.size:
                raise BadArchive(f"{entry.name!r} is larger than it says.")
            copy.write(piece)


def pack(files: Iterable[tuple[str, IO[bytes]]], target: IO[bytes]) -> None:
    """Write a .zip, in which nothing is compressed: weights hardly can be."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, file in files:
            with closing(file), archive.open(name, "w", force_zip64=True) as member:
                while piece := file.read(PIECE):
                    member.write(piece)


def _zip_entries(archive: IO[bytes]) -> Iterator[Entry]:
    _check_directory(archive)
    with zipfile.ZipFile(archive) as opened:
        for info in _counted(opened.infolist()):
            kind = info.external_attr >> 28  # of a Unix file's mode; 0 where the packer was no Unix
            name = _named(info.filename)
            if not name.endswith("/"):
                yield Entry(name, info.file_size, kind in (0, 0o10), partial(opened.open, info))


def _check_directory(archive: IO[bytes]) -> None:
    """Refuse a .zip whose list of members is long: it is read whole, and a member takes a hundred times its line."""
    size = archive.seek(0, SEEK_END)
    archive.seek(max(0, size - 2**16 - 64))
    end = archive.read()
    place = end.rfind(b"PK\x05\x06")
    if place < 0 or len(end) < place + 20:
        raise BadArchive("It cannot be unpacked: its end is missing.")
    if (
        b"PK\x06\x07" in end[max(0, place - 20) : place]
        or int.from_bytes(end[place + 12 : place + 16], "little") > DIRECTORY
    ):
        raise BadArchive(f"It has more than {MAX_MEMBERS} members.")


def _tar_entries(archive: Any, limit: int) -> Iterator[Entry]:
    bounded: Any = _Bounded(archive, limit)
    with tarfile.open(fileobj=bounded, mode="r|") as opened:
        for info in _counted(opened):
            bounded.expect(info.size)
            if not info.isdir():
                yield Entry(_named(info.name), info.size, info.isreg(), partial(opened.extractfile, info))


M = TypeVar("M")


def _counted(members: Iterable[M]) -> Iterator[M]:
    for number, member in enumerate(members):
        if number >= MAX_MEMBERS:
            raise BadArchive(f"It has more than {MAX_MEMBERS} members.")
        yield member


def _named(name: str) -> str:
    """With the separators of Unix, and without a dot for the top."""
    if len(name) > MAX_NAME:
        raise BadArchive(f"{name[:50]!r}… is a name of {len(name)} characters.")
    return name.replace("\\", "/").removeprefix("./")


class _Bounded:
    """Reads what an archive unpacks to, as long as that is what its headers say.

    tarfile reads headers whole, however long they are: between two members there may be `HEADERS` bytes. All together,
    with what is skipped, are at most twice `limit`: an optimiser's state is twice the weights, which hardly shrink.
    """

    def __init__(self, archive: IO[bytes], limit: int) -> None:
        self._archive, self._next, self._all = archive, HEADERS, 2 * limit + HEADERS

    def expect(self, size: int) -> None:
        self._next = size + HEADERS

    def read(self, size: int) -> bytes:
        data = self._archive.read(size)
        self._next -= len(data)
        self._all -= len(data)
        if self._next < 0 or self._all < 0:
            raise BadArchive("It grows past its limit when it is unpacked.")
        return data
