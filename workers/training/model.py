"""A loaded model that learns, through transformers' own modules and PEFT's, so that any family can.

As in `workers.engine.modules` the examples of a pass go through as one flat sequence, and only attention knows whose
the tokens are.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from workers.models.export import write_folder
from workers.models.load import LoadedModel
from workers.protocols import Refused
from workers.training.data import Batch, Example
from workers.training.recipe import ALL_LINEAR, Recipe

ATTENTION = "lyo_training"
WEIGHTS = "weights.safetensors"


class Learner:
    """Takes over a loaded model. `trained` are its weights that change, in float32, by name.

    Raises `Refused` (`unknown_target`) for a target that is no linear module of the model.
    """

    def __init__(self, loaded: LoadedModel, recipe: Recipe) -> None:
        self.recipe = recipe
        self.base: PreTrainedModel = loaded.model
        self.base.set_attn_implementation(ATTENTION)
        self.device = self.base.device
        self.softcap: float | None = getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)
        nn.Module.to(self.base, getattr(torch, recipe.weights_dtype)).requires_grad_(recipe.method == "full")
        self.adapter = None if recipe.method == "full" else adapt(loaded, recipe)
        if recipe.gradient_checkpointing:
            self.base.activation_checkpointing_enable({"use_reentrant": False})
        self._decoder: Any = self.base.get_decoder()
        self._output: Any = self.base.get_output_embeddings()
        self._dtype = torch.bfloat16 if recipe.dtype == "bf16" else torch.float32
        self.trained: dict[str, Tensor] = {
            name: weight for name, weight in self.base.named_parameters() if weight.requires_grad
        }

    def train(self, learning: bool) -> None:
        """Switch dropout and gradient checkpointing on, or off."""
        self.base.train(learning)

    def batch(self, examples: Sequence[Example]) -> Batch:
        return Batch.of(examples, self.device)

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The states at the batch's wanted places, [labels, width], and the output matrix, [vocabulary, width]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            states = self._decoder(
                input_ids=batch.ids[None],
                position_ids=batch.positions[None],
                attention_mask={"full_attention": None, "sliding_attention": None},
                use_cache=False,
                lengths=batch.lengths,
            ).last_hidden_state[0]
        return states[batch.wanted].to(self._dtype), self._output.weight.to(self._dtype)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the trained weights: a PEFT folder in `dtype`, or for full tuning one file by their names."""
        if self.adapter is None:
            save_file(self.trained, folder / WEIGHTS)
            return
        weights = get_peft_model_state_dict(self.adapter, save_embedding_layers=False)
        save_file({name: weight.to(dtype) for name, weight in weights.items()}, folder / SAFETENSORS_WEIGHTS_NAME)
        config = copy(self.adapter.peft_config["default"])
        config.inference_mode = True
        config.save_pretrained(str(folder))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        if self.adapter is None:
            saved = load_file(folder / WEIGHTS)
            with torch.no_grad():
                for name, weight in self.trained.items():
                    weight.copy_(saved[name])
        else:
            set_peft_model_state_dict(self.adapter, load_file(folder / SAFETENSORS_WEIGHTS_NAME))

    def publish(self, folder: Path) -> None:
        """Write what serves: a PEFT folder in the recipe's dtype, or for full tuning a Hugging Face folder in the dtype
        of the base's files.

        After the latter the weights are of that dtype too: nothing can be learnt any more.
        """
        if self.adapter is None:
            write_folder(self.base, Path(str(self.base.name_or_path)), folder)
        else:
            self.save(folder, self._dtype)

    def as_it_began(self) -> AbstractContextManager[None]:
        """Without what the adapter has learnt."""
        if self.adapter is None:
            raise ValueError("full tuning keeps no copy of the model as it began")
        return self.adapter.disable_adapter()


def adapt(loaded: LoadedModel, recipe: Recipe) -> PeftModel:
    """Put a new LoRA, which changes nothing yet, into the model."""
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT only multiplies with it
        lora_dropout=recipe.dropout,
        target_modules=resolve_targets(loaded.model, recipe.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        adapter: Any = get_peft_model(loaded.model, config)
    adapter.peft_config["default"].base_model_name_or_path = loaded.name
    for module in adapter.modules():
        if hasattr(module, "lora_A"):
            module.cast_input_dtype_enabled = False
    return adapter


def resolve_targets(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The full names of the decoder's linear modules that `targets` stand for."""
    inside = {id(module) for module in model.get_decoder().modules()}
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and id(part) in inside]
    if tuple(targets) == (ALL_LINEAR,):
        return linear
    found = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    for target, names in found.items():
        if not names:
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise Refused("unknown_target", f"target {target!r} matches no module; the model has {', '.join(ends)}")
    return [name for names in found.values() for name in names]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    lengths: Sequence[int],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each of several sequences to itself, called by transformers' modules.

    query: [1, heads, tokens, head_dim]; key, value: [1, kv_heads, tokens, head_dim]; lengths: of the sequences.
    Returns [1, tokens, heads, head_dim].
    """
    parts = zip(*(tensor.split(list(lengths), 2) for tensor in (query, key, value)), strict=True)
    output = torch.cat([attend(q, k, v, scaling, sliding_window, softcap) for q, k, v in parts], 2)
    return output.transpose(1, 2), None


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """One sequence. window: how many tokens each sees, itself the last of them; softcap: as in Gemma 2."""
    length = q.shape[2]
    if softcap is None and (window is None or length <= window):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    places = torch.arange(length, device=q.device)
    behind = places[:, None] - places
    seen = (behind >= 0) & (behind < (window or length))
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = softcap * torch.tanh(scale * (q @ k.mT).float() / softcap)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype) @ v


AttentionInterface.register(ATTENTION, attention)
