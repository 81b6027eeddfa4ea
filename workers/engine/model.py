"""The forward pass over the slots of a batch, by transformers' own modules of the Gemma family."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from workers.engine.cache import KVCache, ShapeProbe

ATTENTION = "lyo_grouped"


class SlotModel(Protocol):
    """What the engine asks of a model. Row i of the batch lives in slot i."""

    capacity: int  # cached positions of all rows together
    vocabulary: int

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of at most `length` tokens."""

    def forward(self, row: int, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> Tensor:
        """Read `tokens` [rows, n] at `positions` into the slots from `row` on; returns states [rows, n, width]."""

    def logits(self, states: Tensor) -> Tensor:
        """[n, width] to [n, vocabulary] in float32: the dearest product of all, so only for states that sample."""

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first `length` tokens of slot `source` into slot `target`."""

    def reset(self) -> None:
        """Forget everything."""


class TransformersModel:
    """A `SlotModel` made of a causal language model of the Gemma family. It takes the module over for inference."""

    def __init__(self, module: PreTrainedModel, kv_cache_mb: int) -> None:
        module.set_attn_implementation(ATTENTION)
        config = module.config.get_text_config()
        self.vocabulary: int = config.vocab_size
        self._decoder: nn.Module = module.get_decoder()
        self._output: nn.Module = module.get_output_embeddings()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._window: int | None = config.sliding_window
        self._device, dtype = module.device, module.dtype

        probe = ShapeProbe()
        with torch.inference_mode():
            self._run(probe, torch.zeros(1, 1, dtype=torch.long, device=self._device), 1)
        token_bytes = sum(2 * heads * width * dtype.itemsize for heads, width in probe.shapes.values())
        self.capacity = kv_cache_mb * 2**20 // token_bytes
        self._cache = KVCache(probe.shapes, dtype, self._device, self.capacity)

    def reserve(self, rows: int, length: int) -> None:
        self._cache.reserve(rows, length)

    def forward(self, row: int, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> Tensor:
        ids = torch.tensor(tokens, device=self._device)
        at = torch.tensor(positions, device=self._device)
        length = max(row_positions[-1] for row_positions in positions) + 1
        self._cache.begin(row, at, length)
        return self._run(self._cache, ids, length, at)

    def logits(self, states: Tensor) -> Tensor:
        logits = self._output(states).float()
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    def move(self, source: int, target: int, length: int) -> None:
        self._cache.move(source, target, length)

    def reset(self) -> None:
        self._cache.reset()

    def _run(self, cache: KVCache | ShapeProbe, ids: Tensor, length: int, positions: Tensor | None = None) -> Tensor:
        at = torch.zeros_like(ids) if positions is None else positions
        states: Tensor = self._decoder(
            input_ids=ids,
            position_ids=at,
            attention_mask=attention_masks(at, length, self._window),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return states


def attention_masks(positions: Tensor, length: int, window: int | None) -> dict[str, Tensor]:
    """Which of the first `length` cached positions each token reads. positions: [rows, n]; masks: [rows, 1, n, length].

    A token reads what is not after it; in a sliding layer only the last `window` positions, its own included.
    """
    keys = torch.arange(length, device=positions.device)
    at = positions[:, None, :, None]
    full = keys <= at
    return {"full_attention": full, "sliding_attention": full & (keys > at - window) if window else full}


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of query heads that share key and value heads, without repeating the cache for them.

    query: [rows, heads, n, width]; key, value: [rows, kv_heads, length, width]; mask: [rows, 1, n, length].
    Returns [rows, n, heads, width].
    """
    rows, heads, n, width = query.shape
    kv_heads = key.shape[1]
    if softcap is not None:  # Gemma 2, which no fused kernel serves
        grouped = query.view(rows, kv_heads, heads // kv_heads, n, width)
        weights = torch.tanh(grouped @ key[:, :, None].transpose(-1, -2) * (scaling / softcap)) * softcap
        weights = weights.masked_fill(~attention_mask[:, None], -torch.inf).softmax(-1, dtype=torch.float32)
        output = (weights.to(query.dtype) @ value[:, :, None]).view(rows, heads, n, width)
    elif n == 1:  # the heads of a group read the same positions: as many queries of one head
        grouped = query.view(rows, kv_heads, heads // kv_heads, width)
        output = scaled_dot_product_attention(grouped, key, value, attention_mask, scale=scaling)
        output = output.view(rows, heads, 1, width)
    else:
        output = scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)
