"""What the engine asks of a model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from workers.engine.attention import Read
from workers.engine.cache import Storage


class SlotModel(Protocol):
    """A causal language model over slots of cached keys and values."""

    @property
    def vocabulary(self) -> int: ...
    @property
    def storage(self) -> Storage: ...

    def forward(self, reads: Sequence[Read]) -> Tensor:
        """Read the tokens of several rows, each at its place; returns the states of the wanted, [wanted, width]."""

    def logits(self, states: Tensor) -> Tensor:
        """[n, width] to [n, vocabulary], in float32 or the model's dtype, as the product gives them.

        The dearest product of all, so only for states that need it.
        """


def softcapped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits within -cap and cap, in float32 (Gemma 2, arXiv:2408.00118); as they are without a cap."""
    return logits if cap is None else torch.tanh(logits.float() / cap) * cap
