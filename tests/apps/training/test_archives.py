"""Archives of adapters from anywhere: what is taken, and that nothing else is written."""

import bz2
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


def many_members_zip() -> bytes:
    """Its list of members is longer than a megabyte."""
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number in range(6000):
            archive.writestr(f"{number}{'x' * 150}", b"")
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
        (
            zipped({"adapter_config.json": b"{}", "adapter_model.bin": b""}),
            "but adapter_model.bin, which is not opened",
        ),
        (
            zipped({"a/adapter_config.json": b"", "b/adapter_model.safetensors": b""}),
            "has no adapter_model.safetensors",
        ),
        (zipped({f"{c}/{name}": b"{}" for c in "ab" for name in FILES}), "It has an adapter in 'a' and in 'b'"),
        (zipped({"C:\\adapter_config.json": b"", **FILES}), "'C:/adapter_config.json' leads out"),
        (zipped({"a\\..\\..\\x": b"", **FILES}), "'a/../../x' leads out"),
        (zipped({"\\x": b"", **FILES}), "'/x' leads out"),
        (tarred(FILES, extra=link("__MACOSX/x")), "'__MACOSX/x' is a link or a device"),
        (tarred(FILES, extra=link("checkpoint-3/optimizer.pt")), "'checkpoint-3/optimizer.pt' is a link or a device"),
        (zipped({**FILES, "./meta.json": b"1", "meta.json": b"2"}), "'meta.json' is there twice"),
        (zipped({**FILES, "x" * 301: b""}), "is a name of 301 characters"),
        (zipped({f"{n}": b"" for n in range(2001)}), "more than 2000 members"),
        (tarred({f"{n}": b"" for n in range(2001)}), "more than 2000 members"),
        (many_members_zip(), "more than 2000 members"),
        (tarred({"junk": bytes(3 * LIMIT + 2**20), **FILES}), "grows past its limit"),
        (zipped({**FILES, "README.md": bytes(LIMIT)}), "'README.md' takes it past 0.0625 MiB"),
        (tarred({**FILES, "README.md": bytes(LIMIT)}), "'README.md' takes it past 0.0625 MiB"),
        (long_named_tar(), "grows past its limit"),
        (lying_zip(), "meta.json"),
        (encrypted_zip(), "encrypted"),
        (zipped(FILES)[:-30], "cannot be unpacked"),
        (tarred(FILES)[:-30], "cannot be unpacked"),
        (zipped({"adapter_config.json": b"{}"}), "has no adapter_model.safetensors"),
        (zipped({f"d{n}/": b"" for n in range(100)}), "has no adapter_config.json"),
        (b"\x80\x04pickle", "neither a .zip nor a .tar"),
        (b"", "neither a .zip nor a .tar"),
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


JUNK = {
    "Trainer": [
        *("checkpoint-10/optimizer.pt", "checkpoint-10/rng_state.pth", "checkpoint-10/scheduler.pt"),
        *("checkpoint-10/adapter_config.json", "checkpoint-10/adapter_model.safetensors", "checkpoint-10/meta.json"),
        *("training_args.bin", "trainer_state.json", "runs/Nov26/events.out.tfevents.1", ".gitattributes"),
    ],
    "Unsloth": ["tokenizer.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja", "vocab.json"],
    "macOS": ["__MACOSX/._maths", "__MACOSX/maths/._adapter_config.json", "._adapter_config.json", ".DS_Store"],
    "a repository": [
        ".git/config",
        ".git/objects/aa/bb",
        "adapter_model.bin",
        ".cache/huggingface/x.lock",
        "Thumbs.db",
    ],
}


@pytest.mark.parametrize("prefix", ["", "maths/", "./outputs/maths/"])
@pytest.mark.parametrize("packed", [zipped, tarred])
@pytest.mark.parametrize("whose", JUNK)
def test_what_packers_and_trainers_leave_is_skipped_and_listed(
    whose: str, packed: Callable[..., bytes], prefix: str, tmp_path: Path
) -> None:
    junk = dict.fromkeys(JUNK[whose], b"junk")
    skipped = unpack(BytesIO(packed({**junk, **FILES, "README.md": b"# A"}, prefix)), tmp_path, LIMIT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {**FILES, "README.md": b"# A"}
    top = prefix.removeprefix("./")
    assert sorted(skipped) == sorted(f"{top}{name}" for name in junk)


def test_an_archive_made_by_windows_is_unpacked(tmp_path: Path) -> None:
    files = {f"maths\\{name}": content for name, content in FILES.items()}
    skipped = unpack(BytesIO(zipped({"maths\\": b"", **files, "maths\\desktop.ini": b""})), tmp_path, LIMIT)
    assert ({path.name for path in tmp_path.iterdir()}, skipped) == (set(FILES), ["maths/desktop.ini"])


def test_of_checkpoints_alone_one_is_an_adapter_and_two_are_a_question(tmp_path: Path) -> None:
    one = {f"out/checkpoint-5/{name}": content for name, content in FILES.items()}
    assert unpack(BytesIO(tarred(one)), tmp_path, LIMIT) == []
    two = {f"out/checkpoint-9/{name}": content for name, content in FILES.items()}
    with pytest.raises(BadArchive, match="in 'out/checkpoint-5' and in 'out/checkpoint-9': pack one of them"):
        unpack(BytesIO(zipped({**one, **two})), tmp_path, LIMIT)


@pytest.mark.parametrize("compressed", [bytes, bz2.compress, gzip.compress])
def test_a_tar_may_be_packed_or_not(compressed: Callable[[bytes], bytes], tmp_path: Path) -> None:
    assert unpack(BytesIO(compressed(gzip.decompress(tarred(FILES)))), tmp_path, LIMIT) == []
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_settings_are_small_whatever_the_limit(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match=r"'adapter_config\.json' takes it past 1 MiB"):
        unpack(BytesIO(zipped({**FILES, "adapter_config.json": bytes(2**20 + 1)})), tmp_path, 2**30)


def test_what_is_skipped_of_a_zip_is_not_even_unpacked(tmp_path: Path) -> None:
    bomb = {f"checkpoint-1/{n}.pt": bytes(2**22) for n in range(8)}
    assert len(unpack(BytesIO(zipped({**FILES, **bomb})), tmp_path, LIMIT)) == 8


def test_what_is_packed_can_be_unpacked(tmp_path: Path) -> None:
    packed = BytesIO()
    pack(((name, BytesIO(content)) for name, content in FILES.items()), packed)
    packed.seek(0)
    unpack(packed, tmp_path, LIMIT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
