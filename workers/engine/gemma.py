"""The forward pass of Gemma 2 and 3 text models over flat tokens: few and large operations.

The residual stream is float32, products are in `dtype`. Architecture: Gemma 3 (arXiv:2503.19786), Gemma 2
(arXiv:2408.00118).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from workers.engine.attention import Batch, KVStore, Read, Window
from workers.engine.linear import Embedding, Int8Linear, Linear, MappedFiles, PackedLinear, fastest, packable
from workers.engine.lora import Adapters, LoraRows, Part, Site
from workers.engine.model import softcapped

FAMILIES = ("gemma2", "gemma3_text")


def implements(config: Any) -> bool:
    """Whether `Gemma` computes what the text model of this configuration does."""
    return (
        config.model_type in FAMILIES
        and config.hidden_activation == "gelu_pytorch_tanh"
        and not config.attention_bias
        and not getattr(config, "use_bidirectional_attention", None)
    )


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of a layer; norm weights are float32 and include the 1 that Gemma adds to them."""

    index: int
    window: Window
    rope: str
    before_attention: Tensor
    qkv: Linear | PackedLinear
    qk_norm: Tensor | None  # [heads + kv_heads, head_dim]; Gemma 2 has none
    o: Linear | PackedLinear
    after_attention: Tensor
    before_mlp: Tensor
    gate_up: Linear | PackedLinear
    down: Linear | PackedLinear
    after_mlp: Tensor


class Gemma:
    """A `SlotModel` of the weights of a transformers module, which is emptied as they are taken over.

    Those in a mapped file must be as they were loaded: what is copied of them leaves memory. dtype: of the products, if
    it is not the weights' own; the embedding stays as it is.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        context_tokens: int,
        dtype: torch.dtype | None = None,
        int8_output: bool = False,
    ) -> None:
        config = module.config.get_text_config()
        decoder: Any = module.get_decoder()
        self.vocabulary: int = config.vocab_size
        embedding: Any = module.get_input_embeddings()
        self._embedding_scale: float = config.hidden_size**0.5
        self._eps: float = config.rms_norm_eps
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = config.head_dim
        self._scale: float = config.query_pre_attn_scalar**-0.5
        self._softcap: float | None = config.attn_logit_softcapping
        self._logit_softcap: float | None = config.final_logit_softcapping
        self.dtype, self.device = dtype or embedding.weight.dtype, embedding.weight.device
        self.adapters: Adapters | None = None
        self.sites: dict[str, Site] = {}  # what adapters may change

        by_kind = config.model_type == "gemma3_text"  # Gemma 2 has one rotary embedding for all layers
        self._rope = {
            kind: rope_table(decoder.rotary_emb, context_tokens, *([kind] if by_kind else []))
            for kind in set(config.layer_types)
        }
        names = {part: name for name, part in module.named_modules()}
        files = MappedFiles()
        self._layers = [self._take(i, layer, config, names, files) for i, layer in enumerate(decoder.layers)]
        self._windows = {layer.window for layer in self._layers}
        self._final_norm = norm_weight(decoder.norm)
        output = module.get_output_embeddings().weight.data
        self._output = self._output_map(output, int8_output)
        copied = not isinstance(self._output, Linear) or output.dtype != self.dtype
        if copied:
            files.evict(output)
        self._embedding = Embedding(embedding.weight.data, evicts=copied and files.hold(embedding.weight.data))
        self.numerics = "int8" if isinstance(self._output, Int8Linear) else str(self.dtype).removeprefix("torch.")
        shape = (self._kv_heads, self._head_dim)
        self.storage = KVStore(dict.fromkeys(range(len(self._layers)), shape), self.dtype, self.device)

    def _output_map(self, weight: Tensor, int8: bool) -> Linear | PackedLinear | Int8Linear:
        if int8 and packable(weight.new_empty(0, dtype=self.dtype)):
            return Int8Linear(weight)
        if weight.dtype == self.dtype == torch.float32:  # a packed copy would be the largest of all
            return Linear(weight)
        return fastest(weight.to(self.dtype))

    def forward(self, reads: Sequence[Read]) -> Tensor:
        batch = Batch(reads, self.storage, self._windows)
        lora = self.adapters.rows(batch.adapters, batch.lengths) if self.adapters else None
        rope = {
            kind: (cos[batch.positions, None], sin[batch.positions, None]) for kind, (cos, sin) in self._rope.items()
        }
        x = self._embedding(batch.ids).float() * self._embedding_scale
        for layer in self._layers:
            y = self._attention(layer, batch, self._norm(x, layer.before_attention), *rope[layer.rope], lora)
            x = torch.addcmul(x, y * inverse_rms(y, self._eps), layer.after_attention)
            y = self._mlp(layer, self._norm(x, layer.before_mlp), lora)
            x = torch.addcmul(x, y * inverse_rms(y, self._eps), layer.after_mlp)
        return self._norm(x[batch.wanted], self._final_norm)

    def logits(self, states: Tensor) -> Tensor:
        return softcapped(self._output(states), self._logit_softcap)

    def _attention(
        self, layer: Layer, batch: Batch, x: Tensor, cos: Tensor, sin: Tensor, lora: LoraRows | None
    ) -> Tensor:
        """x: [tokens, width]; cos, sin: [tokens, 1, head_dim]. Returns [tokens, width]."""
        heads, kv_heads, tokens = self._heads, self._kv_heads, len(x)
        qkv = self._linear(layer, "qkv", x, lora).view(tokens, heads + 2 * kv_heads, self._head_dim)
        qk = qkv[:, : heads + kv_heads]
        qk = qk.float() if layer.qk_norm is None else qk * inverse_rms(qk, self._eps) * layer.qk_norm
        qk = rotate(qk, cos, sin).to(self.dtype)
        batch.write(layer.index, qk[:, heads:], qkv[:, heads + kv_heads :])
        output = batch.attend(layer.index, layer.window, qk[:, :heads], self._scale, self._softcap)
        return self._linear(layer, "o", output.reshape(tokens, -1), lora)

    def _mlp(self, layer: Layer, x: Tensor, lora: LoraRows | None) -> Tensor:
        gate, up = self._linear(layer, "gate_up", x, lora).chunk(2, -1)
        return self._linear(layer, "down", gelu(gate, approximate="tanh").mul_(up), lora)

    def _linear(self, layer: Layer, site: str, x: Tensor, lora: LoraRows | None) -> Tensor:
        y: Tensor = getattr(layer, site)(x)
        if lora:
            lora.add_(f"{layer.index}.{site}", x, y)
        return y

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return (x * inverse_rms(x, self._eps) * weight).to(self.dtype)

    def _take(self, index: int, layer: Any, config: Any, names: dict[nn.Module, str], files: MappedFiles) -> Layer:
        """A layer's weights, in fewer and larger pieces."""
        attn, mlp, kind = layer.self_attn, layer.mlp, config.layer_types[index]

        def joined(site: str, *modules: nn.Linear) -> Linear | PackedLinear:
            """Maps of one input as one map; the modules give their weights up."""
            weight = torch.cat([module.weight.data for module in modules]).to(self.dtype)
            parts = tuple(Part(names[module], len(module.weight)) for module in modules)
            self.sites[f"{index}.{site}"] = Site(weight.shape[1], parts)
            for module in modules:
                files.evict(module.weight.data)
                module.weight.data = weight.new_empty(0)
            return fastest(weight)

        qk_norm = None
        if hasattr(attn, "q_norm"):
            norms = [norm_weight(attn.q_norm)] * self._heads + [norm_weight(attn.k_norm)] * self._kv_heads
            qk_norm = torch.stack(norms)
        return Layer(
            index=index,
            window=config.sliding_window if kind == "sliding_attention" else None,
            rope=kind,
            before_attention=norm_weight(layer.input_layernorm),
            qkv=joined("qkv", attn.q_proj, attn.k_proj, attn.v_proj),
            qk_norm=qk_norm,
            o=joined("o", attn.o_proj),
            after_attention=norm_weight(layer.post_attention_layernorm),
            before_mlp=norm_weight(layer.pre_feedforward_layernorm),
            gate_up=joined("gate_up", mlp.gate_proj, mlp.up_proj),
            down=joined("down", mlp.down_proj),
            after_mlp=norm_weight(layer.post_feedforward_layernorm),
        )


def norm_weight(norm: Any) -> Tensor:
    weight: Tensor = norm.weight.data
    return 1 + weight.float()


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """What x is multiplied by in a root mean square norm (arXiv:1910.07467). Returns [..., 1] in float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rope_table(rotary: Any, positions: int, *kind: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [positions, head_dim], the sines of the first half negated for `rotate`."""
    device = next(rotary.buffers()).device
    at = torch.arange(positions, device=device)[None]
    cos, sin = rotary(torch.empty(0, device=device), at, *kind)
    half = sin.shape[-1] // 2
    return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv:2104.09864), halves paired. x: [tokens, heads, head_dim]."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
