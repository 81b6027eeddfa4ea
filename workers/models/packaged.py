"""Turns the Gemma that comes inside Python wheels into an ordinary safetensors folder, once.

The wheels carry a Q4_K_M GGUF file in parts. It is assembled, checked by sha256, dequantised to bfloat16, and deleted
again: whoever needs it later, say as a template for export, can have it assembled anew in a second.
"""

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from importlib import import_module
from pathlib import Path

from workers.models.registry import ModelSpec

Progress = Callable[[str], None]

EOS, END_OF_TURN = 1, 106  # the file itself names only <eos> as an end


def packaged_folder(spec: ModelSpec, models_dir: Path, progress: Progress = print) -> Path:
    """The folder of a packaged model under `models_dir`; converts it first if it is not there.

    Other processes may ask at the same time: one converts, the others wait for it.
    """
    folder = models_dir / spec.name
    if (folder / "meta.json").is_file():
        return folder
    models_dir.mkdir(parents=True, exist_ok=True)
    with locked(models_dir / f"{spec.name}.lock"):
        if not (folder / "meta.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            convert(spec, folder, progress)
    return folder


def convert(spec: ModelSpec, folder: Path, progress: Progress) -> None:
    """Write `spec` to `folder` through a temporary folder beside it, so that `folder` is never half done."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = import_module(spec.location)
    started = time.monotonic()
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a conversion that was killed
    temporary.mkdir()
    try:
        progress(f"{spec.name}: assembling {package.MODEL_NAME} and checking its sha256")
        source = package.assemble(temporary / "source" / package.MODEL_NAME)

        progress(f"{spec.name}: converting weights to bfloat16 (once, about a minute)")
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.generation_config.eos_token_id = [EOS, END_OF_TURN]
        model.save_pretrained(temporary)

        progress(f"{spec.name}: converting the tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer.save_pretrained(temporary)
        tokenizer.backend_tokenizer.save(str(temporary / "tokenizer.json"), pretty=False)  # half the size to parse

        shutil.rmtree(source.parent)
        meta = {
            "name": spec.name,
            "licence": spec.licence,
            "source": package.MODEL_NAME,
            "source_sha256": package.EXPECTED_SHA256,
            "weights_sha256": weights_sha256(temporary),
            "converted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2))
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    progress(f"{spec.name}: done in {time.monotonic() - started:.0f} s, {folder}")


def weights_sha256(folder: Path) -> str:
    """The digest of a folder's safetensors files: that of the file, or of all their digests in order of name."""
    digests = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digests.append(file_digest(file, "sha256"))
    if not digests:
        raise FileNotFoundError(f"{folder} has no *.safetensors file; no other weight format is loaded")
    if len(digests) == 1:
        return digests[0].hexdigest()
    return sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system frees it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
