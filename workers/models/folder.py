"""Where a model's files are, fetched or converted if need be. Nothing here needs torch."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from workers.models.packaged import packaged_folder, weights_sha256
from workers.models.registry import ModelSpec

WEIGHTS = ["*.safetensors", "*.json"]
TOKENIZER = ["tokenizer*.json"]


def model_folder(spec: ModelSpec, models_dir: Path, progress: Callable[[str], None] = print) -> tuple[Path, str]:
    """Where the model's files are, fetched or converted if need be, and the digest of its weights."""
    if spec.source == "packaged":
        folder = packaged_folder(spec, models_dir, progress)
        return folder, json.loads((folder / "meta.json").read_text())["weights_sha256"]
    folder = fetched(spec, WEIGHTS) if spec.source == "hub" else Path(spec.location)
    return folder, cached_digest(folder, models_dir)


def tokenizer_folder(spec: ModelSpec, models_dir: Path, progress: Callable[[str], None] = print) -> Path:
    """Where the model's tokenizer is. Of a hub's model nothing else is fetched: another server has the weights."""
    if spec.source == "packaged":
        return packaged_folder(spec, models_dir, progress)
    return fetched(spec, TOKENIZER) if spec.source == "hub" else Path(spec.location)


def fetched(spec: ModelSpec, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(spec.location, revision=spec.revision, allow_patterns=files))


def cached_digest(folder: Path, models_dir: Path) -> str:
    """`weights_sha256` of a folder that is not ours to write to, remembered while its files keep size and time."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.safetensors"))]
    memory = models_dir / "digests" / sha256(repr((str(folder), files)).encode()).hexdigest()
    if not memory.is_file():
        digest = weights_sha256(folder)
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = memory.with_name(f"{memory.name}.{os.getpid()}")
        fresh.write_text(digest)
        fresh.replace(memory)
    return memory.read_text()
