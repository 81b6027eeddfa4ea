"""A model whose next token is a function of the whole sequence, so that any mix-up of rows or positions shows."""

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from workers.engine.attention import Read
from workers.engine.cache import Place
from workers.engine.loop import LocalEngine

VOCABULARY = 50
STOP_ID = 49


def next_token(sequence: Sequence[int]) -> int:
    return crc32(bytes(sequence)) % VOCABULARY


def token_bytes(token: int) -> bytes:
    return f"{token} ".encode()


def answer(prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What an undisturbed request is answered, without its stop token."""
    sequence = list(prompt)
    while len(sequence) < len(prompt) + max_tokens and (token := next_token(sequence)) != STOP_ID:
        sequence.append(token)
    return sequence[len(prompt) :]


def text(tokens: Sequence[int]) -> str:
    return b"".join(map(token_bytes, tokens)).decode()


class FakeStorage:
    """A `Storage` of tokens in place of keys and values; it checks how it is used."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.arenas: dict[int, list[list[int]]] = {}
        self.resized = 0
        self.fails_in = -1  # changes until one fails

    def change(self) -> None:
        self.fails_in -= 1
        if self.fails_in == 0:
            raise RuntimeError("out of memory")

    def slot(self, place: Place) -> list[int]:
        return self.arenas[place.length][place.slot]

    def resize(self, length: int, slots: int) -> None:
        self.change()
        self.resized += 1
        kept = self.arenas.get(length, [])[:slots]
        self.arenas[length] = kept + [[] for _ in range(slots - len(kept))]
        assert sum(length * len(arena) for length, arena in self.arenas.items()) <= self.capacity

    def copy(self, source: Place, target: Place, tokens: int) -> None:
        self.change()
        assert len(self.slot(source)) >= tokens
        self.slot(target)[:] = self.slot(source)[:tokens]

    def swap(self, one: Place, other: Place, tokens: int) -> None:
        self.change()
        assert max(len(self.slot(one)), len(self.slot(other))) >= tokens
        first, second = self.slot(one)[:tokens], self.slot(other)[:tokens]
        self.slot(one)[:], self.slot(other)[:] = second, first


class FakeModel:
    """A `SlotModel` whose state is the whole sequence up to a token."""

    vocabulary = VOCABULARY

    def __init__(self, capacity: int = 8 * 256) -> None:
        self.capacity = capacity
        self.storage = FakeStorage(capacity)
        self.passes: list[list[Read]] = []
        self.fails_in = -1  # forward passes until one fails

    def forward(self, reads: Sequence[Read]) -> Tensor:
        self.fails_in -= 1
        if self.fails_in == 0:
            raise RuntimeError("out of memory")
        self.passes.append(list(reads))
        assert len({read.place for read in reads}) == len(reads)
        states = []
        for read in reads:
            slot = self.storage.slot(read.place)
            assert len(slot) >= read.start, "a position was left out"
            assert read.start + len(read.tokens) <= read.place.length
            ends = []
            tokens = iter(read.tokens)
            for length in read.branches or (len(read.tokens),):
                del slot[read.start :]
                for _ in range(length):
                    slot.append(next(tokens))
                    ends.append([float(next_token(slot))])
            states += [ends[index] for index in read.wanted]
        return torch.tensor(states).view(-1, 1)

    def logits(self, states: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(states[:, 0].long(), VOCABULARY) * 100.0


def fake_engine(
    model: FakeModel | None = None, batch_limit: int = 4, context_tokens: int = 4096, idle_s: float | None = None
) -> LocalEngine:
    model = model or FakeModel()
    return LocalEngine(
        model,
        token_bytes=token_bytes,
        stop_ids=frozenset({STOP_ID}),
        capacity=model.capacity,
        context_tokens=context_tokens,
        batch_limit=batch_limit,
        idle_s=idle_s,
    )
