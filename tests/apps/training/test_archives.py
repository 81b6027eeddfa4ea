"""Archives of adapters from anywhere: what is taken, and that nothing else is written."""

import gzip
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from apps.training.archives import BadArchive, pack, unpack

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 100}
LIMIT = 2**16


def zipped(files: dict[str, bytes], prefix: str = "") -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return target.getvalue()


def tarred(files: dict[str, bytes], prefix: str = "", extra: tarfile.TarInfo | None = None) -> bytes:
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        if prefix:
            folder = tarfile.TarInfo(prefix)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        if extra:
            archive.addfile(extra)
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return target.getvalue()


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def zip_link() -> bytes:
    info = zipfile.ZipInfo("meta.json")
    info.external_attr = 0o120777 << 16
    target = BytesIO(zipped(FILES))
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    return target.getvalue()


def lying_zip() -> bytes:
    """Its weights are a thousand times what they say."""
    content = bytearray(zipped({**FILES, "meta.json": b"1" * 70_000}))
    return bytes(content).replace((70_000).to_bytes(4, "little"), (70).to_bytes(4, "little"))


def long_named_tar() -> bytes:
    """A header that says that the next member's name is of a hundred megabytes."""
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 100 * 2**20
    target = BytesIO()
    with gzip.open(target, "wb") as file:
        file.write(head.tobuf(tarfile.GNU_FORMAT))
        for _ in range(100):
            file.write(b"a" * 2**20)
    return target.getvalue()


def encrypted_zip() -> bytes:
    content = bytearray(zipped(FILES))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


@pytest.mark.parametrize("prefix", ["", "./", "maths/", "./maths/"])
@pytest.mark.parametrize("packed", [zipped, tarred])
def test_an_adapter_is_unpacked_from_the_top_or_from_one_folder(
    packed: Callable[..., bytes], prefix: str, tmp_path: Path
) -> None:
    files = {**FILES, "meta.json": b"{}", "README.md": b"# A", "NOTICE": b"n"}
    unpack(BytesIO(packed(files, prefix)), tmp_path, LIMIT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (zipped({"../adapter_config.json": b""}), "'../adapter_config.json' leads out"),
        (zipped({"/adapter_config.json": b""}), "'/adapter_config.json' leads out"),
        (zipped({"..\\adapter_config.json": b""}), "leads out"),
        (tarred({"a/../../adapter_config.json": b""}), "'a/../../adapter_config.json' leads out"),
        (tarred({"/adapter_config.json": b""}), "'/adapter_config.json' leads out"),
        (tarred(FILES, extra=link("README.md")), "'README.md' is a link or a device"),
        (tarred(FILES, extra=link("README.md", tarfile.LNKTYPE)), "'README.md' is a link or a device"),
        (tarred(FILES, extra=link("README.md", tarfile.FIFOTYPE)), "'README.md' is a link or a device"),
        (zip_link(), "'meta.json' is a link or a device"),
        (zipped({**FILES, "adapter_model.bin": b""}), "'adapter_model.bin' is not a file of an adapter"),
        (tarred({**FILES, "a/b.pkl": b""}), "'a/b.pkl' is not a file of an adapter"),
        (zipped({"a/adapter_config.json": b"", "b/adapter_model.safetensors": b""}), "is not in one folder"),
        (zipped({"a/b/adapter_config.json": b""}), "is not in one folder"),
        (zipped({**FILES, "README.md": bytes(LIMIT)}), "'README.md' takes it past 0.0625 MiB"),
        (tarred({**FILES, "README.md": bytes(LIMIT)}), "'README.md' takes it past 0.0625 MiB"),
        (long_named_tar(), "grows past its limit"),
        (lying_zip(), "meta.json"),
        (encrypted_zip(), "encrypted"),
        (zipped(FILES)[:-30], "cannot be unpacked"),
        (tarred(FILES)[:-30], "cannot be unpacked"),
        (zipped({"adapter_config.json": b"{}"}), "has no adapter_model.safetensors"),
        (zipped({f"d{n}/": b"" for n in range(100)}), "has no adapter_config.json"),
        (b"\x80\x04pickle", "neither a .zip nor a .tar.gz"),
        (b"", "neither a .zip nor a .tar.gz"),
    ],
)
def test_what_is_not_an_adapter_is_refused_by_the_name_of_its_member(
    archive: bytes, words: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(BadArchive, match=words.replace("\\", ".").replace("(", ".")):
        unpack(BytesIO(archive), target, LIMIT)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert {path.name for path in target.iterdir()} <= {*FILES, "meta.json", "README.md"}


def test_what_is_packed_can_be_unpacked(tmp_path: Path) -> None:
    packed = BytesIO()
    pack(((name, BytesIO(content)) for name, content in FILES.items()), packed)
    packed.seek(0)
    unpack(packed, tmp_path, LIMIT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
