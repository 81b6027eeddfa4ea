"""The forward pass over flat tokens by transformers' own modules: slower than `gemma`, and good for later families.

The tokens of all rows go through the modules as one sequence; only attention, and the cache, know whose they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from workers.engine.attention import Batch, KVStore, Read
from workers.engine.lora import Adapters, LoraRows, Part, Site
from workers.engine.model import softcapped

ATTENTION = "lyo_flat"


class Modules:
    """A `SlotModel` made of a transformers causal language model, which it takes over. dtype: to compute in."""

    def __init__(self, module: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
        self.dtype, self.device = dtype or module.dtype, module.device
        for parameter in module.parameters():  # not the buffers: rotary frequencies are float32
            parameter.data = parameter.data.to(self.dtype)
        module.set_attn_implementation(ATTENTION)
        config = module.config.get_text_config()
        self.vocabulary: int = config.vocab_size
        self.numerics = str(self.dtype).removeprefix("torch.")
        self.adapters: Adapters | None = None
        self.sites: dict[str, Site] = {}  # what adapters may change
        self._decoder: nn.Module = module.get_decoder()
        self._output: nn.Module = module.get_output_embeddings()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._windows = {None, config.sliding_window}
        self._lora: LoraRows | None = None
        inside = {id(part) for part in self._decoder.modules()}
        for name, linear in module.named_modules():
            if isinstance(linear, nn.Linear) and id(linear) in inside:
                self.sites[name] = Site(linear.in_features, (Part(name, linear.out_features),))
                linear.register_forward_hook(self._adapt(name))
        probe = Probe()
        with torch.inference_mode():
            self._run(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), probe)
        self.storage = KVStore(probe.shapes, self.dtype, self.device)

    def forward(self, reads: Sequence[Read]) -> Tensor:
        batch = Batch(reads, self.storage, self._windows)
        self._lora = self.adapters.rows(batch.adapters, batch.lengths) if self.adapters else None
        return self._run(batch.ids, batch.positions, Cached(batch))[batch.wanted]

    def logits(self, states: Tensor) -> Tensor:
        return softcapped(self._output(states), self._softcap)

    def _run(self, ids: Tensor, positions: Tensor, cache: "Cached | Probe") -> Tensor:
        """ids, positions: [tokens]. Returns [tokens, width]."""
        states: Tensor = self._decoder(
            input_ids=ids[None].to(self.device),
            position_ids=positions[None].to(self.device),
            attention_mask={"full_attention": None, "sliding_attention": None},  # `Batch` knows what a token sees
            past_key_values=cache,
            use_cache=True,
            lyo_cache=cache,
        ).last_hidden_state
        return states[0]

    def _adapt(self, site: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._lora:
                self._lora.add_(site, inputs[0].flatten(0, -2), output.flatten(0, -2))

        return hook


class Cached:
    """Stands in for transformers' cache in one forward pass.

    It hands the new keys on as they are, for layers that share another's cache, and remembers whose they are.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._layers: list[tuple[Tensor, int]] = []

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """keys, values: [1, kv_heads, tokens, head_dim]."""
        self._batch.write(layer_idx, keys[0].transpose(0, 1), values[0].transpose(0, 1))
        self._layers.append((keys, layer_idx))
        return keys, values

    def attend(self, query: Tensor, keys: Tensor, window: int | None, scale: float, softcap: float | None) -> Tensor:
        """query: [1, heads, tokens, head_dim]. Returns [1, tokens, heads, head_dim]."""
        layer = next(layer for known, layer in self._layers if known is keys)
        flat = query[0].transpose(0, 1).contiguous()
        return self._batch.attend(layer, window, flat, scale, softcap)[None]


class Probe:
    """Stands in for the cache in the very first pass, and notes each layer's shape."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, int]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        self.shapes[layer_idx] = (keys.shape[1], keys.shape[3])
        return keys, values

    def attend(self, query: Tensor, *_: Any) -> Tensor:
        return query.transpose(1, 2)


def flat_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    lyo_cache: Cached | Probe,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention modules call. query: [1, heads, tokens, head_dim]."""
    return lyo_cache.attend(query, key, sliding_window, scaling, softcap), None


AttentionInterface.register(ATTENTION, flat_attention)
