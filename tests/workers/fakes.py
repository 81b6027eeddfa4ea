"""A model whose next token is a function of the whole sequence, so that any mix-up of rows or positions shows."""

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from workers.engine.cache import blocks
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


class FakeModel:
    """A `SlotModel` that remembers each slot's tokens and checks how it is used."""

    vocabulary = VOCABULARY

    def __init__(self, capacity: int = 8 * 256) -> None:
        self.capacity = capacity
        self.slots: dict[int, list[int]] = {}
        self.reserved = (0, 0)
        self.fails_in = -1  # forward passes until one fails

    def reserve(self, rows: int, length: int) -> None:
        assert rows * blocks(length) <= self.capacity
        self.reserved = (rows, length)

    def forward(self, row: int, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> Tensor:
        self.fails_in -= 1
        if self.fails_in == 0:
            raise RuntimeError("out of memory")
        states = []
        for slot, (ids, at) in enumerate(zip(tokens, positions, strict=True), start=row):
            known = self.slots.setdefault(slot, [])
            del known[at[0] :]
            assert len(known) == at[0], "a position was left out"
            states.append([])
            for token in ids:
                known.append(token)
                states[-1].append([float(next_token(known))])
            assert slot < self.reserved[0]
            assert len(known) <= self.reserved[1]
        return torch.tensor(states)

    def logits(self, states: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(states[:, 0].long(), VOCABULARY) * 100.0

    def move(self, source: int, target: int, length: int) -> None:
        self.slots[target] = self.slots[source][:length]

    def reset(self) -> None:
        self.slots.clear()


def fake_engine(model: FakeModel | None = None, batch_limit: int = 4, context_tokens: int = 4096) -> LocalEngine:
    return LocalEngine(model or FakeModel(), token_bytes, frozenset({STOP_ID}), context_tokens, batch_limit)
